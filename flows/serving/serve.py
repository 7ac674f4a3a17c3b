"""Serve what users and schedules work with: Prefect, its workers and MLflow, on loopback."""

import time
from contextlib import AbstractContextManager, ExitStack
from subprocess import Popen
from typing import Final

from flows.serving.processes import (
    LOOPBACK,
    build_api_url,
    build_environment,
    get_log_path,
    refuse_used_port,
    run_child_process,
    run_prefect_server,
    stop_on_signals,
    wait_until_healthy,
)
from ml.errors import UserError
from tasks import registry
from tasks.settings import get_settings

ChildProcesses = dict[str, "Popen[bytes]"]
POLL_INTERVAL_S: Final = 1.0
"""Pause between two looks at the child processes. Chosen: a user would hardly notice it sooner."""


def run_services() -> None:
    """Serve until Ctrl-C or SIGTERM, then stop everything that was started.

    Raises:
        UserError: a port or the home is taken, or a process ended by itself.
    """
    settings = get_settings()
    refuse_used_port(settings.prefect_port, "METERWATCH_PREFECT_PORT")
    refuse_used_port(settings.mlflow_port, "METERWATCH_MLFLOW_PORT")
    try:
        with stop_on_signals(), ExitStack() as running:
            print("starting Prefect, MLflow and the workers ...", flush=True)
            processes = _start_services(running, settings.prefect_port, settings.mlflow_port)
            _watch_processes(processes)
    except KeyboardInterrupt:
        print("stopped", flush=True)


def _start_services(exit_stack: ExitStack, port: int, mlflow_port: int) -> ChildProcesses:
    """Start all processes, by name; `exit_stack` stops them, the last started first."""
    wait_for_prefect = exit_stack.enter_context(run_prefect_server(port))
    env = build_environment(build_api_url(port))
    registry.prepare_store()
    mlflow = exit_stack.enter_context(_run_mlflow_server(mlflow_port, env))
    # Imported here, as Prefect's client takes seconds in which both servers start.
    from flows.serving.deploy import WORK_POOLS, deploy_flows

    wait_for_prefect()
    train_id = deploy_flows(env)
    workers = {
        f"worker-{pool}": exit_stack.enter_context(_run_worker(pool, env)) for pool in WORK_POOLS
    }
    wait_until_healthy(f"http://{LOOPBACK}:{mlflow_port}/health", mlflow, "mlflow")
    print(
        _format_addresses(port, mlflow_port, f"deployments/deployment/{train_id}/run"), flush=True
    )
    return {"mlflow": mlflow, **workers}


def _run_worker(pool: str, env: dict[str, str]) -> AbstractContextManager[Popen[bytes]]:
    command = ("prefect", "worker", "start", "--pool", pool, "--type", "process")
    return run_child_process(f"worker-{pool}", *command, env=env)


def _run_mlflow_server(port: int, env: dict[str, str]) -> AbstractContextManager[Popen[bytes]]:
    # One worker and no job runner: 0.5 GB instead of 2.8 GB.
    where = ("--host", LOOPBACK, "--port", str(port), "--workers", "1")
    store = ("--backend-store-uri", registry.resolve_store_uri())
    return run_child_process("mlflow", "mlflow", "server", *where, *store, env=env)


def _format_addresses(port: int, mlflow_port: int, train_form_path: str) -> str:
    prefect = f"http://{LOOPBACK}:{port}"
    return "\n".join(
        (
            f"runs and reports  {prefect}",
            f"retrain           {prefect}/{train_form_path}",
            f"models            http://{LOOPBACK}:{mlflow_port}",
            f"record your own   export PREFECT_API_URL={prefect}/api",
            "Ctrl-C stops all of it.",
        )
    )


def _watch_processes(processes: ChildProcesses) -> None:
    """Watch until a process ends by itself.

    Raises:
        UserError: one has ended; the message names its log.
    """
    while True:
        for name, process in processes.items():
            if process.poll() is not None:
                raise UserError(f"{name} ended by itself; it wrote {get_log_path(name)}")
        time.sleep(POLL_INTERVAL_S)
