"""Detectors without training: a night against the 28 nights before it of the same household.

Each rule returns `[H, D]`, higher where a night is more unusual, NaN where it has too few readings
or less than a week before it. They are fused by the maximum of their surprisals, which beat every
published detector that was tried, and their sum (docs/detector.md).
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
"""Nights before a night that a rule needs. A week serves a rule on daily kWh as well as 60 nights
(docs/detector.md)."""
NEIGHBOR_RANK: Final = 3
"""The distance to the n-th nearest night counts: the nearest alone may be a chance. Chosen."""
MIN_LOG_SPREAD: Final = 0.1
"""Added to the spread of a logarithm before dividing by it: 10 %, about the resolution of a small
reading, is no deviation. Chosen."""
DAILY_LOG_OFFSET_KWH: Final = 0.1
"""Added to a day's kWh before its logarithm, so that an empty day has one. Chosen."""
DISTANCE_LOG_OFFSET: Final = 0.01
"""Added to a distance in log units before its own logarithm, so that 0 has one. Chosen."""
LEVEL_LOG_OFFSET: Final = 0.05
"""Added to a reading in units of the level before its logarithm: half-hours below 5 % of the level
differ little. Chosen."""
HOUSEHOLDS_PER_BATCH: Final = 16
"""Households at once: their distances to 28 nights take 28 times the memory of their readings."""


def compute_daily_z_scores(fleet: Fleet, min_readings: int) -> FloatArray:
    """Return the absolute robust z `[H, D]` of the logarithm of the day's kWh.

    A day with missing half-hours is scaled up to 48. Two-sided: a fall is as unusual as a rise.
    """
    daily_kwh = np.nansum(fleet.kwh, axis=2) * HALF_HOURS / np.maximum(fleet.n_readings, 1)
    is_usable = fleet.n_readings >= min_readings
    log_daily = np.where(is_usable, np.log(daily_kwh + DAILY_LOG_OFFSET_KWH), np.nan)
    return np.abs(_compute_robust_z_scores(log_daily))


def compute_half_hour_z_scores(fleet: Fleet, min_readings: int) -> FloatArray:
    """Return how unusual for the household the night's mean absolute half-hour z is, `[H, D]`.

    Each half-hour is compared with the same half-hour of the nights before; the mean over the 48
    is then compared with that household's own means, since some households always vary.
    """
    mean_z = _apply_by_household_batch(fleet, min_readings, _mean_absolute_z_score)
    return _compute_robust_z_scores(np.log(mean_z + DISTANCE_LOG_OFFSET))


def compute_neighbor_z_scores(fleet: Fleet, min_readings: int) -> FloatArray:
    """Return how unusual for the household the distance to its nearest past nights is, `[H, D]`.

    The root mean square difference of log readings to the third nearest of the 28 nights before (k
    nearest neighbours, Ramaswamy et al. 2000).
    """
    distance = _apply_by_household_batch(fleet, min_readings, _compute_neighbor_distance)
    return _compute_robust_z_scores(np.log(distance + DISTANCE_LOG_OFFSET))


def compute_identical_run_ratio(fleet: Fleet, min_readings: int) -> FloatArray:
    """Return the longest run of identical readings over the household's usual one, `[H, D]`."""
    is_repeat = np.diff(fleet.kwh, axis=2) == 0
    run_length = find_longest_run(is_repeat, fleet, min_readings) + 1
    usual_length, _ = _rolling_median_and_mad(run_length)
    return run_length / usual_length


BASELINE_RULES: Final[dict[str, Callable[[Fleet, int], FloatArray]]] = {
    "daily_kwh": compute_daily_z_scores,
    "half_hours": compute_half_hour_z_scores,
    "nearest_days": compute_neighbor_z_scores,
    "identical_run": compute_identical_run_ratio,
}
"""Rules by the name of their row in the benchmark."""


