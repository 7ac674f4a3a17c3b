"""What kind of anomaly it is, and which half-hours show it.

Every rule is one sentence about the night, the profile that was expected and the household's own
nights before; the first that holds names the night.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from ml.arrays import FloatArray
from ml.schemas import HALF_HOURS

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int_]

CONTEXT_NIGHTS: Final = 42
OUTAGE_MAX_KWH: Final = 0.002
OUTAGE_MIN_HALF_HOURS: Final = 4
OUTAGE_MIN_LOST_SHARE: Final = 0.05
STUCK_MIN_HALF_HOURS: Final = 10
STUCK_MIN_RUN_RATIO: Final = 3
CAPPED_MIN_READINGS: Final = 3
CAPPED_MAX_PEAK_RATIO: Final = 0.8
SPIKE_MIN_PEAK_RATIO: Final = 1.3
SPIKE_MAX_HALF_HOURS: Final = 3
SPIKE_MIN_EXCESS_SHARE: Final = 0.1
HALF_HOUR_INDEX: Final = np.arange(HALF_HOURS)
NIGHT_LOAD_MASK: Final = np.isin(HALF_HOUR_INDEX, np.r_[0:14, 44:48])
"""22:00 to 07:00 UTC."""
NIGHT_LOAD_MIN_SHARE: Final = 0.15
LEVEL_CHANGE_RATIO: Final = 1.35
SHIFT_ORDERS: Final = np.stack(
    [
        HALF_HOUR_INDEX,
        HALF_HOUR_INDEX[::-1],
        *(np.roll(HALF_HOUR_INDEX, lag) for lag in range(3, 46)),
    ]
)
"""The day as it is, backwards, and turned by 1.5 hours or more either way; `[V, 48]`."""
SHIFT_MIN_MISFIT_RATIO: Final = 2.0
SHIFT_MAX_MISFIT_RATIO: Final = 2.5
SMOOTHING_HALF_HOURS: Final = 5
MIN_LEVEL_KWH: Final = 0.02
MIN_READINGS: Final = 36


def explain_anomalies(
    flagged: pl.DataFrame,
    actual_kwh: FloatArray,
    expected_kwh: FloatArray,
    half_hour_scores: FloatArray,
    context_kwh: FloatArray | None = None,
) -> pl.DataFrame:
    """Add to flagged household-nights their profiles `[N, 48]`, reason, span and excess energy.

    `half_hour` is how far each half-hour deviates: above 1 it shows the anomaly. `past` are the
    household's nights before `[N, K, 48]` (`past_nights`), NaN where missing; without them the
    rules know the expected profile alone.
    """
    nights = FlaggedNights.from_profiles(actual_kwh, expected_kwh, context_kwh)
    reason = nights.classify()
    start, end = find_deviating_spans(_score_reason_half_hours(nights, reason, half_hour_scores))
    midnight = pl.col("night").cast(pl.Datetime("us"))
    return flagged.drop("actual_kwh", "expected_kwh").with_columns(
        actual_kwh=_to_profile_lists(actual_kwh),
        expected_kwh=_to_profile_lists(expected_kwh),
        half_hour_score=_to_profile_lists(half_hour_scores),
        excess_kwh=pl.Series(np.nansum(actual_kwh - expected_kwh, axis=1)).cast(pl.Float32),
        reason=pl.Series(reason, dtype=pl.String),
        start_utc=midnight + pl.Series(start * 30).cast(pl.Int64) * pl.duration(minutes=1),
        end_utc=midnight + pl.Series(end * 30).cast(pl.Int64) * pl.duration(minutes=1),
    )


def classify_reasons(
    actual_kwh: FloatArray, expected_kwh: FloatArray, context_kwh: FloatArray | None = None
) -> list[str]:
    """The kind of each household-night `[N, 48]`; arguments as those of `explain`."""
    return FlaggedNights.from_profiles(actual_kwh, expected_kwh, context_kwh).classify()


def select_context_nights(
    kwh: FloatArray, household_indices: IntArray, night_indices: IntArray
) -> FloatArray:
    """The `USUAL_NIGHTS` before each of these places in `[H, D, 48]`, as `explain` wants them."""
    before = night_indices[:, None] - np.arange(CONTEXT_NIGHTS, 0, -1)
    past = kwh[household_indices[:, None], np.maximum(before, 0)]
    return np.where(before[:, :, None] >= 0, past, np.nan)


def find_deviating_spans(half_hour_scores: FloatArray) -> tuple[IntArray, IntArray]:
    """The half-hours `start <= i < end` that deviate most as one block, `[N]` each.

    The segment with the greatest sum of how far each is above 1 (Bentley 1984).
    """
    gain = np.nan_to_num(half_hour_scores, nan=0.0) - 1.0
    total = np.cumsum(np.pad(gain, ((0, 0), (1, 0))), axis=1)
    lowest = np.minimum.accumulate(total[:, :-1], axis=1)
    end = np.argmax(total[:, 1:] - lowest, axis=1)
    upto = np.arange(half_hour_scores.shape[1])[None] <= end[:, None]
    start = np.argmin(np.where(upto, total[:, :-1], np.inf), axis=1)
    return start, end + 1


@dataclass(frozen=True)
class FlaggedNights:
    """Flagged household-nights; a missing half-hour of the past stands at what is expected."""

    actual_kwh: FloatArray
    """`[N, 48]` kWh, NaN where missing."""
    expected_kwh: FloatArray
    """`[N, 48]` kWh."""
    context_kwh: FloatArray
    """`[N, K, 48]` kWh of the nights before, none missing."""

    @classmethod
    def from_profiles(
        cls, actual_kwh: FloatArray, expected_kwh: FloatArray, context_kwh: FloatArray | None
    ) -> "FlaggedNights":
        """Fill the gaps of the past; a night of it with too few readings is all gap."""
        actual_kwh, expected_kwh = actual_kwh.astype(np.float64), expected_kwh.astype(np.float64)
        usual = expected_kwh[:, None]
        if context_kwh is None:
            return cls(actual_kwh, expected_kwh, usual)
        known = np.isfinite(context_kwh)
        known &= known.sum(axis=2, keepdims=True) >= MIN_READINGS
        return cls(actual_kwh, expected_kwh, np.where(known, context_kwh, usual))

    def classify(self) -> list[str]:
        """The first kind whose rule holds."""
        rules = [
            ("outage", self.is_outage()),
            ("drop", self.is_capped()),
            ("stuck", self.is_stuck()),
            ("spike", self.is_spike()),
            ("night_load", self.is_night_load()),
            ("shifted", self.is_shifted()),
            ("rise", self.is_above_expected),
            ("drop", self.is_below_expected),
        ]
        names, holds = zip(*rules, strict=True)
        return np.select(list(holds), list(names), default="unusual_shape").tolist()

    @cached_property
    def excess_kwh(self) -> FloatArray:
        """Kilowatt-hours above what was expected `[N, 48]`, 0 where missing."""
        return np.nan_to_num(self.actual_kwh - self.expected_kwh)

    @cached_property
    def expected_day_kwh(self) -> FloatArray:
        """Of the day, `[N]`."""
        return np.maximum(self.expected_kwh.sum(axis=1), 1e-3)

    @cached_property
    def actual_day_kwh(self) -> FloatArray:
        """Of the day, `[N]`; a missing half-hour as expected."""
        return self.expected_day_kwh + self.excess_kwh.sum(axis=1)

    @cached_property
    def is_above_expected(self) -> BoolArray:
        """The day is far above what was expected."""
        return np.asarray(self.actual_day_kwh > LEVEL_CHANGE_RATIO * self.expected_day_kwh)

    @cached_property
    def is_below_expected(self) -> BoolArray:
        """The day is far below what was expected."""
        return np.asarray(LEVEL_CHANGE_RATIO * self.actual_day_kwh < self.expected_day_kwh)

    @cached_property
    def peak_kwh(self) -> FloatArray:
        """The highest reading `[N]`."""
        return np.nan_to_num(self.actual_kwh).max(axis=1)

    @cached_property
    def outage_run_lengths(self) -> IntArray:
        """Length of the run without consumption that each half-hour `[N, 48]` belongs to."""
        return compute_run_lengths(self.actual_kwh <= OUTAGE_MAX_KWH)

    @cached_property
    def stuck_run_lengths(self) -> IntArray:
        """Length of the run of one reading, not of nothing, that each half-hour belongs to."""
        lengths = compute_run_lengths(
            _repeats_previous_reading(self.actual_kwh) & (self.actual_kwh > OUTAGE_MAX_KWH)
        )
        lengths = np.maximum(lengths, np.pad(lengths[:, 1:], ((0, 0), (0, 1))))
        return lengths + (lengths > 0)

    @cached_property
    def is_above_usual_peaks(self) -> BoolArray:
        """Half-hours `[N, 48]` far above the household's usual peaks."""
        peak = np.quantile(self.context_kwh.max(axis=2), 0.9, axis=1)
        peak = np.maximum(peak, self.expected_kwh.max(axis=1))
        return np.asarray(self.actual_kwh > SPIKE_MIN_PEAK_RATIO * peak[:, None])

    def is_outage(self) -> BoolArray:
        """Consumption stops for longer than is usual, where some was expected."""
        usual = np.median(
            compute_run_lengths(self.context_kwh <= OUTAGE_MAX_KWH).max(axis=2), axis=1
        )
        dead = self.outage_run_lengths >= np.maximum(OUTAGE_MIN_HALF_HOURS, usual + 3)[:, None]
        lost = np.where(dead, -self.excess_kwh, 0.0).sum(axis=1)
        return np.asarray(lost > OUTAGE_MIN_LOST_SHARE * self.expected_day_kwh)

    def is_capped(self) -> BoolArray:
        """The highest reading comes back through the day and lies below the usual peak."""
        at_top = self.actual_kwh == self.peak_kwh[:, None]
        times, run = at_top.sum(axis=1), compute_run_lengths(at_top).max(axis=1)
        some = (times >= CAPPED_MIN_READINGS) & (times < np.isfinite(self.actual_kwh).sum(axis=1))
        returns = (times > run) | (run < STUCK_MIN_HALF_HOURS) | self.is_below_expected
        below = self.peak_kwh < CAPPED_MAX_PEAK_RATIO * np.median(
            self.context_kwh.max(axis=2), axis=1
        )
        return np.asarray(some & returns & (run >= self.stuck_run_lengths.max(axis=1)) & below)

    def is_stuck(self) -> BoolArray:
        """One reading repeats for hours, far longer than is usual for the household."""
        usual = 1 + np.median(
            compute_run_lengths(_repeats_previous_reading(self.context_kwh)).max(axis=2), axis=1
        )
        return np.asarray(
            self.stuck_run_lengths.max(axis=1)
            >= np.maximum(STUCK_MIN_HALF_HOURS, STUCK_MIN_RUN_RATIO * usual)
        )

    def is_spike(self) -> BoolArray:
        """A few half-hours tower above the usual peaks and outweigh what else has changed."""
        run = compute_run_lengths(self.is_above_usual_peaks).max(axis=1)
        spikes = np.where(self.is_above_usual_peaks, self.excess_kwh, 0.0).sum(axis=1)
        rest = np.abs(self.excess_kwh.sum(axis=1) - spikes)
        heavy = spikes > np.maximum(rest, SPIKE_MIN_EXCESS_SHARE * self.expected_day_kwh)
        return np.asarray((run > 0) & (run <= SPIKE_MAX_HALF_HOURS) & heavy)

    def is_night_load(self) -> BoolArray:
        """Nearly all of the surplus lies between 22:00 and 07:00."""
        night = self.excess_kwh[:, NIGHT_LOAD_MASK].sum(axis=1)
        rest = np.abs(self.excess_kwh[:, ~NIGHT_LOAD_MASK].sum(axis=1))
        deficit = np.maximum(-self.excess_kwh, 0.0).sum(axis=1)
        alone = night > np.maximum(2 * rest, 4 * deficit)
        return np.asarray(alone & (night > NIGHT_LOAD_MIN_SHARE * self.expected_day_kwh))

    def is_shifted(self) -> BoolArray:
        """Turned by some hours, or backwards, the day is the household's usual one."""
        level = np.maximum(self.context_kwh.mean(axis=(1, 2)), MIN_LEVEL_KWH)[:, None]
        past = _smooth_log_profiles(self.context_kwh / level[:, :, None])
        usual = np.median(past, axis=1)
        spread = np.median(np.abs(past - usual[:, None]), axis=1) ** 2
        weight = 1 / (2 * spread + 0.5 * spread.mean(axis=1, keepdims=True) + 0.0025)
        filled = np.where(np.isfinite(self.actual_kwh), self.actual_kwh, self.expected_kwh)
        misfits = _compute_shift_misfits(
            _smooth_log_profiles(filled / level)[:, None], usual, weight
        )[:, 0]
        as_usual = np.median(_compute_shift_misfits(past, usual, weight)[:, :, 0], axis=1)
        limit = SHIFT_MAX_MISFIT_RATIO * np.maximum(as_usual, 1.0)
        as_is, best = misfits[:, 0], misfits.min(axis=1)
        return np.asarray(
            (best < limit) & (as_is > np.maximum(limit, SHIFT_MIN_MISFIT_RATIO * best))
        )


