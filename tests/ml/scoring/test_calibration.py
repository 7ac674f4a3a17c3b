"""The calibration standardizes log odds and errors, and holds what it was fitted on."""

import numpy as np
import pytest
import torch

from ml.scoring.calibration import Calibration, hash_household_ids
from ml.scoring.config import ScoringConfig

CONFIG = ScoringConfig()


def test_household_id_hashes_are_stable() -> None:
    one, again, other = hash_household_ids(["MAC000002", "MAC000002", "MAC000003"])
    assert one == again != other
    assert one == -2797787050760149971


def test_training_households_are_recognised_by_id() -> None:
    calibration = Calibration(CONFIG, "log_odds")
    calibration.set_training_households(["MAC000003", "MAC000002"])
    is_training = calibration.is_training_household(["MAC000001", "MAC000002", "MAC000003"])
    assert is_training.tolist() == [False, True, True]


def test_reference_scores_are_limited_and_evenly_spread() -> None:
    calibration = Calibration(CONFIG, "log_odds")
    calibration.set_reference_scores(torch.linspace(1, 0, 600_000))
    assert calibration.n_reference_scores == CONFIG.calibration.max_reference_scores
    assert calibration.reference_scores[[0, -1]].tolist() == [0.0, 1.0]


def test_fleet_shift_is_subtracted_from_log_odds() -> None:
    calibration = Calibration(CONFIG, "log_odds")
    log_odds = np.random.default_rng(0).normal(size=(50, 4))
    log_odds[:, 2] += 5
    deviation, fleet_shift = calibration.standardize(log_odds)
    assert fleet_shift[2] == pytest.approx(5, abs=0.5)
    np.testing.assert_allclose(np.median(deviation, axis=0), 0, atol=1e-9)


def test_small_fleet_has_no_shift() -> None:
    calibration = Calibration(CONFIG, "log_odds")
    log_odds = np.ones((CONFIG.min_households_for_shift - 1, 3))
    _, fleet_shift = calibration.standardize(log_odds)
    np.testing.assert_array_equal(fleet_shift, 0)


def test_deviation_of_an_error_is_symmetric_below_and_above_usual() -> None:
    # A reconstruction error grows with energy, so one side alone ranks every reduction as normal.
    calibration = Calibration(CONFIG, "error")
    usual = np.random.default_rng(0).normal(size=40)
    center = np.median(usual[-CONFIG.usual_error_nights :])
    errors = np.stack([np.append(usual, center - 5), np.append(usual, center + 5)])
    low, high = calibration.standardize(errors)[0][:, -1]
    assert low > 3
    assert low == pytest.approx(high, rel=0.2)


def test_half_hour_score_exceeds_one_above_even_odds() -> None:
    calibration = Calibration(CONFIG, "log_odds")
    half_hour_score = calibration.score_half_hours(np.array([-9.0, 0.0, 0.1, 9.0, np.nan]))
    np.testing.assert_array_equal(half_hour_score > 1, [False, False, True, True, False])
    assert np.isnan(half_hour_score[-1])
