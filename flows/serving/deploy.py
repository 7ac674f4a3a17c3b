"""Set up a Prefect server: work pools, deployments, and what becomes of a dead worker's runs."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

WORK_POOLS: Final = ("cpu", "gpu")
"""The pools that prefect.yaml names: training has one of its own, so that it can move to a GPU."""
DEPLOYMENTS_FILE: Final = Path(__file__).parents[2] / "prefect.yaml"
HEARTBEAT_TIMEOUT: Final = timedelta(seconds=90)
"""Silence after which a run is taken for dead. A run sends a heartbeat every 30 s: one or two may
be late on a busy machine, three are a dead worker."""
LIVENESS_EVENTS: Final = ("heartbeat", "Completed", "Failed", "Cancelled", "Crashed")
"""Events of a run that show that its worker lives, or that it needs none any more."""


def deploy_flows(env: dict[str, str]) -> UUID:
    """Create what is missing on the server that `env` names; return the id of deployment `train`.

    Raises:
        RuntimeError: the deployments of prefect.yaml were refused.
    """
    with (
        temporary_settings({PREFECT_API_URL: env["PREFECT_API_URL"]}),
        get_client(sync_client=True) as client,
    ):
        _create_work_pools(client)
        _create_deployments(env)
        _create_dead_worker_automation(client)
        _crash_pending_runs(client)
        return client.read_deployment_by_name("train/train").id


def _create_work_pools(client: SyncPrefectClient) -> None:
    existing_names = {pool.name for pool in client.read_work_pools()}
    template = ProcessWorker.get_default_base_job_template()
    for name in WORK_POOLS:
        if name not in existing_names:
            pool = WorkPoolCreate(name=name, type="process", base_job_template=template)
            client.create_work_pool(pool)


def _create_deployments(env: dict[str, str]) -> None:
    command = ("--no-prompt", "deploy", "--all", "--prefect-file", str(DEPLOYMENTS_FILE))
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *command],
        env=env,
        cwd=DEPLOYMENTS_FILE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{DEPLOYMENTS_FILE.name} was refused:\n{done.stdout}{done.stderr}")


def _create_dead_worker_automation(client: SyncPrefectClient) -> None:
    """Crash runs without heartbeat: else the run of a killed worker stays Running for good."""
    alive = {f"prefect.flow-run.{sign}" for sign in LIVENESS_EVENTS}
    trigger = EventTrigger(
        posture=Posture.Proactive,
        after={"prefect.flow-run.heartbeat"},
        expect=alive,
        match={"prefect.resource.id": "prefect.flow-run.*"},
        for_each={"prefect.resource.id"},
        threshold=1,
        within=HEARTBEAT_TIMEOUT,
    )
    crash = ChangeFlowRunState(state=StateType.CRASHED, message="its worker sent no heartbeat")
    name = "runs of dead workers crash"
    if not client.read_automations_by_name(name):
        client.create_automation(AutomationCore(name=name, trigger=trigger, actions=[crash]))


def _crash_pending_runs(client: SyncPrefectClient) -> None:
    """Crash runs that a stopped worker took and did not begin: they send no heartbeat to miss."""
    pending = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING]))
    stopped: State[None] = Crashed(message="its worker was stopped before it began")
    for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=pending)):
        client.set_flow_run_state(run.id, stopped, force=True)
