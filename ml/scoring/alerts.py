"""Alerts: from p-values and evidence to flags that keep to an alert budget.

A night alerts if its p-value or its evidence is as rare as the alert threshold. The calibration
nights say how many false alert episodes each threshold opens.
"""

import numpy as np

from ml.arrays import FloatArray
from ml.episodes import find_episode_starts
from ml.errors import UserError
from ml.scoring.config import CalibrationConfig


def compute_alert_curve(
    p_value: FloatArray, evidence: FloatArray, config: CalibrationConfig
) -> FloatArray:
    """Return what alerting at each share of the calibration nights amounts to, `[T, 3]`.

    Columns: a share of the nights, ascending; the evidence that this share exceeds; the false
    episodes per 1,000 household-nights that alerting on p-values up to this share, or on evidence
    as rare, opens. Arguments are `[H, D]` of calibration households, nights in order.
    """
    is_scored = np.isfinite(p_value)
    n_nights = max(int(is_scored.sum()), 1)
    descending = np.sort(evidence[is_scored])[::-1]
    curve = np.zeros((config.alert_curve_steps, 3))
    curve[:, 0] = np.geomspace(1 / (1 + n_nights), config.max_alert_share, config.alert_curve_steps)
    if len(descending):
        curve[:, 1] = descending[(curve[:, 0] * n_nights).astype(int)]
    alert_p_value = compute_alert_p_values(curve, p_value, evidence)
    for step, share in enumerate(curve[:, 0]):
        n_episodes = find_episode_starts(alert_p_value <= share).sum()
        curve[step, 2] = 1000 * n_episodes / n_nights
    return curve


def compute_alert_p_values(
    curve: FloatArray, p_value: FloatArray, evidence: FloatArray
) -> FloatArray:
    """Return the p-value, or the share of nights with as much evidence where that is smaller.

    `curve` is that of `compute_alert_curve`; NaN stays NaN.
    """
    log_shares = np.log(curve[:, 0])
    evidence_limits = curve[:, 1]
    evidence_share = np.exp(np.interp(-evidence, -evidence_limits, log_shares))
    # Evidence below the last point of the curve says nothing.
    return np.minimum(p_value, np.where(evidence > evidence_limits[-1], evidence_share, 1.0))


def alert_threshold(
    curve: FloatArray, n_calibration_nights: int, alert_budget: float, config: CalibrationConfig
) -> float:
    """Return the greatest alert p-value that is flagged within a budget; 0 flags nothing.

    `curve` is that of `compute_alert_curve`. `alert_budget` is false alert episodes per 1,000
    normal household-nights.

    Raises:
        UserError: the calibration has too few household-nights to hold the budget's episodes.
    """
    min_budget = 1000 * config.min_expected_episodes / max(n_calibration_nights, 1)
    if alert_budget < min_budget:
        raise UserError(
            f"an alert budget of {alert_budget:g} false episodes per 1,000 household-nights cannot "
            f"be kept: the model's {n_calibration_nights:,} calibration household-nights would "
            f"hold {alert_budget * n_calibration_nights / 1000:.1f} of them and "
            f"{config.min_expected_episodes} are needed; set METERWATCH_ALERT_BUDGET to "
            f"{np.ceil(min_budget):.0f} or more, or train on more households"
        )
    # From the first share over the budget on none is taken, though episodes that merge may make
    # fewer of them at a greater share.
    within_budget = np.flatnonzero(np.maximum.accumulate(curve[:, 2]) <= alert_budget)
    return float(curve[within_budget[-1], 0]) if len(within_budget) else 0.0
