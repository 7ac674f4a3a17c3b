"""What kind of anomaly it is, and which half-hours show it."""

from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml.features import Floats

RUN_HALF_HOURS: Final = 12
NIGHT: Final = slice(0, 12)
"""00:00 to 06:00 UTC."""


def explain(
    flagged: pl.DataFrame, actual: Floats, expected: Floats, residual: Floats
) -> pl.DataFrame:
    """Add to flagged household-nights their profiles `[N, 48]`, reason, span and excess energy."""
    start, end = spans(residual)
    midnight = pl.col("night").cast(pl.Datetime("us"))
    return flagged.drop("actual_kwh", "expected_kwh").with_columns(
        actual_kwh=_profiles(actual),
        expected_kwh=_profiles(expected),
        half_hour_score=_profiles(np.abs(residual)),
        excess_kwh=pl.Series(np.nansum(actual - expected, axis=1)).cast(pl.Float32),
        reason=pl.Series(reasons(actual, expected), dtype=pl.String),
        start_utc=midnight + pl.Series(start * 30).cast(pl.Int64) * pl.duration(minutes=1),
        end_utc=midnight + pl.Series(end * 30).cast(pl.Int64) * pl.duration(minutes=1),
    )


def spans(residual: Floats) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """The half-hours `start <= i < end` that deviate most as one block, `[N]` each.

    The segment with the greatest sum of |residual| - 1 (Bentley 1984).
    """
    gain = np.nan_to_num(np.abs(residual), nan=0.0) - 1.0
    total = np.cumsum(np.pad(gain, ((0, 0), (1, 0))), axis=1)
    lowest = np.minimum.accumulate(total[:, :-1], axis=1)
    end = np.argmax(total[:, 1:] - lowest, axis=1)
    upto = np.arange(residual.shape[1])[None] <= end[:, None]
    start = np.argmin(np.where(upto, total[:, :-1], np.inf), axis=1)
    return start, end + 1


def reasons(actual: Floats, expected: Floats) -> list[str]:
    """The first kind that a household-night `[N, 48]` satisfies."""
    excess = np.nan_to_num(actual - expected)
    more, total = np.maximum(excess, 0.0), np.nansum(actual, axis=1)
    usual = np.where(np.isfinite(actual), expected, 0.0).sum(axis=1)
    ratio = total / np.maximum(usual, 1e-3)
    surplus = np.maximum(more.sum(axis=1), 1e-6)
    at_zero = longest_run(actual == 0)
    conditions = {
        "outage": (at_zero >= RUN_HALF_HOURS // 2) & (usual * at_zero / 48 > 0.1) & (ratio < 0.9),
        "stuck": longest_run(np.diff(actual, axis=1) == 0) >= RUN_HALF_HOURS,
        "spike": np.sort(more, axis=1)[:, -2:].sum(axis=1) > 0.6 * np.maximum(surplus, usual / 2),
        "night_load": (more[:, NIGHT].sum(axis=1) > 0.6 * surplus) & (ratio > 1.1),
        "drop": ratio < 0.6,
        "rise": ratio > 1.6,
        "shifted": _is_shifted(actual, expected),
    }
    return list(np.select(list(conditions.values()), list(conditions), default="unusual_shape"))


def longest_run(flags: NDArray[np.bool_]) -> NDArray[np.int_]:
    """Length of the longest run of true values in each row of `[N, T]`."""
    position = np.arange(1, flags.shape[1] + 1)[None]
    last_false = np.maximum.accumulate(np.where(flags, 0, position), axis=1)
    return (position - last_false).max(axis=1)


def _is_shifted(actual: Floats, expected: Floats) -> NDArray[np.bool_]:
    """Whether turning the day by 2 to 10 hours makes it fit the expected profile far better."""
    lags = [lag for lag in range(-20, 21) if lag == 0 or abs(lag) >= 4]
    filled = np.where(np.isfinite(actual), actual, expected)
    fits = np.stack([_correlation(np.roll(filled, lag, axis=1), expected) for lag in lags])
    return fits.max(axis=0) > fits[lags.index(0)] + 0.4


def _correlation(a: Floats, b: Floats) -> Floats:
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return (a * b).sum(axis=1) / np.maximum(scale, 1e-12)


def _profiles(values: Floats) -> pl.Series:
    flat = pl.Series(values.astype(np.float32).reshape(-1, 48), dtype=pl.Array(pl.Float32, 48))
    return flat.cast(pl.List(pl.Float32)).list.eval(pl.element().fill_nan(None))
