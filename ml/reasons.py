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

from ml.features import FloatArray
from ml.schemas import HALF_HOURS

Bools = NDArray[np.bool_]
Ints = NDArray[np.int_]

USUAL_NIGHTS: Final = 42
DEAD_KWH: Final = 0.002
DEAD_HALF_HOURS: Final = 4
DEAD_SHARE: Final = 0.05
HELD_HALF_HOURS: Final = 10
HELD_TIMES: Final = 3
CAPPED_READINGS: Final = 3
CAPPED_SHARE: Final = 0.8
SPIKE_TIMES: Final = 1.3
SPIKE_HALF_HOURS: Final = 3
SPIKE_SHARE: Final = 0.1
CLOCK: Final = np.arange(HALF_HOURS)
NIGHT: Final = np.isin(CLOCK, np.r_[0:14, 44:48])
"""22:00 to 07:00 UTC."""
NIGHT_SHARE: Final = 0.15
CHANGED: Final = 1.35
TURNS: Final = np.stack([CLOCK, CLOCK[::-1], *(np.roll(CLOCK, lag) for lag in range(3, 46))])
"""The day as it is, backwards, and turned by 1.5 hours or more either way; `[V, 48]`."""
TURNED_TIMES: Final = 2.0
TURNED_MISFIT: Final = 2.5
SMOOTHING: Final = 5
LEAST_LEVEL_KWH: Final = 0.02
LEAST_READINGS: Final = 36


def explain(
    flagged: pl.DataFrame,
    actual: FloatArray,
    expected: FloatArray,
    half_hour: FloatArray,
    past: FloatArray | None = None,
) -> pl.DataFrame:
    """Add to flagged household-nights their profiles `[N, 48]`, reason, span and excess energy.

    `half_hour` is how far each half-hour deviates: above 1 it shows the anomaly. `past` are the
    household's nights before `[N, K, 48]` (`past_nights`), NaN where missing; without them the
    rules know the expected profile alone.
    """
    nights = Nights.of(actual, expected, past)
    reason = nights.reasons()
    start, end = spans(_showing(nights, reason, half_hour))
    midnight = pl.col("night").cast(pl.Datetime("us"))
    return flagged.drop("actual_kwh", "expected_kwh").with_columns(
        actual_kwh=_profiles(actual),
        expected_kwh=_profiles(expected),
        half_hour_score=_profiles(half_hour),
        excess_kwh=pl.Series(np.nansum(actual - expected, axis=1)).cast(pl.Float32),
        reason=pl.Series(reason, dtype=pl.String),
        start_utc=midnight + pl.Series(start * 30).cast(pl.Int64) * pl.duration(minutes=1),
        end_utc=midnight + pl.Series(end * 30).cast(pl.Int64) * pl.duration(minutes=1),
    )


def reasons(actual: FloatArray, expected: FloatArray, past: FloatArray | None = None) -> list[str]:
    """The kind of each household-night `[N, 48]`; arguments as those of `explain`."""
    return Nights.of(actual, expected, past).reasons()


def past_nights(kwh: FloatArray, households: Ints, nights: Ints) -> FloatArray:
    """The `USUAL_NIGHTS` before each of these places in `[H, D, 48]`, as `explain` wants them."""
    before = nights[:, None] - np.arange(USUAL_NIGHTS, 0, -1)
    past = kwh[households[:, None], np.maximum(before, 0)]
    return np.where(before[:, :, None] >= 0, past, np.nan)


def spans(half_hour: FloatArray) -> tuple[Ints, Ints]:
    """The half-hours `start <= i < end` that deviate most as one block, `[N]` each.

    The segment with the greatest sum of how far each is above 1 (Bentley 1984).
    """
    gain = np.nan_to_num(half_hour, nan=0.0) - 1.0
    total = np.cumsum(np.pad(gain, ((0, 0), (1, 0))), axis=1)
    lowest = np.minimum.accumulate(total[:, :-1], axis=1)
    end = np.argmax(total[:, 1:] - lowest, axis=1)
    upto = np.arange(half_hour.shape[1])[None] <= end[:, None]
    start = np.argmin(np.where(upto, total[:, :-1], np.inf), axis=1)
    return start, end + 1


