"""What `make serve` starts: schedules, workers, the form that retrains; and all of it ends."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from mlflow import MlflowClient
from playwright.sync_api import Page, Response, sync_playwright
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import PrefectHTTPStatusError

from flows.cli import main
from flows.ingest import ingest
from flows.serving.processes import find_free_port
from flows.train import TrainParameters, train
from ml.models import DEFAULT_MODEL
from ml.simulation.environment import FleetConfig
from tasks.simulation import simulate
from tests import fleets

FLEET_CONFIG = FleetConfig(households=40, days=72, start=date(2013, 10, 1))
LAST_NIGHT = FLEET_CONFIG.nights[-1]
CHROMIUM = shutil.which("chromium")
CHROMIUM_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
RUN_TIMEOUT_S = 300
MAX_SUBMIT_ATTEMPTS = 5
pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class RunningServices:
    """A running `meterwatch serve` and where it said to look."""

    home: Path
    process: subprocess.Popen[str]
    prefect_url: str
    train_form_url: str
    mlflow_url: str

    def open_client(self) -> SyncPrefectClient:
        return SyncPrefectClient(f"{self.prefect_url}/api")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServices]:
    """`meterwatch serve` on a small fleet with a champion; nothing of it may outlive it."""
    root = tmp_path_factory.mktemp("served")
    home = root / "home"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("METERWATCH_HOME", str(home))
        environment.setenv("METERWATCH_PREFECT_PORT", str(find_free_port()))
        environment.setenv("METERWATCH_MLFLOW_PORT", str(find_free_port()))
        simulate(root / "delivered", FLEET_CONFIG)
        ingest.fn(sources=[str(root / "delivered")])
        train.fn(TrainParameters(model=fleets.TEST_MODEL, max_epochs=1))
        process = subprocess.Popen(
            [Path(sys.executable).with_name("meterwatch"), "serve"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield RunningServices(home, process, **read_service_urls(process))
        finally:
            groups = find_child_groups(process.pid)
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "stopped\n")
    assert groups
    assert not [pid for group in groups for pid in list_group_members(group)]


def read_service_urls(process: subprocess.Popen[str]) -> dict[str, str]:
    """What `serve` prints once everything is up."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("Ctrl-C"):
            break
    prefect, form, mlflow, _ = re.findall(r"http://\S+", said)
    return {"prefect_url": prefect, "train_form_url": form, "mlflow_url": mlflow}


