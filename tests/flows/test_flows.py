"""Flows run the same steps recorded by a server and without one, and what a server then knows."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import run_flow
from flows.cli import main
from flows.ingest import ingest
from flows.nightly import nightly
from flows.score import score
from flows.serving.processes import find_free_port, run_prefect_server
from flows.train import TrainParameters, train
from ml.errors import UserError
from ml.simulation.environment import FleetConfig
from tasks import storage, task
from tasks.simulation import simulate
from tests import fleets

FLEET_CONFIG = FleetConfig(households=40, days=72, start=date(2013, 10, 1))
LAST_NIGHT = FLEET_CONFIG.nights[-1]
pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def fleet_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a small fleet and a champion."""
    root = tmp_path_factory.mktemp("fleet")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("METERWATCH_HOME", str(root / "home"))
        simulate(root / "delivered", FLEET_CONFIG)
        ingest.fn(sources=[str(root / "delivered")])
        train.fn(TrainParameters(model=fleets.TEST_MODEL, max_epochs=1))
    return root / "home"


@pytest.fixture
def trained(fleet_home: Path, home: Path) -> Path:
    """A copy of that home."""
    shutil.copytree(fleet_home, home)
    return home


@pytest.fixture(scope="module")
def api_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("METERWATCH_HOME", str(tmp_path_factory.mktemp("server")))
        with run_prefect_server(find_free_port()) as ready:
            yield ready()
            APILogHandler().flush()


@pytest.fixture
def server(api_url: str) -> Iterator[SyncPrefectClient]:
    """The server is configured; a client of it."""
    with temporary_settings({PREFECT_API_URL: api_url}), SyncPrefectClient(api_url) as client:
        yield client


def read_last_run(server: SyncPrefectClient) -> FlowRun:
    newest, *_ = server.read_flow_runs(sort=FlowRunSort.START_TIME_DESC)
    return newest


def read_markdown_artifacts(server: SyncPrefectClient, flow_run: UUID) -> dict[str | None, str]:
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
    found = server.read_artifacts(artifact_filter=of_run)
    return {artifact.key: str(artifact.data) for artifact in found if artifact.type == "markdown"}


def read_table_files(home: Path) -> dict[Path, bytes]:
    return {path.relative_to(home): path.read_bytes() for path in home.glob("tables/*/*/*.parquet")}


def test_recorded_and_direct_runs_write_the_same_tables(
    trained: Path, server: SyncPrefectClient
) -> None:
    score.fn(LAST_NIGHT)
    direct = read_table_files(trained)
    shutil.rmtree(trained / "tables")
    run_flow(score, night=LAST_NIGHT)
    assert {path.parts[1] for path in direct} == {"scores", "anomalies", "episodes", "nights"}
    assert read_table_files(trained) == direct
    assert read_last_run(server).name == f"score {LAST_NIGHT}"


def test_run_without_a_server_is_not_recorded(trained: Path, server: SyncPrefectClient) -> None:
    before = len(server.read_flow_runs())
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        run_flow(score, night=LAST_NIGHT)
    assert len(server.read_flow_runs()) == before


def test_recorded_nightly_run_has_its_night_as_name_and_a_report(
    trained: Path, server: SyncPrefectClient
) -> None:
    run_flow(nightly)
    run = read_last_run(server)
    assert run.name == f"nightly {LAST_NIGHT}"
    assert run.state is not None
    assert run.state.is_completed()
    said = read_markdown_artifacts(server, run.id)[f"nightly-{LAST_NIGHT}"]
    for part in ("rows delivered", "Household-nights by status", f"{LAST_NIGHT}", "checks passed"):
        assert part in said


