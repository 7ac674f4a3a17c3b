"""Realised over target alarm rates of a threshold that is frozen before the test.

The threshold is read off the nights before the test, on which nothing was injected. Frozen
thresholds break with the season: a target of 1 in 1,000 set in August gave 29 to 52 in autumn
(docs/detector.md).
"""

from datetime import date
from typing import Final

import numpy as np
import polars as pl

from ml.arrays import FloatArray
from ml.evaluation.inject import GroundTruth
from ml.evaluation.metrics import HEADLINE_BUDGET, METRICS_SCHEMA, Doubles

TARGET_ALARM_RATES: Final = np.geomspace(0.001, 0.1, 9)
"""Target shares of the calibration picture: four a factor of ten, down to a budget's order."""


def measure_alarm_rates(
    score: FloatArray,
    truth: GroundTruth,
    pretest_nights: slice,
    target_rates: Doubles = TARGET_ALARM_RATES,
) -> Doubles:
    """Return the share of normal test nights that reach the threshold of each target rate.

    `score` is `[R, D]`; each threshold is the one that this share of the pretest nights reaches.
    """
    normal_scores = score[truth.is_normal]
    thresholds = _thresholds_for_rates(score, pretest_nights, target_rates)
    return np.array([np.mean(normal_scores >= threshold) for threshold in thresholds])


def measure_monthly_alarm_ratio(
    score: FloatArray, truth: GroundTruth, nights: list[date], pretest_nights: slice
) -> pl.DataFrame:
    """Return realised over target alarm rate by month, in `METRICS_SCHEMA`.

    The target is `HEADLINE_BUDGET` alarms, not episodes, in 1,000 normal nights. `subset` is the
    month, `2013-09`.
    """
    target_rate = HEADLINE_BUDGET / 1000
    (threshold,) = _thresholds_for_rates(score, pretest_nights, np.array([target_rate]))
    month_of_night = np.array([f"{night:%Y-%m}" for night in nights])
    rows = []
    for month in np.unique(month_of_night[truth.is_normal.any(axis=0)]):
        is_normal = truth.is_normal & (month_of_night == month)
        rate = float(np.mean(score[is_normal] >= threshold))
        rows.append(("alarms_over_target", month, 1000 * rate / HEADLINE_BUDGET, None, None))
    return pl.DataFrame(rows, schema=METRICS_SCHEMA, orient="row")


def _thresholds_for_rates(
    score: FloatArray, pretest_nights: slice, target_rates: Doubles
) -> Doubles:
    """Return thresholds that these shares of pretest nights reach; infinite without any score."""
    pretest_scores = score[:, pretest_nights]
    ordered = np.sort(pretest_scores[np.isfinite(pretest_scores)])
    if not len(ordered):
        return np.full(len(target_rates), np.inf)
    return np.asarray(np.quantile(ordered, 1 - target_rates, method="higher"))