def list_processes() -> list[tuple[int, int, int]]:
    """Every process that has not ended: its number, its parent's and its group's."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found.append((int(stat.parent.name), int(parent), int(group)))
    return found


def find_child_groups(parent_pid: int) -> set[int]:
    return {group for _, above, group in list_processes() if above == parent_pid}


def list_group_members(group_id: int) -> list[int]:
    return [pid for pid, _, its_group in list_processes() if its_group == group_id]


def wait_until(description: str, poll: Callable[[], Any], timeout_s: float = RUN_TIMEOUT_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := poll()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {description}"
        time.sleep(0.5)
    return found


def read_deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    return client.read_deployment_by_name(f"{name}/{name}")


def read_deployment_runs(
    client: SyncPrefectClient, deployment: DeploymentResponse, *states: StateType
) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states))),
        )
    )


def wait_for_run(client: SyncPrefectClient, run_id: UUID) -> FlowRun:
    def its_end() -> FlowRun | None:
        found = client.read_flow_run(run_id)
        return found if found.state and found.state.is_final() else None

    end: FlowRun = wait_until("the run ends", its_end)
    return end


@pytest.mark.parametrize(("name", "clock"), [("nightly", "03:30"), ("train", "05:00")])
def test_deployment_schedules_runs_at_the_configured_time(
    name: str, clock: str, served: RunningServices
) -> None:
    """With SQLAlchemy 2.1 everything else works, but nothing is ever scheduled."""
    with served.open_client() as client:
        of = read_deployment(client, name)
        scheduled = wait_until(
            "a run is scheduled", lambda: read_deployment_runs(client, of, StateType.SCHEDULED)
        )
        starts = [run.expected_start_time for run in scheduled]
    london = ZoneInfo("Europe/London")
    assert {f"{start.astimezone(london):%H:%M}" for start in starts if start} == {clock}


def test_deployments_have_work_pools_and_nightly_allows_one_run(
    served: RunningServices,
) -> None:
    with served.open_client() as client:
        found = {name: read_deployment(client, name) for name in ("ingest", "train", "nightly")}
        found["backfill"] = read_deployment(client, "backfill")
    pools = {name: each.work_pool_name for name, each in found.items()}
    assert pools == {"ingest": "cpu", "train": "gpu", "nightly": "cpu", "backfill": "cpu"}
    assert all(each.enforce_parameter_schema and each.description for each in found.values())
    nightly = found["nightly"]
    assert nightly.global_concurrency_limit is not None
    assert nightly.global_concurrency_limit.limit == 1
    assert nightly.concurrency_options is not None
    assert nightly.concurrency_options.collision_strategy == "CANCEL_NEW"


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_each_work_pool_has_an_online_worker(pool: str, served: RunningServices) -> None:
    with served.open_client() as client:
        wait_until(
            "its worker is online",
            lambda: [
                worker
                for worker in client.read_workers_for_work_pool(pool)
                if worker.status == WorkerStatus.ONLINE
            ],
        )


def test_nightly_deployment_scores_the_last_night_on_a_worker(served: RunningServices) -> None:
    with served.open_client() as client:
        of = read_deployment(client, "nightly")
        run = wait_for_run(client, client.create_flow_run_from_deployment(of.id).id)
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    assert run.name == f"nightly {LAST_NIGHT}"
    table = served.home / f"tables/scores/night={LAST_NIGHT}/scores.parquet"
    assert pl.read_parquet(table).height == FLEET_CONFIG.households


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": "many"}, {"model": "nix"}, {"nix": 1}])
def test_invalid_flow_parameter_is_refused(
    wrong: dict[str, object], served: RunningServices
) -> None:
    with served.open_client() as client:
        of = read_deployment(client, "train")
        with pytest.raises(PrefectHTTPStatusError, match="409"):
            client.create_flow_run_from_deployment(of.id, parameters={"parameters": wrong})


def test_serve_on_a_used_port_is_refused(
    served: RunningServices, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = served.prefect_url.rpartition(":")[2]
    monkeypatch.setenv("METERWATCH_PREFECT_PORT", port)
    assert main(["serve"]) == 1
    said = capsys.readouterr().err
    assert port in said
    assert "METERWATCH_PREFECT_PORT" in said
    assert said.count("\n") == 1


def test_second_server_on_the_same_home_is_refused(
    served: RunningServices, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("METERWATCH_HOME", str(served.home))
    monkeypatch.setenv("METERWATCH_PREFECT_PORT", str(find_free_port()))
    monkeypatch.setenv("METERWATCH_MLFLOW_PORT", str(find_free_port()))
    assert main(["serve"]) == 1
    said = capsys.readouterr().err
    assert str(served.home) in said
    assert said.count("\n") == 1


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of a headless browser."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        yield browser.new_page(viewport={"width": 1300, "height": 1400})
        browser.close()


def find_form_field(page: Page, name: str) -> Any:
    return page.locator(".schema-form-property").filter(has_text=f"{name} (Optional)").last


def submit_form(page: Page) -> UUID:
    """Submit the form: the run that the server created.

    Prefect answers 503 while something else writes to its SQLite; its clients try again, and of
    its form a person does, by the keyboard, as what the page says of it covers the button.
    """
    submit = page.get_by_role("button", name="Submit")
    for tried in range(MAX_SUBMIT_ATTEMPTS):
        with page.expect_response(is_submit_response, timeout=60_000) as answer:
            submit.press("Enter") if tried else submit.click()
        if answer.value.status != HTTPStatus.SERVICE_UNAVAILABLE:
            break
    assert answer.value.status == HTTPStatus.CREATED, answer.value.text()
    return UUID(answer.value.json()["id"])


def is_submit_response(response: Response) -> bool:
    """Whether a run was created or refused, or the values that are checked before it."""
    return response.url.endswith("/create_flow_run") or (
        response.url.endswith("/schemas/validate") and not response.ok
    )


@pytest.mark.browser
def test_train_form_in_the_browser_registers_a_version(served: RunningServices, page: Page) -> None:
    until = FLEET_CONFIG.nights[-3]
    registry = MlflowClient(tracking_uri=served.mlflow_url)
    before = registry.search_model_versions("name = 'meterwatch'")
    page.goto(served.train_form_url)
    page.get_by_role("button", name="date", exact=True).click(timeout=60_000)
    page.get_by_text("Select date").click()
    page.locator("input[type=date]").fill(str(until))
    page.get_by_role("button", name="Apply").click()
    find_form_field(page, "Seed").locator("input").fill("7")
    find_form_field(page, "Promote").locator(".p-toggle__control").click()
    find_form_field(page, "Max Epochs").get_by_role("button", name="int", exact=True).click()
    find_form_field(page, "Max Epochs").locator("input").fill("1")
    created = submit_form(page)
    with served.open_client() as client:
        run = wait_for_run(client, created)
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    chosen = run.parameters["parameters"]
    assert (chosen["until"], chosen["seed"]) == (str(until), 7)
    assert (chosen["model"], chosen["promote"]) == (DEFAULT_MODEL, False)
    assert chosen["max_epochs"] == 1
    assert run.name == f"train until {until}"
    after = registry.search_model_versions("name = 'meterwatch'")
    assert len(after) == len(before) + 1
