"""Baseline detectors without training: a night against the household's own 28 nights before.

Each rule gives `[H, D]` figures, higher where a night is more unusual, NaN where it has too few
readings or its household less than a week of nights before. `fuse_rules` joins them by the maximum
of their empirical surprisals, which beat every published detector that was tried
(docs/detector.md, "simple rules").
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from ml.arrays import FloatArray, median_and_mad, rolling_windows
from ml.fleet import LEVEL_NIGHTS, Fleet, usual_levels_kwh
from ml.schemas import HALF_HOURS
from ml.scoring.calibration import MAD_TO_STANDARD_DEVIATION
from ml.scoring.rules import find_longest_run

MIN_HISTORY_NIGHTS: Final = 7
"""Nights before a night that a rule needs: with 7 the daily rule has AP 0.166, with 60 0.183."""
NEIGHBOR_RANK: Final = 3
"""The nearest night whose distance counts: the third, so that two nights of a fault that lasts do
not pass for a habit. Chosen."""
MIN_LOG_SPREAD: Final = 0.1
"""Added to a spread of logarithms, which below it is that of the readings' resolution. Chosen."""
DAILY_LOG_OFFSET_KWH: Final = 0.1
"""Added to a day's kWh before its logarithm, so that an empty day has one. Chosen."""
DISTANCE_LOG_OFFSET: Final = 0.01
"""Added to a distance before its logarithm, in the unit of the distance. Chosen."""
LEVEL_LOG_OFFSET: Final = 0.05
"""Added to readings in units of the level before their logarithm: half-hours below a twentieth of
the level differ little. Chosen."""
HOUSEHOLDS_PER_BATCH: Final = 16
"""Households compared at once: each holds 28 distances a night and half-hour."""


def compute_daily_z_scores(fleet: Fleet, min_readings: int) -> FloatArray:
    """Return the absolute robust z of the logarithm of the day's kWh, `[H, D]`.

    A day with gaps is scaled up to 48 readings.
    """
    day_kwh = np.nansum(fleet.kwh, axis=2) * HALF_HOURS / np.maximum(fleet.n_readings, 1)
    is_usable = fleet.n_readings >= min_readings
    log_day = np.where(is_usable, np.log(day_kwh + DAILY_LOG_OFFSET_KWH), np.nan)
    return np.abs(_compute_robust_z_scores(log_day))


def compute_half_hour_z_scores(fleet: Fleet, min_readings: int) -> FloatArray:
    """Return the robust z of the mean over half-hours of their absolute robust z, `[H, D]`.

    Each half-hour is compared with the same half-hour of the nights before.
    """
    mean_z = _apply_by_household_batch(fleet, min_readings, _mean_absolute_z_score)
    return _compute_robust_z_scores(np.log(mean_z + DISTANCE_LOG_OFFSET))


def compute_neighbor_z_scores(fleet: Fleet, min_readings: int) -> FloatArray:
    """Return the robust z of the distance to the third nearest of the nights before, `[H, D]`.

    Root mean square of log(kWh / level + 0.05) (k nearest neighbours, Ramaswamy et al. 2000).
    """
    distance = _apply_by_household_batch(fleet, min_readings, _compute_neighbor_distance)
    return _compute_robust_z_scores(np.log(distance + DISTANCE_LOG_OFFSET))


def compute_identical_run_ratio(fleet: Fleet, min_readings: int) -> FloatArray:
    """Return the longest run of identical readings over the household's usual one, `[H, D]`."""
    is_repeat = np.diff(fleet.kwh, axis=2) == 0
    longest = find_longest_run(is_repeat, fleet, min_readings) + 1
    return longest / _rolling_median_and_mad(longest)[0]


BASELINE_RULES: Final[dict[str, Callable[[Fleet, int], FloatArray]]] = {
    "daily_kwh": compute_daily_z_scores,
    "half_hours": compute_half_hour_z_scores,
    "nearest_days": compute_neighbor_z_scores,
    "identical_run": compute_identical_run_ratio,
}


