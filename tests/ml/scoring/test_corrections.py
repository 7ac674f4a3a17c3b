"""Corrections: new and often unusual households need more, and so does a livelier fleet."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ml.scoring.config import ScoringConfig
from ml.scoring.corrections import (
    base_rate_penalty,
    cold_start_penalty,
    inflate_p_values,
    measure_tail_inflation,
)
from tests import fleets

CONFIG = ScoringConfig()
NO_TRAINING_HOUSEHOLD = np.zeros(300, dtype=bool)


@given(
    arrays.arrays(float, 20, elements=st.floats(1e-6, 1)),
    arrays.arrays(float, 1, elements=st.floats(0.1, 9)),
)
def test_tail_inflation_keeps_order_and_bounds(p_value: np.ndarray, inflation: np.ndarray) -> None:
    inflated = inflate_p_values(np.sort(p_value), inflation, CONFIG)
    assert (np.diff(inflated) >= 0).all()
    assert (inflated <= 1).all()
    assert inflate_p_values(np.array([1.0]), inflation, CONFIG).item() == 1


def test_tail_inflation_enlarges_p_values_of_a_more_unusual_fleet() -> None:
    p_value = np.random.default_rng(0).uniform(size=(300, 60)) ** 1.5
    inflation = measure_tail_inflation(p_value, NO_TRAINING_HOUSEHOLD, CONFIG)
    expected = 0.1 ** (1 / 1.5) / 0.1
    assert inflation[0, -1] == pytest.approx(expected, rel=0.1)
    assert inflation[1, -1] == 1
    inflated = inflate_p_values(p_value, inflation[0], CONFIG)
    assert (inflated[:, -1] <= 0.1).mean() == pytest.approx(0.1, abs=0.04)


def test_training_households_have_a_tail_inflation_of_their_own() -> None:
    p_value = np.random.default_rng(0).uniform(size=(300, 60))
    p_value[:150] **= 2
    is_training_household = np.arange(300) < 150
    inflation = measure_tail_inflation(p_value, is_training_household, CONFIG)
    assert inflation[1, -1] > 2
    assert inflation[0, -1] == pytest.approx(1, abs=0.2)


def test_injected_nights_do_not_change_the_tail_inflation() -> None:
    p_value = np.random.default_rng(0).uniform(size=(300, 60))
    p_value[:24] = 1e-5
    inflation = measure_tail_inflation(p_value, NO_TRAINING_HOUSEHOLD, CONFIG)
    assert inflation[0, -1] == pytest.approx(1, abs=0.1)


def test_base_rate_penalty_is_zero_at_the_expected_rate_and_grows_with_unusual_nights() -> None:
    surprisal = np.full((3, CONFIG.base_rate_nights + 1), 0.3)
    surprisal[1, :14] = 1.5  # half of the nights are unusual
    surprisal[2, :14] = 3.5  # extreme nights are what is looked for
    quiet, unusual, extreme = base_rate_penalty(surprisal, CONFIG)[:, -1]
    assert quiet < 0
    assert extreme == quiet
    expected_nights = 0.1 * CONFIG.base_rate_nights
    expected = 1.5 * np.log10((1.5 + 14) / (1.5 + expected_nights))
    assert unusual == pytest.approx(expected)


def test_cold_start_penalty_falls_with_usable_nights_to_zero() -> None:
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(2, 40))
    penalty = cold_start_penalty(fleet, 36, CONFIG)[0]
    assert (np.diff(penalty) <= 0).all()
    assert penalty[0] > 1
    np.testing.assert_allclose(penalty[CONFIG.established_nights :], 0, atol=1e-12)
