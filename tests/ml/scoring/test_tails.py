"""Tail distributions keep the order of figures, and p-values are shares of the reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ml.scoring.config import CalibrationConfig
from ml.scoring.tails import TailDistribution, compute_p_values

CONFIG = CalibrationConfig()
finite_values = st.floats(-50, 50)


@pytest.fixture(scope="module")
def tail() -> TailDistribution:
    fitted = TailDistribution(CONFIG)
    fitted.fit(np.random.default_rng(0).normal(size=4000))
    return fitted


def test_p_values_of_the_reference_distribution_are_uniform() -> None:
    reference = np.sort(np.random.default_rng(1).exponential(size=200_000))
    others = np.random.default_rng(2).exponential(size=200_000)
    few = np.sort(np.random.default_rng(1).exponential(size=200_000)[:2000])
    p_value = compute_p_values(reference, others, CONFIG)
    for level in (0.1, 0.01, 0.001):
        assert (p_value <= level).mean() == pytest.approx(level, rel=0.15)
        of_few = compute_p_values(few, others, CONFIG)
        assert (of_few <= level).mean() == pytest.approx(level, rel=0.5)


def test_p_value_is_positive_and_counts_ties_as_extreme() -> None:
    reference = np.array([1.0, 2.0, 2.0, 3.0])
    p_value = compute_p_values(reference, np.array([9.0, 3.0, 2.0, 0.0, np.nan]), CONFIG)
    np.testing.assert_allclose(p_value[1:], [0.4, 0.8, 1.0, np.nan])
    assert 0 < p_value[0] < 0.01


def test_p_value_is_never_below_the_configured_minimum() -> None:
    reference = np.linspace(0, 1, 100)
    p_value = compute_p_values(reference, np.array([1e9]), CONFIG)
    assert p_value.item() == CONFIG.min_p_value


@settings(deadline=None)
@given(arrays.arrays(float, 12, elements=finite_values))
def test_surprisal_is_monotonic(tail: TailDistribution, values: np.ndarray) -> None:
    surprisal = tail.surprisal(np.sort(values))
    assert np.isfinite(surprisal).all()
    assert (np.diff(surprisal) >= 0).all()


def test_surprisal_increases_strictly_beyond_the_reference(tail: TailDistribution) -> None:
    assert (np.diff(tail.surprisal(np.linspace(4, 60, 100))) > 0).all()


def test_surprisal_is_minus_log10_of_the_tail_share() -> None:
    normal = np.random.default_rng(0).normal(size=(80, 250))
    tail = TailDistribution(CONFIG)
    tail.fit(normal)
    values = np.quantile(normal, [0.5, 0.9, 0.99])
    np.testing.assert_allclose(tail.surprisal(values), [0.301, 1, 2], atol=0.05)
    assert np.isnan(tail.surprisal(np.array([np.nan]))).all()


def test_fit_leaves_missing_figures_out() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    with_gaps = np.concatenate((values, np.full(500, np.nan)))
    fitted, of_gaps = TailDistribution(CONFIG), TailDistribution(CONFIG)
    fitted.fit(values)
    of_gaps.fit(with_gaps)
    assert of_gaps.body.equal(fitted.body)
    assert of_gaps.scale.equal(fitted.scale)
