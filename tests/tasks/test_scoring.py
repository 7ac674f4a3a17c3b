"""Nights are replaced whole, alike however they are reached, and nothing is scored twice over."""

import shutil
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flows.backfill import backfill
from flows.score import score
from ml.errors import UserError
from ml.scoring.tables import WARMUP_NIGHTS
from tasks import paths, queries, reports, storage
from tasks.model_files import save_detector
from tasks.registry import ModelVersion
from tasks.scoring import NIGHTS_PER_SPAN, split_into_spans
from tests import fleets

HOUSEHOLDS, NIGHTS = 12, WARMUP_NIGHTS + 40
LAST = fleets.FIRST_NIGHT + timedelta(days=NIGHTS - 1)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake and the local copy of a champion; there is no MLflow store."""
    path = tmp_path_factory.mktemp("template") / "home"
    readings = fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS)
    readings[3, -3:] *= 9
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METERWATCH_HOME", str(path))
        write_lake(readings)
        storage.replace_reference_table("households", fleets.build_households(HOUSEHOLDS + 1))
        save_detector(
            fleets.build_detector(
                fleets.build_fleet(fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS))
            ),
            paths.model_dir("7"),
        )
        champion = ModelVersion(version="7", run_id="none").model_dump_json()
        storage.replace_bytes(paths.champion_file(), champion.encode())
    return path


@pytest.fixture
def scored_home(home: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METERWATCH_ALERT_BUDGET", "20")
    shutil.copytree(template, home)
    return home


def write_lake(readings: np.ndarray) -> None:
    for (month,), days in fleets.build_household_nights(readings).group_by(
        pl.col("night").dt.truncate("1mo")
    ):
        assert isinstance(month, date)
        storage.replace_month(month, days)


def read_result_files(home: Path) -> dict[str, bytes]:
    files = sorted((home / "tables").rglob("*.parquet"))
    return {str(path.relative_to(home)): path.read_bytes() for path in files}


def test_rescoring_writes_byte_identical_tables(scored_home: Path) -> None:
    score.fn(LAST)
    once = read_result_files(scored_home)
    score.fn(LAST)
    assert read_result_files(scored_home) == once
    assert set(once) == {
        f"tables/{table}/night={LAST}/{table}.parquet"
        for table in ("scores", "anomalies", "episodes", "nights")
    }


def test_backfill_equals_scoring_single_nights(scored_home: Path) -> None:
    first = LAST - timedelta(days=NIGHTS_PER_SPAN + 2)  # more than one span
    backfill.fn(first, LAST)
    in_bulk = read_result_files(scored_home)
    for night in pl.date_range(first, LAST, eager=True):
        score.fn(night)
    assert read_result_files(scored_home) == in_bulk


def test_scoring_order_does_not_change_tables(scored_home: Path) -> None:
    nights = [LAST - timedelta(days=i) for i in range(3)]
    for night in nights:
        score.fn(night)
    backwards = read_result_files(scored_home)
    backfill.fn(nights[-1], LAST)
    assert read_result_files(scored_home) == backwards


def test_every_registered_household_has_a_score_row(scored_home: Path) -> None:
    receipt = score.fn()
    scores = storage.read_table("scores")
    assert receipt.last_night == LAST
    assert receipt.n_household_nights == len(scores) == HOUSEHOLDS + 1
    assert receipt.counts_by_status == {"missing": 1, "scored": HOUSEHOLDS}
    assert scores["model_version"].unique().to_list() == ["7"]


def test_lasting_anomaly_is_one_open_episode(scored_home: Path) -> None:
    backfill.fn(LAST - timedelta(days=4), LAST)
    own = storage.read_table("episodes").filter(household_id="MAC000003")
    assert len(own) == 1
    assert own["is_open"].to_list() == [True]
    assert own["excess_kwh"].item() > 0


def test_episode_closes_after_silence(scored_home: Path) -> None:
    readings = fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS)
    readings[3, -30] *= 9
    write_lake(readings)
    event = LAST - timedelta(days=29)
    score.fn(event)
    assert storage.read_table("episodes").filter(household_id="MAC000003")["is_open"].to_list() == [
        True
    ]
    backfill.fn(event, LAST)
    began = pl.col("first_night") == event
    own = storage.read_table("episodes").filter(began, pl.col("household_id") == "MAC000003")
    assert own["is_open"].to_list() == [False]


def test_most_urgent_households_are_drawn(scored_home: Path) -> None:
    backfill.fn(LAST - timedelta(days=4), LAST)
    path = reports.draw_most_urgent(LAST - timedelta(days=4), LAST)
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
    assert reports.draw_most_urgent(fleets.FIRST_NIGHT, fleets.FIRST_NIGHT) is None


def test_result_tables_pass_all_checks(scored_home: Path) -> None:
    backfill.fn(LAST - timedelta(days=5), LAST)
    broken = {name for name, rows in queries.run_checks().items() if len(rows)}
    assert broken <= {"rows_add_up"}  # no delivery made this lake


def test_failed_scoring_leaves_night_unchanged(scored_home: Path) -> None:
    score.fn(LAST)
    before = read_result_files(scored_home)
    (paths.model_dir("7") / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(Exception, match="header"):
        score.fn(LAST)
    assert read_result_files(scored_home) == before


@pytest.mark.parametrize(
    "night", [fleets.FIRST_NIGHT - timedelta(days=1), LAST + timedelta(days=1)]
)
def test_night_outside_lake_is_refused(scored_home: Path, night: date) -> None:
    with pytest.raises(UserError, match=f"{night} is outside the lake"):
        score.fn(night)


def test_reversed_range_is_refused(scored_home: Path) -> None:
    with pytest.raises(UserError, match="is after the last night"):
        backfill.fn(LAST, LAST - timedelta(days=1))


def test_scoring_empty_lake_is_refused(home: Path) -> None:
    with pytest.raises(UserError, match="the lake is empty"):
        score.fn()


def test_spans_cover_every_night_once() -> None:
    last = fleets.FIRST_NIGHT + timedelta(days=2 * NIGHTS_PER_SPAN)
    cut = list(split_into_spans(fleets.FIRST_NIGHT, last))
    nights = [night for span in cut for night in pl.date_range(*span, eager=True)]
    assert nights == pl.date_range(fleets.FIRST_NIGHT, last, eager=True).to_list()
    assert len(cut) == 3
