"""Detectors without training: a night against the 28 nights before it of the same household.

Each rule gives `[H, D]` figures, higher where a night is more unusual, NaN where there are too few
readings or less than a week before. They are joined by the maximum of their calibrated ranks.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml.arrays import FloatArray, median_and_mad, rolling_windows
from ml.fleet import LEVEL_NIGHTS, Fleet, usual_levels_kwh
from ml.schemas import HALF_HOURS

MIN_HISTORY_NIGHTS: Final = 7
NEIGHBOR_RANK: Final = 3
# Spread of a logarithm below which a deviation is that of a reading's resolution.
MIN_LOG_SPREAD: Final = 0.1
DAILY_LOG_OFFSET_KWH: Final = 0.1
DISTANCE_LOG_OFFSET: Final = 0.01
# Half-hours below this share of the level differ little.
LEVEL_LOG_OFFSET: Final = 0.05
HOUSEHOLDS_PER_BATCH: Final = 16
ZERO_KWH: Final = 5e-4
HABITUAL_RUN_RANK: Final = 3
RUN_LENGTH_OFFSET: Final = 2.0


def compute_daily_z_scores(fleet: Fleet, min_readings: int) -> FloatArray:
    """Robust z of the logarithm of the day's kWh, on either side."""
    day = np.nansum(fleet.kwh, axis=2) * HALF_HOURS / np.maximum(fleet.n_readings, 1)
    enough = fleet.n_readings >= min_readings
    return np.abs(
        _compute_robust_z_scores(np.where(enough, np.log(day + DAILY_LOG_OFFSET_KWH), np.nan))
    )


def compute_half_hour_z_scores(fleet: Fleet, min_readings: int) -> FloatArray:
    """How unusual for the household is the mean over half-hours of their robust z, each its own."""
    return _compute_robust_z_scores(
        np.log(
            _apply_by_household_batch(fleet, min_readings, _mean_absolute_z_score)
            + DISTANCE_LOG_OFFSET
        )
    )


def compute_neighbor_z_scores(fleet: Fleet, min_readings: int) -> FloatArray:
    """How unusual for the household is the distance to the third nearest of the nights before.

    Root mean square of log level units (k nearest neighbours, Ramaswamy et al. 2000).
    """
    return _compute_robust_z_scores(
        np.log(
            _apply_by_household_batch(fleet, min_readings, _compute_neighbor_distance)
            + DISTANCE_LOG_OFFSET
        )
    )


def compute_identical_run_ratio(fleet: Fleet, min_readings: int) -> FloatArray:
    """Longest run of identical readings, in units of the run that is usual for the household."""
    longest = _longest_run(np.diff(fleet.kwh, axis=2) == 0, fleet, min_readings) + 1
    return longest / _rolling_median_and_mad(longest)[0]


def compute_repeated_run_excess(fleet: Fleet, min_readings: int) -> FloatArray:
    """Longest run of one reading that is not zero, against the household's own."""
    repeats = (np.diff(fleet.kwh, axis=2) == 0) & (fleet.kwh[:, :, 1:] > ZERO_KWH)
    return _compare_with_habitual_run(_longest_run(repeats, fleet, min_readings))


def compute_zero_run_excess(fleet: Fleet, min_readings: int) -> FloatArray:
    """Longest run without consumption, against the household's own."""
    return _compare_with_habitual_run(_longest_run(fleet.kwh <= ZERO_KWH, fleet, min_readings))


BASELINE_RULES: Final[dict[str, Callable[[Fleet, int], FloatArray]]] = {
    "daily_kwh": compute_daily_z_scores,
    "half_hours": compute_half_hour_z_scores,
    "nearest_days": compute_neighbor_z_scores,
    "identical_run": compute_identical_run_ratio,
}


def compute_empirical_surprisal(values: FloatArray, reference_values: FloatArray) -> FloatArray:
    """How rare a score is among those of ordinary nights: -log10 of the share at least as high."""
    ordinary = np.sort(reference_values[np.isfinite(reference_values)])
    above = len(ordinary) - np.searchsorted(ordinary, values, side="left")
    return np.where(np.isfinite(values), np.log10((1 + len(ordinary)) / (1 + above)), np.nan)


