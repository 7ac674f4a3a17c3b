"""Name the kind of an anomaly, and find the half-hours that show it.

A reason is a rule about a night, its expected profile and the household's own nights before. The
rules of `REASON_RULES` are asked in order and the first that holds names the night. Numbers in the
docstrings of rules are the defaults of `ReasonConfig`.

To add a reason: its name in `ANOMALY_REASONS` (`ml/schemas.py`), a rule with its place in the list
here, its numbers in `ReasonConfig`, and a night that shows it in
`tests/ml/explain/test_reasons.py`; see `docs/how-to/add-a-reason.md`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import polars as pl
from scipy.ndimage import uniform_filter1d

from ml.arrays import (
    BoolArray,
    FloatArray,
    IntArray,
    compute_run_lengths,
    find_longest_runs,
)
from ml.explain.config import DEFAULT_REASON_CONFIG, ReasonConfig
from ml.limits import MIN_READINGS
from ml.schemas import HALF_HOURS, array_as_readings

HALF_HOUR_INDEX: Final = np.arange(HALF_HOURS)
HALF_HOUR_MINUTES: Final = 30


def explain_anomalies(
    flagged: pl.DataFrame,
    actual_kwh: FloatArray,
    expected_kwh: FloatArray,
    half_hour_scores: FloatArray,
    context_kwh: FloatArray | None = None,
    *,
    min_readings: int = MIN_READINGS,
    config: ReasonConfig = DEFAULT_REASON_CONFIG,
) -> pl.DataFrame:
    """Return flagged household-nights with their profiles, reason, span and excess energy.

    Adds to the N rows of `flagged` the lists `actual_kwh`, `expected_kwh` and `half_hour_score` (48
    each, null where missing; the first two replace the night's sums), `excess_kwh`, `reason`, and
    `start_utc` and `end_utc`, the span of half-hours that shows the reason.

    Args:
        flagged: One row a household-night, with `night`, `actual_kwh` and `expected_kwh`.
        actual_kwh: Readings `[N, 48]`, NaN where missing.
        expected_kwh: Expected profiles `[N, 48]`, without NaN.
        half_hour_scores: How far each half-hour deviates `[N, 48]`; above
            `config.min_half_hour_score` it shows the anomaly. NaN where missing.
        context_kwh: The household's nights before `[N, K, 48]` (`select_context_nights`), NaN where
            missing; without them the expected profile stands for what the household usually does.
        min_readings: Readings that a context night needs to be used.
        config: Numbers of the rules.
    """
    nights = FlaggedNights.from_profiles(
        actual_kwh, expected_kwh, context_kwh, min_readings, config
    )
    rule_index = _find_first_rule(nights)
    half_hour_scores_of_reason = _score_half_hours_by_rule(nights, rule_index, half_hour_scores)
    start, end = find_deviating_spans(half_hour_scores_of_reason, config.min_half_hour_score)
    midnight = pl.col("night").cast(pl.Datetime("us"))
    half_hour = pl.duration(minutes=HALF_HOUR_MINUTES)
    return flagged.drop("actual_kwh", "expected_kwh").with_columns(
        actual_kwh=array_as_readings(actual_kwh).arr.to_list(),
        expected_kwh=array_as_readings(expected_kwh).arr.to_list(),
        half_hour_score=array_as_readings(half_hour_scores).arr.to_list(),
        excess_kwh=pl.Series(np.nansum(actual_kwh - expected_kwh, axis=1)).cast(pl.Float32),
        reason=pl.Series(_name_rules(rule_index), dtype=pl.String),
        start_utc=midnight + pl.Series(start).cast(pl.Int64) * half_hour,
        end_utc=midnight + pl.Series(end).cast(pl.Int64) * half_hour,
    )


def classify_reasons(
    actual_kwh: FloatArray,
    expected_kwh: FloatArray,
    context_kwh: FloatArray | None = None,
    *,
    min_readings: int = MIN_READINGS,
    config: ReasonConfig = DEFAULT_REASON_CONFIG,
) -> list[str]:
    """Return the reason of each household-night; arguments as those of `explain_anomalies`."""
    nights = FlaggedNights.from_profiles(
        actual_kwh, expected_kwh, context_kwh, min_readings, config
    )
    return _name_rules(_find_first_rule(nights))


def select_context_nights(
    kwh: FloatArray,
    household_indices: IntArray,
    night_indices: IntArray,
    config: ReasonConfig = DEFAULT_REASON_CONFIG,
) -> FloatArray:
    """Return the context nights of N household-nights of a fleet, oldest first.

    `kwh` `[H, D, 48]` and the places of the household-nights `[N]` in it give `[N, K, 48]`, K being
    `config.context_nights`; NaN before the fleet's first night.
    """
    before = night_indices[:, None] - np.arange(config.context_nights, 0, -1)
    # A negative index would take nights from the fleet's end: clipped here, set to NaN below.
    context = kwh[household_indices[:, None], np.maximum(before, 0)]
    return np.where(before[:, :, None] >= 0, context, np.nan)


def find_deviating_spans(
    half_hour_scores: FloatArray, min_half_hour_score: float
) -> tuple[IntArray, IntArray]:
    """Return the span of half-hours `start <= i < end` that deviates most as one block, `[N]` each.

    The segment with the greatest sum of scores `[N, 48]` less `min_half_hour_score`; a missing
    half-hour counts as a score of 0. The maximum-sum segment of Bentley (1984, "Programming pearls:
    algorithm design techniques"), for all nights at once: the sum of a segment is a difference of
    two running totals, so the best end is where the total lies highest above its lowest value so
    far, and the best start is where that lowest value was.
    """
    gain = np.nan_to_num(half_hour_scores, nan=0.0) - min_half_hour_score
    # total[:, i] is the sum of the half-hours before i, so that total[:, end] - total[:, start] is
    # the sum of a segment that includes start and excludes end.
    total = np.cumsum(np.pad(gain, ((0, 0), (1, 0))), axis=1)
    lowest_so_far = np.minimum.accumulate(total[:, :-1], axis=1)
    last = np.argmax(total[:, 1:] - lowest_so_far, axis=1)
    is_up_to_last = np.arange(half_hour_scores.shape[1])[None] <= last[:, None]
    start = np.argmin(np.where(is_up_to_last, total[:, :-1], np.inf), axis=1)
    return start, last + 1


@dataclass(frozen=True)
class FlaggedNights:
    """Flagged household-nights and the quantities that several rules ask for."""

    actual_kwh: FloatArray
    """Readings `[N, 48]`, NaN where missing."""
    expected_kwh: FloatArray
    """Expected profiles `[N, 48]`."""
    context_kwh: FloatArray
    """Profiles of the nights before `[N, K, 48]`; a missing half-hour is the expected one."""
    config: ReasonConfig
    """Numbers of the rules."""

    @classmethod
    def from_profiles(
        cls,
        actual_kwh: FloatArray,
        expected_kwh: FloatArray,
        context_kwh: FloatArray | None,
        min_readings: int,
        config: ReasonConfig,
    ) -> "FlaggedNights":
        """Return the nights in double, their missing context filled with the expected profile.

        A context night with fewer than `min_readings` is missing as a whole: a few readings say
        nothing of its peak or its runs.
        """
        # In double: a misfit of `is_shifted` is a small difference of large sums, off in single by
        # up to 0.7 % (measured), and by another amount with other nights flagged beside it.
        actual_kwh = actual_kwh.astype(np.float64)
        expected_kwh = expected_kwh.astype(np.float64)
        if context_kwh is None:
            return cls(actual_kwh, expected_kwh, expected_kwh[:, None], config)
        is_usable = np.isfinite(context_kwh)
        is_usable &= is_usable.sum(axis=2, keepdims=True) >= min_readings
        filled_kwh = np.where(is_usable, context_kwh, expected_kwh[:, None])
        return cls(actual_kwh, expected_kwh, filled_kwh, config)

    @cached_property
    def excess_kwh(self) -> FloatArray:
        """Actual less expected kWh of each half-hour `[N, 48]`, 0 where missing."""
        return np.nan_to_num(self.actual_kwh - self.expected_kwh)

    @cached_property
    def expected_day_kwh(self) -> FloatArray:
        """Expected energy of the day `[N]`, above 0."""
        return np.maximum(self.expected_kwh.sum(axis=1), self.config.min_expected_kwh)

    @cached_property
    def actual_day_kwh(self) -> FloatArray:
        """Energy of the day `[N]`; a missing half-hour counts as expected."""
        return self.expected_day_kwh + self.excess_kwh.sum(axis=1)

    @cached_property
    def peak_kwh(self) -> FloatArray:
        """Highest reading `[N]`."""
        return np.nan_to_num(self.actual_kwh).max(axis=1)

    @cached_property
    def context_peak_kwh(self) -> FloatArray:
        """Highest reading of each context night `[N, K]`."""
        return self.context_kwh.max(axis=2)

    @cached_property
    def zero_run_lengths(self) -> IntArray:
        """Length of the run without consumption that each half-hour `[N, 48]` belongs to."""
        return compute_run_lengths(self.actual_kwh <= self.config.outage_max_kwh)

    @cached_property
    def repeat_run_lengths(self) -> IntArray:
        """Length of the run of one reading, other than zero, that each half-hour belongs to."""
        is_repeat = _repeats_previous_reading(self.actual_kwh)
        is_repeat &= self.actual_kwh > self.config.outage_max_kwh
        lengths = compute_run_lengths(is_repeat)
        # The first reading of a run repeats nothing itself: it takes the length of its successor,
        # and every run is one longer than its repeats.
        lengths = np.maximum(lengths, np.pad(lengths[:, 1:], ((0, 0), (0, 1))))
        return lengths + (lengths > 0)

    @cached_property
    def is_above_usual_peak(self) -> BoolArray:
        """Half-hours `[N, 48]` far above the household's usual high peak."""
        usual_peak = np.quantile(self.context_peak_kwh, self.config.spike_peak_quantile, axis=1)
        usual_peak = np.maximum(usual_peak, self.expected_kwh.max(axis=1))
        return np.asarray(self.actual_kwh > self.config.spike_min_peak_ratio * usual_peak[:, None])


def is_outage(nights: FlaggedNights) -> BoolArray:
    """Return the nights on which consumption stops while 5 % of the day's energy was expected.

    It stops for 2 hours or more, and for 1.5 hours longer than it does on the median context night.
    """
    config = nights.config
    is_zero_in_context = nights.context_kwh <= config.outage_max_kwh
    usual_run = np.median(find_longest_runs(is_zero_in_context), axis=1)
    min_run = np.maximum(
        config.outage_min_half_hours, usual_run + config.outage_min_extra_half_hours
    )
    is_dead = nights.zero_run_lengths >= min_run[:, None]
    lost_kwh = np.where(is_dead, -nights.excess_kwh, 0.0).sum(axis=1)
    return np.asarray(lost_kwh > config.outage_min_lost_share * nights.expected_day_kwh)


def is_capped(nights: FlaggedNights) -> BoolArray:
    """Return the nights whose highest reading recurs, below 80 % of the household's usual peak.

    A limited supply reads its limit whenever more is asked for: three times or more, not all day,
    and no other reading repeats longer. One single run of 5 hours or more is a stuck meter instead,
    unless the day is far below what was expected.
    """
    config = nights.config
    is_at_peak = nights.actual_kwh == nights.peak_kwh[:, None]
    n_at_peak = is_at_peak.sum(axis=1)
    longest_at_peak = find_longest_runs(is_at_peak)
    n_readings = np.isfinite(nights.actual_kwh).sum(axis=1)
    recurs = (n_at_peak >= config.capped_min_readings) & (n_at_peak < n_readings)
    is_not_one_stuck_run = (
        (n_at_peak > longest_at_peak)
        | (longest_at_peak < config.stuck_min_half_hours)
        | is_drop(nights)
    )
    is_longest_run = longest_at_peak >= nights.repeat_run_lengths.max(axis=1)
    usual_peak_kwh = np.median(nights.context_peak_kwh, axis=1)
    is_below_peak = nights.peak_kwh < config.capped_max_peak_ratio * usual_peak_kwh
    return np.asarray(recurs & is_not_one_stuck_run & is_longest_run & is_below_peak)


def is_stuck(nights: FlaggedNights) -> BoolArray:
    """Return the nights on which one reading other than zero repeats for 5 hours or more.

    The run is also three times as long as the longest of the median context night.
    """
    config = nights.config
    is_repeat_in_context = _repeats_previous_reading(nights.context_kwh)
    # A run is one longer than its repeats, as in `repeat_run_lengths`.
    usual_run = 1 + np.median(find_longest_runs(is_repeat_in_context), axis=1)
    min_run = np.maximum(config.stuck_min_half_hours, config.stuck_min_run_ratio * usual_run)
    return np.asarray(nights.repeat_run_lengths.max(axis=1) >= min_run)


def is_spike(nights: FlaggedNights) -> BoolArray:
    """Return the nights on which a few half-hours tower above the household's usual high peak.

    They exceed it by 30 %, for at most 1.5 hours at a time, and their excess is larger than the
    rest of the day's change and than 10 % of the expected energy.
    """
    config = nights.config
    longest = find_longest_runs(nights.is_above_usual_peak)
    spike_kwh = np.where(nights.is_above_usual_peak, nights.excess_kwh, 0.0).sum(axis=1)
    rest_kwh = np.abs(nights.excess_kwh.sum(axis=1) - spike_kwh)
    outweighs_rest = spike_kwh > np.maximum(
        rest_kwh, config.spike_min_excess_share * nights.expected_day_kwh
    )
    is_short = (longest > 0) & (longest <= config.spike_max_half_hours)
    return np.asarray(is_short & outweighs_rest)


def is_night_load(nights: FlaggedNights) -> BoolArray:
    """Return the nights whose excess lies nearly all between 22:00 and 07:00 UTC.

    The night's excess is more than 15 % of the day's expected energy, more than twice the size of
    the excess by day, and more than four times what is missing in all half-hours together.
    """
    config = nights.config
    # Modulo a day: the night contains midnight, so its end is before its start.
    half_hours_into_night = (HALF_HOUR_INDEX - config.night_load_start_half_hour) % HALF_HOURS
    night_half_hours = (
        config.night_load_end_half_hour - config.night_load_start_half_hour
    ) % HALF_HOURS
    is_night = half_hours_into_night < night_half_hours
    night_kwh = nights.excess_kwh[:, is_night].sum(axis=1)
    rest_kwh = np.abs(nights.excess_kwh[:, ~is_night].sum(axis=1))
    deficit_kwh = np.maximum(-nights.excess_kwh, 0.0).sum(axis=1)
    is_nearly_all = night_kwh > np.maximum(
        config.night_load_min_rest_ratio * rest_kwh,
        config.night_load_min_deficit_ratio * deficit_kwh,
    )
    is_large = night_kwh > config.night_load_min_excess_share * nights.expected_day_kwh
    return np.asarray(is_nearly_all & is_large)


def is_shifted(nights: FlaggedNights) -> BoolArray:
    """Return the nights that are the usual day turned by 1.5 hours or more, or backwards.

    Profiles are compared as logarithms of kWh over the household's level, smoothed over 2.5 hours,
    by their misfit: the sum of squared differences from the median context night, each over its
    variance among the context nights. As it stands, the day misfits more than 2.5 times as much as
    context nights do, and more than twice as much as its best turn, which misfits less than 2.5
    times as much as they do.
    """
    config = nights.config
    # Over the level and as logarithms, so that a misfit means the same in small households as in
    # large ones and one tall peak does not decide it alone.
    level_kwh = np.maximum(nights.context_kwh.mean(axis=(1, 2)), config.shift_min_level_kwh)
    level_kwh = level_kwh[:, None]
    context = _smooth_log_profiles(nights.context_kwh / level_kwh[:, :, None], config)
    usual = np.median(context, axis=1)
    squared_mad = np.median(np.abs(context - usual[:, None]), axis=1) ** 2
    # Half-hours in which the household does something else every night count for less.
    weight = 1 / (
        config.shift_own_variance_weight * squared_mad
        + config.shift_mean_variance_weight * squared_mad.mean(axis=1, keepdims=True)
        + config.shift_min_variance
    )
    filled_kwh = np.where(np.isfinite(nights.actual_kwh), nights.actual_kwh, nights.expected_kwh)
    actual = _smooth_log_profiles(filled_kwh / level_kwh, config)
    orders = _build_shift_orders(config)
    # The first order is the day as it stands.
    misfits = _compute_shift_misfits(actual[:, None], usual, weight, orders)[:, 0]
    context_misfits = _compute_shift_misfits(context, usual, weight, orders)[:, :, 0]
    usual_misfit = np.maximum(np.median(context_misfits, axis=1), config.shift_min_usual_misfit)
    # The limit is the household's own: what its context nights misfit by is ordinary for it.
    limit = config.shift_max_misfit_ratio * usual_misfit
    misfit_as_it_stands = misfits[:, 0]
    best_misfit = misfits.min(axis=1)
    return np.asarray(
        (best_misfit < limit)
        & (misfit_as_it_stands > np.maximum(limit, config.shift_min_misfit_ratio * best_misfit))
    )


def is_rise(nights: FlaggedNights) -> BoolArray:
    """Return the nights on which the day's energy is more than 1.35 times the expected one."""
    return np.asarray(
        nights.actual_day_kwh > nights.config.level_change_ratio * nights.expected_day_kwh
    )


def is_drop(nights: FlaggedNights) -> BoolArray:
    """Return the nights on which the day's energy is less than 1 / 1.35 of the expected one."""
    return np.asarray(
        nights.config.level_change_ratio * nights.actual_day_kwh < nights.expected_day_kwh
    )


def is_any(nights: FlaggedNights) -> BoolArray:
    """Return every night: what no rule before has named changed in shape alone."""
    return np.ones(len(nights.actual_kwh), dtype=np.bool_)


@dataclass(frozen=True)
class ReasonRule:
    """A reason, and the rule that gives it."""

    reason: str
    """One of `ANOMALY_REASONS`."""
    holds: Callable[[FlaggedNights], BoolArray]
    """Nights `[N]` that the rule holds for."""
    shows: Callable[[FlaggedNights], BoolArray] | None = None
    """Half-hours `[N, 48]` that meet the rule and make its span; without it, the half-hours that
    the detector scores highest do."""


REASON_RULES: Final = (
    ReasonRule(
        "outage",
        is_outage,
        lambda nights: nights.zero_run_lengths >= nights.config.outage_min_half_hours,
    ),
    # A capped day repeats its limit and has less energy: before stuck and drop, to be told from a
    # stuck meter.
    ReasonRule("drop", is_capped),
    ReasonRule(
        "stuck",
        is_stuck,
        lambda nights: nights.repeat_run_lengths >= nights.config.stuck_min_half_hours,
    ),
    # A spike, a night load and a shifted day may change the day's energy too: the more precise
    # reason comes first.
    ReasonRule("spike", is_spike, lambda nights: nights.is_above_usual_peak),
    ReasonRule("night_load", is_night_load),
    ReasonRule("shifted", is_shifted),
    ReasonRule("rise", is_rise),
    ReasonRule("drop", is_drop),
    ReasonRule("unusual_shape", is_any),
)
"""The rules in the order in which they are asked; the last holds for every night."""


def _find_first_rule(nights: FlaggedNights) -> IntArray:
    """Return the place in `REASON_RULES` of the first rule that holds for each night `[N]`."""
    holds = np.stack([rule.holds(nights) for rule in REASON_RULES])
    return np.argmax(holds, axis=0)


def _name_rules(rule_index: IntArray) -> list[str]:
    return [REASON_RULES[index].reason for index in rule_index.tolist()]


def _score_half_hours_by_rule(
    nights: FlaggedNights, rule_index: IntArray, half_hour_scores: FloatArray
) -> FloatArray:
    """Return half-hour scores `[N, 48]`, replaced where the rule has half-hours of its own."""
    # Twice the least score that shows an anomaly: a half-hour of the rule gains a span as much as
    # another one costs it, so that two runs join only across a shorter gap.
    score_of_shown = 2.0 * nights.config.min_half_hour_score
    scores = half_hour_scores.astype(np.float64)
    for index, rule in enumerate(REASON_RULES):
        if rule.shows is not None:
            is_of_rule = (rule_index == index)[:, None]
            scores = np.where(is_of_rule, score_of_shown * rule.shows(nights), scores)
    return scores


def _repeats_previous_reading(kwh: FloatArray) -> BoolArray:
    """Return which half-hours `[..., 48]` read exactly as the one before; the first never does."""
    return np.asarray(np.diff(kwh, axis=-1, prepend=np.nan) == 0)


def _smooth_log_profiles(level_profiles: FloatArray, config: ReasonConfig) -> FloatArray:
    """Return log(1 + x) of profiles `[..., 48]` in units of the level, smoothed across midnight."""
    smooth = uniform_filter1d(level_profiles, config.smoothing_half_hours, axis=-1, mode="wrap")
    return np.log1p(smooth)


def _build_shift_orders(config: ReasonConfig) -> IntArray:
    """Return the half-hours of the day as it stands, backwards, and in every turn `[V, 48]`."""
    # A turn by 45 half-hours later is one by 3 earlier: the range covers both directions.
    lags = range(config.shift_min_half_hours, HALF_HOURS - config.shift_min_half_hours + 1)
    turns = [np.roll(HALF_HOUR_INDEX, lag) for lag in lags]
    return np.stack([HALF_HOUR_INDEX, HALF_HOUR_INDEX[::-1], *turns])


def _compute_shift_misfits(
    profiles: FloatArray, usual_profile: FloatArray, weight: FloatArray, orders: IntArray
) -> FloatArray:
    """Return weighted squared differences `[N, K, V]` between profiles and turns of the usual one.

    `profiles` `[N, K, 48]`; `usual_profile` and `weight` `[N, 48]` are turned together by each of
    the `orders` `[V, 48]`.
    """
    # sum w (p - u)^2 = sum w p^2 - 2 sum w u p + sum w u^2: two matrix products and a constant that
    # no turn changes, instead of an array of [N, K, V, 48] (0.7 MB a night).
    weights = weight[:, orders]
    weighted_usual = (weight * usual_profile)[:, orders]
    constant = (weight * usual_profile**2).sum(axis=1)[:, None, None]
    squares = np.matmul(profiles**2, weights.transpose(0, 2, 1))
    return squares - 2 * np.matmul(profiles, weighted_usual.transpose(0, 2, 1)) + constant
