"""Whether alarms come as often as promised when a threshold is kept: realised over target.

The threshold is read off the nights before the test, on which nothing was planted.
"""

from datetime import date
from typing import Final

import numpy as np
import polars as pl

from ml.benchmark.figures import BUDGET, SCHEMA, Doubles
from ml.benchmark.plant import Truth
from ml.features import Floats

TARGETS: Final = np.geomspace(0.001, 0.1, 9)


def realised(score: Floats, truth: Truth, ordinary: slice, targets: Doubles = TARGETS) -> Doubles:
    """Share of clean nights that pass the threshold of each target share of `ordinary` nights."""
    clean = score[truth.clean]
    return np.array([np.mean(clean >= limit) for limit in _limits(score, ordinary, targets)])


def by_month(score: Floats, truth: Truth, nights: list[date], ordinary: slice) -> pl.DataFrame:
    """Realised over target alarm rate of each month, at `BUDGET` alarms in 1,000 nights."""
    (limit,) = _limits(score, ordinary, np.array([BUDGET / 1000]))
    months = np.array([f"{night:%Y-%m}" for night in nights])
    rows = []
    for month in np.unique(months[truth.clean.any(axis=0)]):
        clean = truth.clean & (months == month)
        rate = float(np.mean(score[clean] >= limit))
        rows.append(("alarms_over_target", month, 1000 * rate / BUDGET, None, None))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _limits(score: Floats, ordinary: slice, targets: Doubles) -> Doubles:
    """Thresholds that these shares of the ordinary nights reach; infinite without any score."""
    known = np.sort(score[:, ordinary][np.isfinite(score[:, ordinary])])
    if not len(known):
        return np.full(len(targets), np.inf)
    return np.asarray(np.quantile(known, 1 - targets, method="higher"))