def test_nightly_ingests_and_scores_although_a_landed_file_is_unreadable(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    landing = trained / "landing"
    landing.mkdir()
    (landing / "broken.parquet").write_bytes(b"PAR1" + bytes(100))
    (landing / "new.csv").write_text(
        f"household_id,ts_utc,kwh\nLATE,{LAST_NIGHT}T00:00:00,0.5\n", encoding="utf-8"
    )
    assert main(["nightly"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("meterwatch: broken.parquet: ")
    assert said.count("\n") == 1
    scored = storage.read_table("scores")
    assert scored["night"].unique().to_list() == [LAST_NIGHT]
    assert scored.height == FLEET_CONFIG.households + 1
    last = storage.read_table("runs").sort("started_utc").filter(verb="nightly").row(-1, named=True)
    assert last["state"] == "failed"


def test_user_error_is_one_line_without_a_traceback_in_the_run_log(
    trained: Path, api_url: str, server: SyncPrefectClient
) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("meterwatch"), "score", "2031-01-01"],
        env={**os.environ, "PREFECT_API_URL": api_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    line = done.stderr.removeprefix("meterwatch: ").strip()
    run = read_last_run(server)
    of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
    log = [entry.message for entry in server.read_logs(log_filter=of_run)]
    assert run.state is not None
    assert run.state.is_failed()
    assert line in str(run.state.message)
    assert line in log
    assert not any("Traceback" in message for message in log)


@pytest.mark.parametrize("verb", ["train", "score", "nightly"])
def test_run_on_an_empty_lake_fails_and_does_not_stay_pending(
    verb: str, home: Path, server: SyncPrefectClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb]) == 1
    assert "meterwatch: the lake is empty" in capsys.readouterr().err
    states = {run.state_name for run in server.read_flow_runs()}
    assert "Pending" not in states
    assert read_last_run(server).state_name == "Failed"


def test_unreachable_server_is_named_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = f"http://127.0.0.1:{find_free_port()}/api"
    with temporary_settings({PREFECT_API_URL: dead}):
        assert main(["score"]) == 1
    said = capsys.readouterr().err
    assert dead in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("error", "tries"), [(UserError("mend me"), 1), (OSError("again"), 3)])
def test_tasks_retry_transient_errors_but_not_user_errors(
    error: Exception, tries: int, home: Path, server: SyncPrefectClient
) -> None:
    tried = []

    @task(name="fail", retries=2)
    def fail() -> None:
        tried.append(1)
        raise error

    @flow(name="failing")
    def failing() -> None:
        fail()

    with pytest.raises(type(error), match=str(error)):
        run_flow(failing)
    assert len(tried) == tries


def test_task_outside_a_flow_is_not_recorded(home: Path, server: SyncPrefectClient) -> None:
    @task(name="double")
    def double(number: int, by: int = 2) -> int:
        return by * number

    before = len(server.read_task_runs())
    assert double.map([1, 2], by=3) == [3, 6]
    assert len(server.read_task_runs()) == before


def test_each_step_of_a_flow_is_a_named_task_run(trained: Path, server: SyncPrefectClient) -> None:
    run_flow(score, night=LAST_NIGHT)
    run = read_last_run(server)
    only = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    expected = {"score nights", "join episodes"}
    # The server writes task runs from a stream of events, a moment later.
    deadline = time.monotonic() + 30
    names = set[str]()
    while not expected <= names and time.monotonic() < deadline:
        steps = server.read_task_runs(flow_run_filter=only)
        names = {step.name.rsplit("-", 1)[0] for step in steps}
        time.sleep(0.2)
    assert expected <= names


def test_mapped_task_is_a_task_run_per_item_in_the_order_of_the_items(
    home: Path, server: SyncPrefectClient
) -> None:
    @task(name="triple")
    def triple(number: int, by: int) -> int:
        return by * number

    progress: list[int] = []

    @flow(name="mapping")
    def mapping() -> list[int]:
        return triple.map([3, 1, 2], by=3, on_done=lambda: progress.append(1))

    assert run_flow(mapping) == [9, 3, 6]
    assert len(progress) == 3
    only = FlowRunFilter(id=FlowRunFilterId(any_=[read_last_run(server).id]))
    deadline = time.monotonic() + 30
    while len(server.read_task_runs(flow_run_filter=only)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_failed_item_of_a_mapped_task_fails_the_flow(home: Path, server: SyncPrefectClient) -> None:
    done: list[int] = []

    @task(name="refuse one")
    def refuse_one(number: int) -> None:
        if number == 1:
            raise UserError("one is refused")
        done.append(number)

    @flow(name="refusing")
    def refusing() -> None:
        refuse_one.map([1, 2])

    with pytest.raises(UserError, match="one is refused"):
        run_flow(refusing)
    assert done == [2]


WARNING_FLOW = """
import logging
from flows.environment import prepare_process
prepare_process()
from prefect import flow
from flows import run_flow

@flow(name="warning")
def warn():
    logging.getLogger("ml.training.fit").warning("half the batch")
    logging.getLogger("tasks.registry").warning("the local copy")
    logging.getLogger("elsewhere").warning("not ours")

run_flow(warn)
"""


def test_warnings_of_ml_and_tasks_are_on_the_page_of_the_run(
    home: Path, api_url: str, server: SyncPrefectClient
) -> None:
    environment = {**os.environ, "PREFECT_API_URL": api_url}
    subprocess.run([sys.executable, "-c", WARNING_FLOW], env=environment, check=True)
    of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[read_last_run(server).id]))
    log = [entry.message for entry in server.read_logs(log_filter=of_run)]
    assert {"half the batch", "the local copy"} <= set(log)
    assert "not ours" not in log


def test_warnings_without_a_server_raise_no_complaint_about_a_missing_run(home: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    code = f"import warnings; warnings.simplefilter('error')\n{WARNING_FLOW}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert "without a flow run" not in done.stderr
