"""Arrays of households by nights: rolling windows, medians and means that leave NaN out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]


def rolling_windows(values: FloatArray, n_nights: int) -> FloatArray:
    """The `nights` values before each night, `[H, D]` to `[H, D, nights]`, NaN before the first."""
    padded = np.pad(values, ((0, 0), (n_nights, 0)), constant_values=np.nan)
    return np.lib.stride_tricks.sliding_window_view(padded, n_nights, axis=1)[:, :-1]


def pad_left(values: FloatArray, n_nights: int) -> FloatArray:
    """Figures of the nights from place `start` on, `[H, D - start]` to `[H, D]`, NaN before."""
    return np.pad(values, ((0, 0), (n_nights, 0)), constant_values=np.nan)


def median_and_mad(windows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Median and median absolute deviation over the last axis, NaN left out, NaN where empty."""
    median = nan_median(windows)
    return median, nan_median(np.abs(windows - median[..., None]))


def nan_median(windows: FloatArray) -> FloatArray:
    """As `numpy.nanmedian` over the last axis, by one sort; NaN sorts last."""
    ordered = np.sort(windows, axis=-1)
    count = np.isfinite(windows).sum(axis=-1, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=-1)
    high = np.take_along_axis(ordered, np.minimum(count // 2, windows.shape[-1] - 1), axis=-1)
    return ((low + high) / 2)[..., 0]


def nan_mean(kwh: FloatArray) -> FloatArray:
    """Mean over the half-hours that are there, NaN where none is."""
    count = np.isfinite(kwh).sum(axis=-1)
    total = np.nansum(kwh, axis=-1, dtype=np.float64)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
