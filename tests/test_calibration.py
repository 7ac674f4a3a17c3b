"""p-values mean what they say, budgets are counted in cases, and what cannot be kept is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ml import score as scoring
from ml.calibration import (
    TailDistribution,
    alert_threshold,
    compute_alert_curve,
    compute_alert_p_values,
    compute_p_values,
    hash_household_ids,
)
from ml.episodes import SILENCE_NIGHTS, find_episode_starts
from ml.errors import UserError

finite_values = st.floats(-50, 50)


@pytest.fixture(scope="module")
def normal() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(80, 250))


def test_p_values_of_normal_values_are_uniform() -> None:
    one, other = (np.random.default_rng(seed).exponential(size=200_000) for seed in (1, 2))
    p = compute_p_values(np.sort(one), other)
    for level in (0.1, 0.01, 0.001):
        assert (p <= level).mean() == pytest.approx(level, rel=0.15)
        few = compute_p_values(np.sort(one[:2000]), other)
        assert (few <= level).mean() == pytest.approx(level, rel=0.5)


def test_p_value_is_positive_and_counts_ties_as_extreme() -> None:
    reference = np.array([1.0, 2.0, 2.0, 3.0])
    figures = np.array([9.0, 3.0, 2.0, 0.0, np.nan])
    p = compute_p_values(reference, figures)
    np.testing.assert_allclose(p[1:], [0.4, 0.8, 1.0, np.nan])
    assert 0 < p[0] < 0.01


@pytest.fixture(scope="module")
def tail() -> TailDistribution:
    fitted = TailDistribution()
    fitted.fit(np.random.default_rng(0).normal(size=4000))
    return fitted


@settings(deadline=None)
@given(arrays.arrays(float, 12, elements=finite_values))
def test_surprisal_is_monotonic(tail: TailDistribution, figures: np.ndarray) -> None:
    rarity = tail.surprisal(np.sort(figures))
    assert np.isfinite(rarity).all()
    assert (np.diff(rarity) >= 0).all()


def test_surprisal_increases_strictly_beyond_the_reference(tail: TailDistribution) -> None:
    assert (np.diff(tail.surprisal(np.linspace(4, 60, 100))) > 0).all()


def test_surprisal_is_minus_log10_of_the_tail_share(normal: np.ndarray) -> None:
    tail = TailDistribution()
    tail.fit(normal)
    at = np.quantile(normal, [0.5, 0.9, 0.99])
    np.testing.assert_allclose(tail.surprisal(at), [0.301, 1, 2], atol=0.05)
    assert np.isnan(tail.surprisal(np.array([np.nan]))).all()


def test_episode_starts_agree_with_the_episodes_table() -> None:
    alerts = np.zeros((2, 40), dtype=bool)
    alerts[0, [3, 5, 17, 33]] = True
    starts = find_episode_starts(alerts)
    assert SILENCE_NIGHTS == 14
    # 17 lies within 14 nights of 5, 33 lies 16 nights behind 17.
    assert np.flatnonzero(starts[0]).tolist() == [3, 33]
    assert not starts[1].any()


def test_alert_threshold_opens_as_many_false_episodes_as_the_budget(normal: np.ndarray) -> None:
    p = compute_p_values(np.sort(normal.ravel()), normal)
    _, evidence = scoring.accumulate_evidence(-np.log10(p))
    curve = compute_alert_curve(p, evidence)
    fresh = np.random.default_rng(5).normal(size=(400, 250))
    fresh_p = compute_p_values(np.sort(normal.ravel()), fresh)
    _, fresh_evidence = scoring.accumulate_evidence(-np.log10(fresh_p))
    for budget in (1.0, 3.0, 10.0):
        limit = alert_threshold(curve, normal.size, budget)
        flags = compute_alert_p_values(curve, fresh_p, fresh_evidence) <= limit
        opened = 1000 * find_episode_starts(flags).sum() / flags.size
        assert opened == pytest.approx(budget, rel=0.35)


def test_unresolvable_alert_budget_is_refused_with_the_smallest_possible() -> None:
    curve = np.column_stack((np.geomspace(1e-4, 0.1, 9), np.linspace(9, 0, 9), np.arange(9)))
    said = "1,000 calibration household-nights .* METERWATCH_ALERT_BUDGET to 5 or more"
    with pytest.raises(UserError, match=said):
        alert_threshold(curve, 1000, 3.0)
    assert alert_threshold(curve, 10_000, 3.0) == curve[3, 0]


def test_evidence_lowers_the_alert_p_value() -> None:
    curve = np.column_stack((np.geomspace(1e-4, 0.1, 9), np.linspace(9, 1, 9), np.arange(9)))
    rare = compute_alert_p_values(
        curve, np.array([0.4, 0.4, 1e-5, np.nan]), np.array([9.0, 0.5, 0.5, np.nan])
    )
    np.testing.assert_allclose(rare, [1e-4, 0.4, 1e-5, np.nan])


@given(
    arrays.arrays(float, 20, elements=st.floats(1e-6, 1)),
    arrays.arrays(float, 1, elements=st.floats(0.1, 9)),
)
def test_tail_inflation_keeps_order_and_bounds(p: np.ndarray, height: np.ndarray) -> None:
    raised = scoring.inflate_p_values(np.sort(p), height)
    assert (np.diff(raised) >= 0).all()
    assert (raised <= 1).all()
    assert scoring.inflate_p_values(np.array([1.0]), height).item() == 1


def test_tail_inflation_enlarges_p_values_of_a_more_unusual_fleet() -> None:
    p = np.random.default_rng(0).uniform(size=(300, 60)) ** 1.5
    height = scoring.measure_tail_inflation(p, np.zeros(300, dtype=bool))
    expected = 0.1 ** (1 / 1.5) / 0.1
    assert height[0, -1] == pytest.approx(expected, rel=0.1)
    assert height[1, -1] == 1
    assert (scoring.inflate_p_values(p, height[0])[:, -1] <= 0.1).mean() == pytest.approx(
        0.1, abs=0.04
    )


def test_injected_nights_do_not_change_the_tail_inflation() -> None:
    p = np.random.default_rng(0).uniform(size=(300, 60))
    p[:24] = 1e-5
    assert scoring.measure_tail_inflation(p, np.zeros(300, dtype=bool))[0, -1] == pytest.approx(
        1, abs=0.1
    )


def test_household_id_hashes_are_stable() -> None:
    one, again, other = hash_household_ids(["MAC000002", "MAC000002", "MAC000003"])
    assert one == again != other
    assert one == -2797787050760149971