def compute_run_lengths(flags: BoolArray) -> IntArray:
    """Length of the run of true values that each half-hour of `[..., T]` belongs to, 0 if false."""
    place = np.arange(1, flags.shape[-1] + 1)
    before = np.maximum.accumulate(np.where(flags, 0, place), axis=-1)
    after = np.minimum.accumulate(np.where(flags, place[-1] + 1, place)[..., ::-1], axis=-1)
    return np.where(flags, after[..., ::-1] - before - 1, 0)


def _repeats_previous_reading(kwh: FloatArray) -> BoolArray:
    """Whether each half-hour `[..., 48]` reads as the one before it."""
    return np.asarray(np.diff(kwh, axis=-1, prepend=np.nan) == 0)


def _smooth_log_profiles(level_profiles: FloatArray) -> FloatArray:
    """Level units `[..., 48]` over 2.5 hours of the clock, as logarithms."""
    return np.log1p(uniform_filter1d(level_profiles, SMOOTHING_HALF_HOURS, axis=-1, mode="wrap"))


def _compute_shift_misfits(
    profiles: FloatArray, usual_profile: FloatArray, weight: FloatArray
) -> FloatArray:
    """Weighted squares `[N, K, V]` between nights `[N, K, 48]` and each turn of the usual one."""
    weights, products = weight[:, SHIFT_ORDERS], (weight * usual_profile)[:, SHIFT_ORDERS]
    constant = (weight * usual_profile**2).sum(axis=1)[:, None, None]
    squares = np.matmul(profiles**2, weights.transpose(0, 2, 1))
    return squares - 2 * np.matmul(profiles, products.transpose(0, 2, 1)) + constant


def _score_reason_half_hours(
    flagged_nights: FlaggedNights, reason: list[str], half_hour_scores: FloatArray
) -> FloatArray:
    """How far each half-hour `[N, 48]` shows the reason: the rule's own ones where it has any."""
    own = {
        "outage": flagged_nights.outage_run_lengths >= OUTAGE_MIN_HALF_HOURS,
        "stuck": flagged_nights.stuck_run_lengths >= STUCK_MIN_HALF_HOURS,
        "spike": flagged_nights.is_above_usual_peaks,
    }
    named = [np.array(reason)[:, None] == name for name in own]
    return np.select(named, [2.0 * shown for shown in own.values()], default=half_hour_scores)


def _to_profile_lists(values: FloatArray) -> pl.Series:
    flat = pl.Series(values.astype(np.float32).reshape(-1, 48), dtype=pl.Array(pl.Float32, 48))
    return flat.cast(pl.List(pl.Float32)).list.eval(pl.element().fill_nan(None))