@dataclass(frozen=True)
class Nights:
    """Flagged household-nights; a missing half-hour of the past stands at what is expected."""

    actual: FloatArray
    """`[N, 48]` kWh, NaN where missing."""
    expected: FloatArray
    """`[N, 48]` kWh."""
    past: FloatArray
    """`[N, K, 48]` kWh of the nights before, none missing."""

    @classmethod
    def of(cls, actual: FloatArray, expected: FloatArray, past: FloatArray | None) -> "Nights":
        """Fill the gaps of the past; a night of it with too few readings is all gap."""
        actual, expected = actual.astype(np.float64), expected.astype(np.float64)
        usual = expected[:, None]
        if past is None:
            return cls(actual, expected, usual)
        known = np.isfinite(past)
        known &= known.sum(axis=2, keepdims=True) >= LEAST_READINGS
        return cls(actual, expected, np.where(known, past, usual))

    def reasons(self) -> list[str]:
        """The first kind whose rule holds."""
        rules = [
            ("outage", self.is_dead()),
            ("drop", self.is_capped()),
            ("stuck", self.is_held()),
            ("spike", self.is_spiky()),
            ("night_load", self.is_loaded_at_night()),
            ("shifted", self.is_turned()),
            ("rise", self.is_more),
            ("drop", self.is_less),
        ]
        names, holds = zip(*rules, strict=True)
        return np.select(list(holds), list(names), default="unusual_shape").tolist()

    @cached_property
    def excess(self) -> FloatArray:
        """Kilowatt-hours above what was expected `[N, 48]`, 0 where missing."""
        return np.nan_to_num(self.actual - self.expected)

    @cached_property
    def expected_kwh(self) -> FloatArray:
        """Of the day, `[N]`."""
        return np.maximum(self.expected.sum(axis=1), 1e-3)

    @cached_property
    def day_kwh(self) -> FloatArray:
        """Of the day, `[N]`; a missing half-hour as expected."""
        return self.expected_kwh + self.excess.sum(axis=1)

    @cached_property
    def is_more(self) -> Bools:
        """The day is far above what was expected."""
        return np.asarray(self.day_kwh > CHANGED * self.expected_kwh)

    @cached_property
    def is_less(self) -> Bools:
        """The day is far below what was expected."""
        return np.asarray(CHANGED * self.day_kwh < self.expected_kwh)

    @cached_property
    def top(self) -> FloatArray:
        """The highest reading `[N]`."""
        return np.nan_to_num(self.actual).max(axis=1)

    @cached_property
    def dead(self) -> Ints:
        """Length of the run without consumption that each half-hour `[N, 48]` belongs to."""
        return run_lengths(self.actual <= DEAD_KWH)

    @cached_property
    def held(self) -> Ints:
        """Length of the run of one reading, not of nothing, that each half-hour belongs to."""
        lengths = run_lengths(_repeats(self.actual) & (self.actual > DEAD_KWH))
        lengths = np.maximum(lengths, np.pad(lengths[:, 1:], ((0, 0), (0, 1))))
        return lengths + (lengths > 0)

    @cached_property
    def spiky(self) -> Bools:
        """Half-hours `[N, 48]` far above the household's usual peaks."""
        peak = np.quantile(self.past.max(axis=2), 0.9, axis=1)
        peak = np.maximum(peak, self.expected.max(axis=1))
        return np.asarray(self.actual > SPIKE_TIMES * peak[:, None])

    def is_dead(self) -> Bools:
        """Consumption stops for longer than is usual, where some was expected."""
        usual = np.median(run_lengths(self.past <= DEAD_KWH).max(axis=2), axis=1)
        dead = self.dead >= np.maximum(DEAD_HALF_HOURS, usual + 3)[:, None]
        lost = np.where(dead, -self.excess, 0.0).sum(axis=1)
        return np.asarray(lost > DEAD_SHARE * self.expected_kwh)

    def is_capped(self) -> Bools:
        """The highest reading comes back through the day and lies below the usual peak."""
        at_top = self.actual == self.top[:, None]
        times, run = at_top.sum(axis=1), run_lengths(at_top).max(axis=1)
        some = (times >= CAPPED_READINGS) & (times < np.isfinite(self.actual).sum(axis=1))
        returns = (times > run) | (run < HELD_HALF_HOURS) | self.is_less
        below = self.top < CAPPED_SHARE * np.median(self.past.max(axis=2), axis=1)
        return np.asarray(some & returns & (run >= self.held.max(axis=1)) & below)

    def is_held(self) -> Bools:
        """One reading repeats for hours, far longer than is usual for the household."""
        usual = 1 + np.median(run_lengths(_repeats(self.past)).max(axis=2), axis=1)
        return np.asarray(self.held.max(axis=1) >= np.maximum(HELD_HALF_HOURS, HELD_TIMES * usual))

    def is_spiky(self) -> Bools:
        """A few half-hours tower above the usual peaks and outweigh what else has changed."""
        run = run_lengths(self.spiky).max(axis=1)
        spikes = np.where(self.spiky, self.excess, 0.0).sum(axis=1)
        rest = np.abs(self.excess.sum(axis=1) - spikes)
        heavy = spikes > np.maximum(rest, SPIKE_SHARE * self.expected_kwh)
        return np.asarray((run > 0) & (run <= SPIKE_HALF_HOURS) & heavy)

    def is_loaded_at_night(self) -> Bools:
        """Nearly all of the surplus lies between 22:00 and 07:00."""
        night = self.excess[:, NIGHT].sum(axis=1)
        rest = np.abs(self.excess[:, ~NIGHT].sum(axis=1))
        deficit = np.maximum(-self.excess, 0.0).sum(axis=1)
        alone = night > np.maximum(2 * rest, 4 * deficit)
        return np.asarray(alone & (night > NIGHT_SHARE * self.expected_kwh))

    def is_turned(self) -> Bools:
        """Turned by some hours, or backwards, the day is the household's usual one."""
        level = np.maximum(self.past.mean(axis=(1, 2)), LEAST_LEVEL_KWH)[:, None]
        past = _smooth(self.past / level[:, :, None])
        usual = np.median(past, axis=1)
        spread = np.median(np.abs(past - usual[:, None]), axis=1) ** 2
        weight = 1 / (2 * spread + 0.5 * spread.mean(axis=1, keepdims=True) + 0.0025)
        filled = np.where(np.isfinite(self.actual), self.actual, self.expected)
        misfits = _misfits(_smooth(filled / level)[:, None], usual, weight)[:, 0]
        as_usual = np.median(_misfits(past, usual, weight)[:, :, 0], axis=1)
        limit = TURNED_MISFIT * np.maximum(as_usual, 1.0)
        as_is, best = misfits[:, 0], misfits.min(axis=1)
        return np.asarray((best < limit) & (as_is > np.maximum(limit, TURNED_TIMES * best)))


