"""The main job from nothing to the anomaly table, on a small fleet and a server of its own."""

import sqlite3
from contextlib import closing
from datetime import date
from pathlib import Path

import pytest

from flows.cli import main
from flows.serving import main_job as main_job
from ml.errors import UserError
from ml.simulation.environment import FleetConfig
from tasks import storage
from tasks.fleet_loading import find_last_well_reported_night
from tasks.simulation import simulate
from tests import small_home

FLEET_CONFIG = FleetConfig(households=40, days=72, start=date(2013, 10, 1))
pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(autouse=True)
def _no_server_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def read_recorded_runs(home: Path) -> set[tuple[str, str]]:
    with closing(sqlite3.connect(home / "prefect" / "prefect.db")) as database:
        return set(
            database.execute(
                "SELECT f.name, r.state_name FROM flow_run r JOIN flow f ON f.id = r.flow_id"
            )
        )


@pytest.mark.server
def test_main_job_scores_last_nights_and_prints_the_anomaly_table(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main_job, "SIMULATED_FLEET", FLEET_CONFIG)
    assert main(["run"]) == 0
    told, progress = capfd.readouterr()
    nights = FLEET_CONFIG.nights[-main_job.N_SCORED_SIMULATED_NIGHTS :]
    scores = storage.read_table("scores")
    assert storage.list_table_nights("scores") == nights
    assert scores.group_by("night").len()["len"].to_list() == [FLEET_CONFIG.households] * len(
        nights
    )
    for part in ("Most urgent households", "Injected anomalies", "budget", "make serve"):
        assert part in told
    for step in ("simulate", "ingest", "train", "score"):
        assert f"{step} ..." in progress
    # The server is gone, and its database in the home has the runs that `make serve` shows.
    verbs = ("simulate", "ingest", "train", "backfill")
    assert read_recorded_runs(home) == {(verb, "Completed") for verb in verbs}
    # The nights that are scored were not learned from.
    training = storage.read_table("runs").filter(verb="train").row(0, named=True)
    assert training["last_night"] < nights[0]


def test_simulation_is_refused_in_a_home_with_delivered_readings(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_home.write_small_home()
    assert main(["run"]) == 1
    assert "holds delivered readings" in capsys.readouterr().err
    assert not (home / "prefect").exists()


def test_simulated_home_is_renamed_before_delivered_readings_come(home: Path) -> None:
    small_home.write_small_home()
    simulate(home / "simulated", FleetConfig(households=1, days=1))
    main_job._separate_simulated_home(Path("delivered"))
    aside = home.with_name("home.simulated")
    assert not home.exists()
    assert (aside / "lake").is_dir()
    simulate(home / "simulated", FleetConfig(households=1, days=1))
    with pytest.raises(UserError, match="remove one"):
        main_job._separate_simulated_home(Path("delivered"))


def test_last_common_night_ignores_a_night_of_few_households() -> None:
    small_home.write_small_home()
    # 30 Jan: A and B; 31 Jan: A; 1 and 2 Feb: A and C or A, B and C.
    assert find_last_well_reported_night() == date(2014, 2, 2)
    storage.replace_month(
        date(2014, 3, 1),
        small_home.build_household_nights()
        .filter(night=date(2014, 2, 2), household_id="A")
        .with_columns(night=date(2014, 3, 1)),
    )
    assert find_last_well_reported_night() == date(2014, 2, 2)