def compute_empirical_surprisal(values: FloatArray, reference_values: FloatArray) -> FloatArray:
    """Return -log10 of the share of reference values at least as high, in the shape of `values`.

    The value itself is counted in; NaN stays NaN.
    """
    reference = np.sort(reference_values[np.isfinite(reference_values)])
    n_above = len(reference) - np.searchsorted(reference, values, side="left")
    surprisal = np.log10((1 + len(reference)) / (1 + n_above))
    return np.where(np.isfinite(values), surprisal, np.nan)


def fuse_rules(fleet: Fleet, min_readings: int, pretest_nights: slice) -> FloatArray:
    """Return the maximum of the rules' surprisals `[H, D]` among the fleet's pretest nights."""
    scores = [rule(fleet, min_readings) for rule in BASELINE_RULES.values()]
    return np.fmax.reduce(
        [compute_empirical_surprisal(score, score[:, pretest_nights]) for score in scores]
    )


def _rolling_median_and_mad(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return both of the nights before `[H, D]`; the median is NaN with less than a week."""
    windows = rolling_windows(values, LEVEL_NIGHTS)
    median, mad = median_and_mad(windows)
    has_history = np.isfinite(windows).sum(axis=-1) >= MIN_HISTORY_NIGHTS
    return np.where(has_history, median, np.nan), mad


def _compute_robust_z_scores(values: FloatArray) -> FloatArray:
    """Return the distance of logarithms from the household's median in robust deviations."""
    median, mad = _rolling_median_and_mad(values)
    return (values - median) / (MAD_TO_STANDARD_DEVIATION * mad + MIN_LOG_SPREAD)


def _apply_by_household_batch(
    fleet: Fleet, min_readings: int, rule: Callable[[FloatArray], FloatArray]
) -> FloatArray:
    """Apply a rule to log(kWh / level + 0.05) `[h, D, 48]`, some households at a time."""
    level_kwh = usual_levels_kwh(fleet, min_readings)[:, :, None]
    log_readings = np.log(fleet.kwh / level_kwh + np.float32(LEVEL_LOG_OFFSET))
    log_readings[fleet.n_readings < min_readings] = np.nan
    batches = [
        log_readings[start : start + HOUSEHOLDS_PER_BATCH]
        for start in range(0, len(log_readings), HOUSEHOLDS_PER_BATCH)
    ]
    return np.concatenate([rule(batch) for batch in batches])


def _mean_absolute_z_score(log_readings: FloatArray) -> FloatArray:
    """Return the mean over half-hours of |z| `[h, D]`."""
    n_households, n_nights, n_half_hours = log_readings.shape
    by_half_hour = log_readings.transpose(0, 2, 1).reshape(-1, n_nights)
    z_scores = np.abs(_compute_robust_z_scores(by_half_hour))
    z_scores = z_scores.reshape(n_households, n_half_hours, n_nights)
    count = np.isfinite(z_scores).sum(axis=1)
    total = np.nansum(z_scores, axis=1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _compute_neighbor_distance(log_readings: FloatArray) -> FloatArray:
    """Return the distance to the third nearest night before, `[h, D]`.

    Half-hours that either night lacks are left out.
    """
    n_nights = log_readings.shape[1]
    distances = np.full((*log_readings.shape[:2], LEVEL_NIGHTS), np.nan)
    for nights_ago in range(1, min(LEVEL_NIGHTS, n_nights - 1) + 1):
        squares = (log_readings[:, nights_ago:] - log_readings[:, :-nights_ago]) ** 2
        count = np.isfinite(squares).sum(axis=2)
        mean_square = np.nansum(squares, axis=2) / np.maximum(count, 1)
        distance = np.where(count > 0, np.sqrt(mean_square), np.nan)
        distances[:, nights_ago:, nights_ago - 1] = distance
    has_history = np.isfinite(distances).sum(axis=2) >= MIN_HISTORY_NIGHTS
    return np.where(has_history, np.sort(distances, axis=2)[:, :, NEIGHBOR_RANK - 1], np.nan)