def run_lengths(flags: Bools) -> Ints:
    """Length of the run of true values that each half-hour of `[..., T]` belongs to, 0 if false."""
    place = np.arange(1, flags.shape[-1] + 1)
    before = np.maximum.accumulate(np.where(flags, 0, place), axis=-1)
    after = np.minimum.accumulate(np.where(flags, place[-1] + 1, place)[..., ::-1], axis=-1)
    return np.where(flags, after[..., ::-1] - before - 1, 0)


def _repeats(kwh: FloatArray) -> Bools:
    """Whether each half-hour `[..., 48]` reads as the one before it."""
    return np.asarray(np.diff(kwh, axis=-1, prepend=np.nan) == 0)


def _smooth(profile: FloatArray) -> FloatArray:
    """Level units `[..., 48]` over 2.5 hours of the clock, as logarithms."""
    return np.log1p(uniform_filter1d(profile, SMOOTHING, axis=-1, mode="wrap"))


def _misfits(nights: FloatArray, usual: FloatArray, weight: FloatArray) -> FloatArray:
    """Weighted squares `[N, K, V]` between nights `[N, K, 48]` and each turn of the usual one."""
    weights, products = weight[:, TURNS], (weight * usual)[:, TURNS]
    constant = (weight * usual**2).sum(axis=1)[:, None, None]
    squares = np.matmul(nights**2, weights.transpose(0, 2, 1))
    return squares - 2 * np.matmul(nights, products.transpose(0, 2, 1)) + constant


def _showing(nights: Nights, reason: list[str], half_hour: FloatArray) -> FloatArray:
    """How far each half-hour `[N, 48]` shows the reason: the rule's own ones where it has any."""
    own = {
        "outage": nights.dead >= DEAD_HALF_HOURS,
        "stuck": nights.held >= HELD_HALF_HOURS,
        "spike": nights.spiky,
    }
    named = [np.array(reason)[:, None] == name for name in own]
    return np.select(named, [2.0 * shown for shown in own.values()], default=half_hour)


def _profiles(values: FloatArray) -> pl.Series:
    flat = pl.Series(values.astype(np.float32).reshape(-1, 48), dtype=pl.Array(pl.Float32, 48))
    return flat.cast(pl.List(pl.Float32)).list.eval(pl.element().fill_nan(None))
