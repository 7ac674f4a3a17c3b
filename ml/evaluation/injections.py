"""Kinds of injection: what theft, meters and households do to the readings of an episode.

A kind maps profiles `[L, 48]` of an episode's nights, kWh per half-hour without gaps, to the
profiles as metered. It may overwrite its argument, and is given as many profiles of another
household and a generator for its strength. Simulated fleets and the benchmark inject the same
kinds; no training knows them (an import contract says so).

Theft is that of Jokar, Arianpoo and Leung (2016), the rest what meters and households do: KIT's
energy anomaly generator, and utilities' rules on interval data. Ranges of strength are those of the
benchmark's definition unless said: from hardly visible to plain.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ml.limits import SUPPLY_LIMIT_KWH
from ml.schemas import HALF_HOURS

Float32Array = NDArray[np.float32]
RandomGenerator = np.random.Generator
InjectionFunction = Callable[[Float32Array, Float32Array, RandomGenerator], Float32Array]
"""Maps profiles and those of another household `[L, 48]` to injected profiles."""

EPISODE_NIGHTS: Final = 14
"""Nights of an injected episode: two weeks, long enough for evidence to accumulate."""
MIN_VISIBLE_SHARE: Final = 0.1
"""Least change of a night, summed over half-hours, as a share of the household's usual daily kWh: a
night that changes less is left alone, since nobody could tell it from others. Chosen."""


def _scale_down(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Theft h1: scale all readings by one factor."""
    return profiles_kwh * np.float32(random.uniform(0.1, 0.8))