def compute_empirical_surprisal(values: FloatArray, reference_values: FloatArray) -> FloatArray:
    """Return -log10 of the share of reference values at least as high, in the shape of `values`.

    The value itself is counted in, so that the share is never 0. NaN stays NaN, and NaN in the
    reference is left out.
    """
    reference = np.sort(reference_values[np.isfinite(reference_values)])
    n_above = len(reference) - np.searchsorted(reference, values, side="left")
    surprisal = np.log10((1 + len(reference)) / (1 + n_above))
    return np.where(np.isfinite(values), surprisal, np.nan)


def fuse_rules(fleet: Fleet, min_readings: int, pretest_nights: slice) -> FloatArray:
    """Return the maximum `[H, D]` of the rules' surprisals among the fleet's pretest nights."""
    scores = [rule(fleet, min_readings) for rule in BASELINE_RULES.values()]
    return np.fmax.reduce(
        [compute_empirical_surprisal(score, score[:, pretest_nights]) for score in scores]
    )


def _rolling_median_and_mad(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return median and MAD of the 28 values before each `[H, D]`; a median needs a week."""
    windows = rolling_windows(values, LEVEL_NIGHTS)
    median, mad = median_and_mad(windows)
    has_history = np.isfinite(windows).sum(axis=-1) >= MIN_HISTORY_NIGHTS
    return np.where(has_history, median, np.nan), mad


def _compute_robust_z_scores(log_values: FloatArray) -> FloatArray:
    """Return the distance of logarithms `[H, D]` from the past median, in robust deviations."""
    median, mad = _rolling_median_and_mad(log_values)
    return (log_values - median) / (MAD_TO_STANDARD_DEVIATION * mad + MIN_LOG_SPREAD)


def _apply_by_household_batch(
    fleet: Fleet, min_readings: int, rule: Callable[[FloatArray], FloatArray]
) -> FloatArray:
    """Apply a rule to the logarithms of readings in level units, some households at a time."""
    level_kwh = usual_levels_kwh(fleet, min_readings)[:, :, None]
    log_readings = np.log(fleet.kwh / level_kwh + np.float32(LEVEL_LOG_OFFSET))
    log_readings[fleet.n_readings < min_readings] = np.nan
    return np.concatenate(
        [
            rule(log_readings[start : start + HOUSEHOLDS_PER_BATCH])
            for start in range(0, len(log_readings), HOUSEHOLDS_PER_BATCH)
        ]
    )


def _mean_absolute_z_score(log_readings: FloatArray) -> FloatArray:
    """Return the mean `[h, D]` over half-hours of the absolute z of `[h, D, 48]`."""
    n_households, n_nights, n_half_hours = log_readings.shape
    # Every half-hour becomes a row of nights, as if it were a household.
    by_half_hour = log_readings.transpose(0, 2, 1).reshape(-1, n_nights)
    z = np.abs(_compute_robust_z_scores(by_half_hour))
    z = z.reshape(n_households, n_half_hours, n_nights)
    count = np.isfinite(z).sum(axis=1)
    total = np.nansum(z, axis=1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _compute_neighbor_distance(log_readings: FloatArray) -> FloatArray:
    """Return the distance `[h, D]` to the third nearest past night, over half-hours of both."""
    distances = np.full((*log_readings.shape[:2], LEVEL_NIGHTS), np.nan)
    for nights_ago in range(1, min(LEVEL_NIGHTS, log_readings.shape[1] - 1) + 1):
        square = (log_readings[:, nights_ago:] - log_readings[:, :-nights_ago]) ** 2
        count = np.isfinite(square).sum(axis=2)
        mean = np.nansum(square, axis=2) / np.maximum(count, 1)
        distances[:, nights_ago:, nights_ago - 1] = np.where(count > 0, np.sqrt(mean), np.nan)
    has_history = np.isfinite(distances).sum(axis=2) >= MIN_HISTORY_NIGHTS
    nearest = np.sort(distances, axis=2)[:, :, NEIGHBOR_RANK - 1]
    return np.where(has_history, nearest, np.nan)
