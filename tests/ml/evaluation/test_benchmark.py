"""The benchmark splits, fits and measures; flags keep to the budget or say why there are none."""

import numpy as np
import polars as pl
import pytest

from ml.errors import UserError
from ml.evaluation import benchmark
from ml.evaluation.benchmark import (
    DETECTOR_GROUPS,
    BenchmarkConfig,
    BenchmarkData,
    evaluate_detectors,
    prepare_benchmark,
    resolve_detectors,
)
from ml.evaluation.report import FLAG_COLUMNS, render_benchmark
from ml.fleet import Fleet
from ml.scoring.detector import Detector
from ml.scoring.tables import score_fleet
from ml.training.split import is_held_out
from tests import fleets
from tests.evaluation_fixtures import MIN_READINGS

HOUSEHOLDS, NIGHTS = 24, 100


def build_config(alert_budget: float) -> BenchmarkConfig:
    return BenchmarkConfig(
        until=None, seed=1, copies=2, min_readings=MIN_READINGS, alert_budget=alert_budget
    )


@pytest.fixture(scope="module")
def data() -> BenchmarkData:
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS))
    return prepare_benchmark(fleet, build_config(alert_budget=100))


def fit_without_training(name: str, training_fleet: Fleet) -> Detector:
    return fleets.build_detector(training_fleet, name)


def test_detector_names_and_groups_resolve_in_fixed_order() -> None:
    assert resolve_detectors(["pca", "daily_kwh", "rules"]) == [
        *resolve_detectors(["rules"]),
        "pca",
    ]
    assert set(resolve_detectors([])) == {
        name for names in DETECTOR_GROUPS.values() for name in names
    }
    with pytest.raises(UserError, match="no detector 'oracle'; there are rules, baselines"):
        resolve_detectors(["oracle"])


def test_fleet_is_split_by_household_and_by_time(data: BenchmarkData) -> None:
    assert len(data.training_fleet.nights) == 2 * NIGHTS // 3
    first_test_night = data.injected_fleet.nights[data.pretest_nights.stop]
    assert first_test_night > data.training_fleet.nights[-1]
    is_apart = is_held_out(data.training_fleet.household_ids)
    assert data.held_out_households.tolist() == np.flatnonzero(is_apart).tolist()
    assert not is_apart[data.training_households].any()
    assert len(data.truth.household_index) == (
        2 * len(data.held_out_households) + len(data.training_households)
    )
    assert not data.truth.is_tested[:, : data.pretest_nights.stop].any()


def test_flags_are_those_of_the_calibration_at_its_budget(data: BenchmarkData) -> None:
    result = evaluate_detectors(
        data, ["conditional_autoencoder"], build_config(alert_budget=50), fit_without_training
    )
    assert result.notes == []
    detector = fit_without_training("conditional_autoencoder", data.training_fleet)
    scored = score_fleet(detector, data.injected_fleet, MIN_READINGS)
    alert_p_value = detector.calibration.alert_p_values(scored.p_value, scored.evidence)
    is_flagged = alert_p_value <= detector.calibration.alert_threshold(50)
    truth = data.truth.restrict_to_households(data.held_out_households)
    recall = is_flagged[truth.is_injected].mean()
    measured = result.metrics.filter(metric="flagged_recall", households="held_out")
    assert measured["detector"].to_list() == ["conditional_autoencoder"]
    assert measured["value"].item() == pytest.approx(recall)


def test_calibration_that_cannot_hold_the_budget_is_told_in_one_line(data: BenchmarkData) -> None:
    result = evaluate_detectors(
        data,
        ["daily_kwh", "conditional_autoencoder"],
        build_config(alert_budget=0.1),
        fit_without_training,
    )
    (note,) = result.notes
    assert note.startswith("conditional_autoencoder has no flags: an alert budget of 0.1 ")
    assert "\n" not in note
    assert result.metrics.filter(pl.col("metric").is_in(FLAG_COLUMNS)).is_empty()
    assert f"- {note}" in render_benchmark(result.metrics, result.notes)


def test_too_few_nights_or_households_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = build_config(alert_budget=100)
    short = fleets.build_fleet(fleets.simulate_readings_kwh(HOUSEHOLDS, 40))
    with pytest.raises(UserError, match="needs 28 nights to learn from and 28 after them"):
        prepare_benchmark(short, config)
    monkeypatch.setattr(benchmark, "is_held_out", lambda ids: np.ones(len(ids), dtype=bool))
    long = fleets.build_fleet(fleets.simulate_readings_kwh(3, NIGHTS))
    with pytest.raises(UserError, match="needs more than 3 households"):
        prepare_benchmark(long, config)
