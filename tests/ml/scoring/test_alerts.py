"""Alert thresholds keep to the budget, and a budget that cannot be kept is refused."""

import numpy as np
import pytest

from ml.episodes import find_episode_starts
from ml.errors import UserError
from ml.scoring.alerts import alert_threshold, compute_alert_curve, compute_alert_p_values
from ml.scoring.config import CalibrationConfig, ScoringConfig
from ml.scoring.evidence import accumulate_evidence
from ml.scoring.tails import compute_p_values

CONFIG = CalibrationConfig()
SHARES = np.geomspace(1e-4, 0.1, 9)


def test_alert_threshold_opens_as_many_false_episodes_as_the_budget() -> None:
    normal = np.random.default_rng(0).normal(size=(80, 250))
    reference = np.sort(normal.ravel())
    p_value = compute_p_values(reference, normal, CONFIG)
    _, evidence = accumulate_evidence(-np.log10(p_value), ScoringConfig())
    curve = compute_alert_curve(p_value, evidence, CONFIG)
    fresh = np.random.default_rng(5).normal(size=(400, 250))
    fresh_p_value = compute_p_values(reference, fresh, CONFIG)
    _, fresh_evidence = accumulate_evidence(-np.log10(fresh_p_value), ScoringConfig())
    for budget in (1.0, 3.0, 10.0):
        threshold = alert_threshold(curve, normal.size, budget, CONFIG)
        is_alert = compute_alert_p_values(curve, fresh_p_value, fresh_evidence) <= threshold
        opened_per_1000 = 1000 * find_episode_starts(is_alert).sum() / is_alert.size
        assert opened_per_1000 == pytest.approx(budget, rel=0.35)


def test_unresolvable_alert_budget_is_refused_with_the_smallest_possible() -> None:
    curve = np.column_stack((SHARES, np.linspace(9, 0, 9), np.arange(9)))
    message = "1,000 calibration household-nights .* METERWATCH_ALERT_BUDGET to 5 or more"
    with pytest.raises(UserError, match=message):
        alert_threshold(curve, 1000, 3.0, CONFIG)
    assert alert_threshold(curve, 10_000, 3.0, CONFIG) == curve[3, 0]


def test_evidence_lowers_the_alert_p_value() -> None:
    curve = np.column_stack((SHARES, np.linspace(9, 1, 9), np.arange(9)))
    p_value = np.array([0.4, 0.4, 1e-5, np.nan])
    evidence = np.array([9.0, 0.5, 0.5, np.nan])
    alert_p_value = compute_alert_p_values(curve, p_value, evidence)
    np.testing.assert_allclose(alert_p_value, [1e-4, 0.4, 1e-5, np.nan])
