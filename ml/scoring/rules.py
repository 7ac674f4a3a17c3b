"""The two rules that join the network: unusually long runs of repeated and of zero readings.

Real readings almost never repeat, so a stuck or a dead meter is told by its runs
(docs/detector.md, section 4).
"""

import numpy as np

from ml.arrays import BoolArray, FloatArray, find_longest_runs, rolling_windows
from ml.fleet import Fleet
from ml.scoring.config import RuleConfig


def longest_repeated_run(fleet: Fleet, min_readings: int, config: RuleConfig) -> FloatArray:
    """Return how long one reading other than zero repeats on a night, against the habit.

    `[H, D]`, the logarithm of the longest run over the household's third longest of the 28 nights
    before, both counted in repeats (readings of the run less one) plus 2; NaN with fewer than
    `min_readings`.
    """
    is_repeat = np.diff(fleet.kwh, axis=2) == 0
    is_repeat &= fleet.kwh[:, :, 1:] > config.zero_kwh
    return _compare_with_habit(find_longest_run(is_repeat, fleet, min_readings), config)


def longest_zero_run(fleet: Fleet, min_readings: int, config: RuleConfig) -> FloatArray:
    """Return how long nothing is consumed on a night, against the habit.

    `[H, D]`, as `longest_repeated_run`, with runs counted in half-hours.
    """
    is_zero = fleet.kwh <= config.zero_kwh
    return _compare_with_habit(find_longest_run(is_zero, fleet, min_readings), config)


def find_longest_run(flags: BoolArray, fleet: Fleet, min_readings: int) -> FloatArray:
    """Return the length `[H, D]`, in half-hours, of each night's longest run of true flags.

    `flags` `[H, D, T]`; NaN for nights with fewer than `min_readings`.
    """
    # In single: the runs of a whole fleet over months are held at once.
    longest = find_longest_runs(flags).astype(np.float32)
    return np.where(fleet.n_readings >= min_readings, longest, np.nan)


def _compare_with_habit(longest: FloatArray, config: RuleConfig) -> FloatArray:
    """Return the logarithm of runs `[H, D]` over the household's n-th longest before."""
    place = config.habit_nights - config.habit_rank
    before = np.nan_to_num(rolling_windows(longest, config.habit_nights))
    habit = np.partition(before, place, axis=-1)[:, :, place]
    return np.log((longest + config.run_offset) / (habit + config.run_offset))
