"""A version is promoted if it is asked for and surely better than the champion."""

import numpy as np
import pytest

from ml.evaluation.promotion import (
    PromotionConfig,
    build_promotion_trial,
    compare_detectors,
    decide_promotion,
)
from tests import fleets

MIN_READINGS = 36


@pytest.mark.parametrize(("superiority", "is_promoted"), [(0.94, False), (0.95, True)])
def test_version_is_promoted_from_required_superiority_on(
    superiority: float, is_promoted: bool
) -> None:
    decision = decide_promotion(superiority, "3", is_requested=True)
    assert decision.is_promoted == is_promoted
    assert (decision.champion_version, decision.superiority) == ("3", superiority)
    assert decision.why == (
        f"it ranks injected nights better than the champion in {superiority:.0%} of resamples, "
        "95% are needed"
    )


def test_first_version_is_promoted() -> None:
    decision = decide_promotion(None, None, is_requested=True)
    assert decision.is_promoted
    assert decision.why == "there was no champion"


def test_version_replaces_a_champion_that_cannot_score() -> None:
    decision = decide_promotion(None, "3", is_requested=True, champion_refusal="other inputs")
    assert decision.is_promoted
    assert decision.champion_version == "3"
    assert decision.why == "the champion cannot score any more, other inputs"


def test_better_version_is_not_promoted_unless_requested() -> None:
    decision = decide_promotion(1.0, "3", is_requested=False)
    assert not decision.is_promoted
    assert decision.why.startswith("promotion was not asked for; it ranks injected nights")


def test_trial_repeats_few_households_and_injects_into_last_nights_only() -> None:
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(3, 90))
    config = PromotionConfig(n_rows=7)
    trial = build_promotion_trial(fleet, slice(62, 90), MIN_READINGS, config)
    assert trial.truth.household_index.tolist() == [0, 1, 2] * 3
    assert trial.truth.is_tested[:, 62:].all()
    assert not trial.truth.is_tested[:, :62].any()
    np.testing.assert_array_equal(trial.fleet.kwh[:, :62], np.tile(fleet.kwh[:, :62], (3, 1, 1)))
    assert trial.truth.is_injected.any()


def test_detector_is_as_good_as_itself() -> None:
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(3, 90))
    detector = fleets.build_detector(fleet)
    trial = build_promotion_trial(fleet, slice(62, 90), MIN_READINGS, PromotionConfig(n_rows=6))
    assert compare_detectors(detector, detector, trial) == 0.5
