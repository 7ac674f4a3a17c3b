"""Pictures of household-nights show the nights that flags are taken by."""

import io

import numpy as np
import pytest

from ml.arrays import BoolArray, FloatArray
from ml.explain.config import ReasonConfig
from ml.fleet import Fleet
from ml.plots.household_nights import ProfileExample, draw_profiles, select_examples
from ml.scoring.detector import Detector
from ml.scoring.tables import FleetScores, score_fleet
from tests import fleets

HOUSEHOLDS, NIGHTS, MIN_READINGS, BUDGET = 8, 90, 36, 30.0
LAST_NIGHTS = slice(NIGHTS - 28, NIGHTS)


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    """Households of which the third and the sixth use much more on one of the last nights."""
    kwh = fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS)
    kwh[2, -3, 20:24] += 4.0
    kwh[5, -2, 30:40] += 3.0
    return fleets.build_fleet(kwh)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return fleets.build_detector(
        fleets.build_fleet(fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS, seed=1))
    )


def flag_last_nights(detector: Detector, fleet: Fleet) -> tuple[FleetScores, FloatArray, BoolArray]:
    scores = score_fleet(detector, fleet, MIN_READINGS)
    alert_p_value = detector.calibration.alert_p_values(scores.p_value, scores.evidence)
    alert_p_value[:, : LAST_NIGHTS.start] = np.nan
    return scores, alert_p_value, alert_p_value <= detector.calibration.alert_threshold(BUDGET)


def select_last_nights(detector: Detector, fleet: Fleet) -> list[ProfileExample]:
    return select_examples(
        fleet,
        *flag_last_nights(detector, fleet),
        min_readings=MIN_READINGS,
        reason_config=ReasonConfig(),
    )


def test_examples_end_with_flagged_households(fleet: Fleet, detector: Detector) -> None:
    examples = select_last_nights(detector, fleet)
    _, _, is_flagged = flag_last_nights(detector, fleet)
    n_flagged_households = is_flagged.any(axis=1).sum()
    shaded = [example for example in examples if example.deviating_hours]
    assert len(examples) == 12
    assert len(shaded) == min(4, n_flagged_households) > 0
    assert examples[-len(shaded) :] == shaded
    households = {example.title.split()[0] for example in shaded}
    assert len(households) == len(shaded)
    assert households >= {"MAC000002", "MAC000005"}


def test_deviating_hours_cover_the_added_load(fleet: Fleet, detector: Detector) -> None:
    examples = select_last_nights(detector, fleet)
    (spike,) = (
        example
        for example in examples
        if example.title.startswith("MAC000002") and example.deviating_hours
    )
    start, end = spike.deviating_hours
    assert start <= 10.0  # half-hour 20
    assert end >= 12.0


def test_fleet_without_recent_readings_is_drawn(detector: Detector) -> None:
    kwh = fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS)
    kwh[:, -28:] = np.nan
    examples = select_last_nights(detector, fleets.build_fleet(kwh))
    assert examples == []
    draw_profiles(examples, "nobody").savefig(io.BytesIO())