def _scale_half_hours(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Theft h3: scale each half-hour by a factor of its own."""
    return profiles_kwh * _draw_uniform(random, 0.1, 0.8, profiles_kwh.shape)


def _zero_out_window(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Theft h2: report nothing for 4 to 11.5 hours."""
    first = random.integers(10, 32)
    length = random.integers(8, 24)
    profiles_kwh[:, first : first + length] = 0
    return profiles_kwh


def _replace_with_random_share(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Theft h4: report random shares of the mean."""
    return profiles_kwh.mean(axis=1, keepdims=True) * _draw_uniform(
        random, 0.1, 0.8, profiles_kwh.shape
    )


def _flatten_to_mean(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, _random: RandomGenerator
) -> Float32Array:
    """Theft h5: report the mean throughout."""
    return np.repeat(profiles_kwh.mean(axis=1, keepdims=True), HALF_HOURS, axis=1)


def _reverse_profile(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, _random: RandomGenerator
) -> Float32Array:
    """Theft h6: report the day in reverse, cheap hours as dear ones."""
    return profiles_kwh[:, ::-1]


def _repeat_reading(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Repeat one reading for 7 hours or more, in an episode to its end, as a stuck meter does."""
    first = random.integers(4, 30)
    length = random.integers(14, HALF_HOURS)
    last = profiles_kwh.size if len(profiles_kwh) > 1 else first + length
    flat = profiles_kwh.ravel()
    # At least 10 Wh: a meter stuck at zero would be an outage.
    flat[first:last] = max(flat[first], np.float32(0.01))
    return flat.reshape(profiles_kwh.shape)


def _replace_with_near_zero(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Report noise of at most 15 Wh, as a failing sensor does."""
    return _draw_uniform(random, 0, 0.015, profiles_kwh.shape)


def _add_outage_with_catch_up(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Report nothing for 4 to 10.5 hours, then all that was missed in one half-hour."""
    first = random.integers(2, 24)
    length = random.integers(8, 22)
    profiles_kwh[0, first + length] += profiles_kwh[0, first : first + length].sum()
    profiles_kwh[0, first : first + length] = 0
    return profiles_kwh


def _add_spike(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Add 2 to 7 kWh to one or two half-hours."""
    first = random.integers(0, HALF_HOURS - 2)
    length = random.integers(1, 3)
    profiles_kwh[0, first : first + length] += np.float32(random.uniform(2, 7))
    return profiles_kwh


def _add_baseload(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Add a constant load of 0.3 to 1.2 kW."""
    return profiles_kwh + np.float32(random.uniform(0.15, 0.6))


def _add_night_load(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Add 1 to 3 kW for 3 to 5 hours after midnight."""
    first = random.integers(0, 4)
    length = random.integers(6, 11)
    profiles_kwh[:, first : first + length] += np.float32(random.uniform(0.5, 1.5))
    return profiles_kwh


def _shift_clock(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Shift all readings 4 to 10 hours later; the last ones come first."""
    return np.roll(profiles_kwh.ravel(), random.integers(8, 21)).reshape(profiles_kwh.shape)


def _multiply_readings(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Double to treble all readings."""
    return profiles_kwh * np.float32(random.uniform(2, 3))


def _cap_readings(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Cap readings at 15 to 50 % of the highest, as a load limiter does."""
    return np.minimum(profiles_kwh, profiles_kwh.max() * np.float32(random.uniform(0.15, 0.5)))


def _ramp_up(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Let readings grow night by night, to 2.5 to 4 times at the end."""
    steepness = random.uniform(1.5, 3.0) / EPISODE_NIGHTS
    night_number = np.arange(1, len(profiles_kwh) + 1, dtype=np.float32)
    return profiles_kwh * (1 + steepness * night_number)[:, None]


def _change_tenancy(
    _profiles_kwh: Float32Array, other_profiles_kwh: Float32Array, _random: RandomGenerator
) -> Float32Array:
    """Return the readings of another household."""
    return other_profiles_kwh


INJECTION_KINDS: Final[dict[str, InjectionFunction]] = {
    "scale_down": _scale_down,
    "half_hour_scale": _scale_half_hours,
    "zero_window": _zero_out_window,
    "random_share": _replace_with_random_share,
    "constant_mean": _flatten_to_mean,
    "reversed_day": _reverse_profile,
    "stuck": _repeat_reading,
    "near_zero": _replace_with_near_zero,
    "outage_catch_up": _add_outage_with_catch_up,
    "spike": _add_spike,
    "added_baseload": _add_baseload,
    "night_load": _add_night_load,
    "clock_shift": _shift_clock,
    "doubled": _multiply_readings,
    "cap": _cap_readings,
    "ramp": _ramp_up,
    "tenancy": _change_tenancy,
}
"""Kinds by name. Their order decides which household carries which kind."""
ONE_NIGHT_KINDS: Final = ("outage_catch_up", "spike")
"""Kinds that change the first night of an episode alone: injected into single nights only."""
GRADUAL_KINDS: Final = ("ramp",)
"""Kinds that show only over several nights: injected as episodes only."""


def quantize_to_meter(profiles_kwh: Float32Array) -> Float32Array:
    """Return readings as a meter would deliver them: whole watt-hours within the supply limit."""
    metered = np.rint(np.clip(profiles_kwh, 0, SUPPLY_LIMIT_KWH) * np.float32(1000)) / np.float32(
        1000
    )
    return np.asarray(metered, dtype=np.float32)


def is_visibly_changed(
    before: Float32Array, after: Float32Array, usual_daily_kwh: float
) -> NDArray[np.bool_]:
    """Return which profiles `[L]` changed by `MIN_VISIBLE_SHARE` of the usual daily kWh or more."""
    change_kwh = np.nansum(np.abs(after - before), axis=1)
    return np.asarray(change_kwh >= MIN_VISIBLE_SHARE * usual_daily_kwh)


def _draw_uniform(
    random: RandomGenerator, low: float, high: float, shape: tuple[int, ...]
) -> Float32Array:
    # Drawn in double and cast: drawing in single would give other numbers for the same seed.
    drawn: NDArray[np.floating[Any]] = random.uniform(low, high, shape)
    return drawn.astype(np.float32)