def fuse_rules(fleet: Fleet, min_readings: int, pretest_nights: slice) -> FloatArray:
    """The maximum of the rules' ranks `[H, D]` among the fleet's `ordinary` nights."""
    scores = [rule(fleet, min_readings) for rule in BASELINE_RULES.values()]
    return np.fmax.reduce(
        [compute_empirical_surprisal(score, score[:, pretest_nights]) for score in scores]
    )


def _longest_run(flags: NDArray[np.bool_], fleet: Fleet, min_readings: int) -> FloatArray:
    """Length `[H, D]` of the longest run of true values of each night."""
    longest = np.zeros(flags.shape[:2], dtype=np.float32)
    where = flags.any(axis=2)
    some = np.ascontiguousarray(flags[where].T)
    run, most = (np.zeros(some.shape[1], dtype=np.float32) for _ in range(2))
    for half_hour in some:
        run = (run + 1) * half_hour
        np.maximum(most, run, out=most)
    longest[where] = most
    return np.where(fleet.n_readings >= min_readings, longest, np.nan)


def _compare_with_habitual_run(run_length: FloatArray) -> FloatArray:
    """Logarithm of a run's length over the household's third longest of the nights before.

    So that a habit is none, nor yet a fault on two nights.
    """
    place = LEVEL_NIGHTS - HABITUAL_RUN_RANK
    before = np.partition(np.nan_to_num(rolling_windows(run_length, LEVEL_NIGHTS)), place, axis=-1)
    return np.log((run_length + RUN_LENGTH_OFFSET) / (before[:, :, place] + RUN_LENGTH_OFFSET))


def _rolling_median_and_mad(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Median and median deviation of the nights before `[H, D]`; NaN with less than a week."""
    windows = rolling_windows(values, LEVEL_NIGHTS)
    median, mad = median_and_mad(windows)
    return np.where(np.isfinite(windows).sum(axis=-1) >= MIN_HISTORY_NIGHTS, median, np.nan), mad


def _compute_robust_z_scores(values: FloatArray) -> FloatArray:
    """Distance of logarithms from the household's median in robust deviations."""
    median, mad = _rolling_median_and_mad(values)
    return (values - median) / (1.4826 * mad + MIN_LOG_SPREAD)


def _apply_by_household_batch(
    fleet: Fleet, min_readings: int, rule: Callable[[FloatArray], FloatArray]
) -> FloatArray:
    """A rule over logarithms of readings in level units `[h, D, 48]`, some households at a time."""
    level = usual_levels_kwh(fleet, min_readings)[:, :, None]
    x = np.log(fleet.kwh / level + np.float32(LEVEL_LOG_OFFSET))
    x[fleet.n_readings < min_readings] = np.nan
    return np.concatenate(
        [
            rule(x[start : start + HOUSEHOLDS_PER_BATCH])
            for start in range(0, len(x), HOUSEHOLDS_PER_BATCH)
        ]
    )


def _mean_absolute_z_score(log_readings: FloatArray) -> FloatArray:
    """Mean over half-hours of |z| `[h, D]`."""
    homes, nights, half_hours = log_readings.shape
    z = np.abs(_compute_robust_z_scores(log_readings.transpose(0, 2, 1).reshape(-1, nights)))
    z = z.reshape(homes, half_hours, nights)
    count = np.isfinite(z).sum(axis=1)
    total = np.nansum(z, axis=1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _compute_neighbor_distance(log_readings: FloatArray) -> FloatArray:
    """Distance to the third nearest night `[h, D]`; half-hours that either lacks are left out."""
    distances = np.full((*log_readings.shape[:2], LEVEL_NIGHTS), np.nan)
    for ago in range(1, min(LEVEL_NIGHTS, log_readings.shape[1] - 1) + 1):
        square = (log_readings[:, ago:] - log_readings[:, :-ago]) ** 2
        count = np.isfinite(square).sum(axis=2)
        mean = np.nansum(square, axis=2) / np.maximum(count, 1)
        distances[:, ago:, ago - 1] = np.where(count > 0, np.sqrt(mean), np.nan)
    enough = np.isfinite(distances).sum(axis=2) >= MIN_HISTORY_NIGHTS
    return np.where(enough, np.sort(distances, axis=2)[:, :, NEIGHBOR_RANK - 1], np.nan)
