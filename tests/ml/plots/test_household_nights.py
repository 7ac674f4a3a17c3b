"""Pictures show the nights and thresholds that scoring goes by."""

import io

import numpy as np
import pytest

from ml.fleet import Fleet
from ml.plots import household_nights
from ml.scoring.alerts import alert_threshold, compute_alert_p_values
from ml.scoring.detector import Detector
from ml.scoring.tables import score_fleet
from ml.scoring.tails import compute_p_values
from tests import fleets

HOUSEHOLDS, NIGHTS, MIN_READINGS, BUDGET = 8, 90, 36, 30.0


@pytest.fixture(scope="module")
def known() -> Fleet:
    kwh = fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS)
    kwh[2, -3, 20:24] += 4.0
    kwh[5, -2, 30:40] += 3.0
    return fleets.build_fleet(kwh)


@pytest.fixture(scope="module")
def detector(known: Fleet) -> Detector:
    return fleets.build_detector(
        fleets.build_fleet(fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS, seed=1))
    )


def test_examples_end_with_flagged_households(known: Fleet, detector: Detector) -> None:
    last = slice(NIGHTS - 28, NIGHTS)
    days = household_nights.select_examples(detector, known, last, MIN_READINGS, BUDGET)
    judged = score_fleet(detector, known, MIN_READINGS)
    curve = detector.alert_curve.numpy()
    urgent = compute_alert_p_values(curve, judged.p_value, judged.evidence)[:, last]
    limit = alert_threshold(curve, detector.config.calibration_size, BUDGET)
    homes = np.flatnonzero((urgent <= limit).any(axis=1))
    shaded = [day for day in days if day.deviating_hours]
    assert len(days) == 12
    assert len(shaded) == min(4, len(homes)) > 0
    assert days[-len(shaded) :] == shaded
    assert len({day.title.split()[0] for day in shaded}) == len(shaded)
    assert {f"MAC00000{home}" for home in (2, 5)} <= {day.title.split()[0] for day in shaded}


def test_deviating_hours_cover_the_added_load(known: Fleet, detector: Detector) -> None:
    days = household_nights.select_examples(
        detector, known, slice(NIGHTS - 28, NIGHTS), MIN_READINGS, BUDGET
    )
    (spiky,) = (day for day in days if day.title.startswith("MAC000002") and day.deviating_hours)
    start, end = spiky.deviating_hours
    assert start <= 10.0  # half-hour 20
    assert end >= 12.0


def test_distribution_marks_the_flagging_threshold(detector: Detector) -> None:
    figure = household_nights.draw_score_distribution(detector, BUDGET)
    (line,) = figure.axes[0].lines
    limit = alert_threshold(detector.alert_curve.numpy(), detector.config.calibration_size, BUDGET)
    threshold = float(line.get_xdata()[0])
    before, after = compute_p_values(
        detector.reference_scores.numpy(), np.array([threshold - 0.01, threshold + 0.01])
    )
    assert before > limit >= after


def test_no_threshold_is_drawn_without_calibrated_budget(detector: Detector) -> None:
    figure = household_nights.draw_score_distribution(detector, alert_budget=0.1)
    assert not figure.axes[0].lines


def test_fleet_without_recent_readings_is_drawn(detector: Detector) -> None:
    kwh = fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS)
    kwh[:, -28:] = np.nan
    last = slice(NIGHTS - 28, NIGHTS)
    days = household_nights.select_examples(
        detector, fleets.build_fleet(kwh), last, MIN_READINGS, BUDGET
    )
    assert days == []
    household_nights.draw_profiles(days, "nobody").savefig(io.BytesIO())
