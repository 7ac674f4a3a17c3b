"""Whether alarms come as often as promised when a threshold is kept: realised over target.

The threshold is read off the nights before the test, on which nothing was planted.
"""

from datetime import date
from typing import Final

import numpy as np
import polars as pl

from ml.arrays import FloatArray
from ml.evaluation.inject import GroundTruth
from ml.evaluation.metrics import HEADLINE_BUDGET, METRICS_SCHEMA, Doubles

TARGET_ALARM_RATES: Final = np.geomspace(0.001, 0.1, 9)


def measure_alarm_rates(
    score: FloatArray,
    truth: GroundTruth,
    pretest_nights: slice,
    target_rates: Doubles = TARGET_ALARM_RATES,
) -> Doubles:
    """Share of clean nights that pass the threshold of each target share of `ordinary` nights."""
    clean = score[truth.is_normal]
    return np.array(
        [
            np.mean(clean >= limit)
            for limit in _thresholds_for_rates(score, pretest_nights, target_rates)
        ]
    )


def measure_monthly_alarm_ratio(
    score: FloatArray, truth: GroundTruth, nights: list[date], pretest_nights: slice
) -> pl.DataFrame:
    """Realised over target alarm rate of each month, at `BUDGET` alarms in 1,000 nights."""
    (limit,) = _thresholds_for_rates(score, pretest_nights, np.array([HEADLINE_BUDGET / 1000]))
    months = np.array([f"{night:%Y-%m}" for night in nights])
    rows = []
    for month in np.unique(months[truth.is_normal.any(axis=0)]):
        clean = truth.is_normal & (months == month)
        rate = float(np.mean(score[clean] >= limit))
        rows.append(("alarms_over_target", month, 1000 * rate / HEADLINE_BUDGET, None, None))
    return pl.DataFrame(rows, schema=METRICS_SCHEMA, orient="row")


def _thresholds_for_rates(
    score: FloatArray, pretest_nights: slice, target_rates: Doubles
) -> Doubles:
    """Thresholds that these shares of the ordinary nights reach; infinite without any score."""
    known = np.sort(score[:, pretest_nights][np.isfinite(score[:, pretest_nights])])
    if not len(known):
        return np.full(len(target_rates), np.inf)
    return np.asarray(np.quantile(known, 1 - target_rates, method="higher"))
