"""What goes wrong at a home: each kind maps the days of an episode to the days as metered.

A kind takes the days `[L, 48]` in kWh per half-hour, which it may overwrite, as many days of
another home, and a generator that its strength is drawn from. Both simulated fleets and the
benchmark plant them; no training knows them.

Theft is that of Jokar, Arianpoo and Leung (2016), the rest what meters and homes do.
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

EPISODE_NIGHTS: Final = 14
# A night counts as anomalous where at least this share of the home's usual day has changed.
MIN_VISIBLE_SHARE: Final = 0.1


def _scale_down(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    return profiles_kwh * np.float32(random.uniform(0.1, 0.8))


def _scale_half_hours(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    return profiles_kwh * _draw_uniform(random, 0.1, 0.8, profiles_kwh.shape)


def _zero_out_window(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    first, length = random.integers(10, 32), random.integers(8, 24)
    profiles_kwh[:, first : first + length] = 0
    return profiles_kwh


def _replace_with_random_share(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    return profiles_kwh.mean(axis=1, keepdims=True) * _draw_uniform(
        random, 0.1, 0.8, profiles_kwh.shape
    )


def _flatten_to_mean(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, _random: RandomGenerator
) -> Float32Array:
    return np.repeat(profiles_kwh.mean(axis=1, keepdims=True), HALF_HOURS, axis=1)


def _reverse_profile(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, _random: RandomGenerator
) -> Float32Array:
    return profiles_kwh[:, ::-1]


def _repeat_reading(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    first, length = random.integers(4, 30), random.integers(14, HALF_HOURS)
    last = profiles_kwh.size if len(profiles_kwh) > 1 else first + length
    flat = profiles_kwh.ravel()
    flat[first:last] = max(flat[first], np.float32(0.01))
    return flat.reshape(profiles_kwh.shape)


def _replace_with_near_zero(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    return _draw_uniform(random, 0, 0.015, profiles_kwh.shape)


def _add_outage_with_catch_up(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    first, length = random.integers(2, 24), random.integers(8, 22)
    profiles_kwh[0, first + length] += profiles_kwh[0, first : first + length].sum()
    profiles_kwh[0, first : first + length] = 0
    return profiles_kwh


def _add_spike(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    first, length = random.integers(0, HALF_HOURS - 2), random.integers(1, 3)
    profiles_kwh[0, first : first + length] += np.float32(random.uniform(2, 7))
    return profiles_kwh


def _add_baseload(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    return profiles_kwh + np.float32(random.uniform(0.15, 0.6))


def _add_night_load(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    first, length = random.integers(0, 4), random.integers(6, 11)
    profiles_kwh[:, first : first + length] += np.float32(random.uniform(0.5, 1.5))
    return profiles_kwh


def _shift_clock(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    return np.roll(profiles_kwh.ravel(), random.integers(8, 21)).reshape(profiles_kwh.shape)


def _multiply_readings(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    return profiles_kwh * np.float32(random.uniform(2, 3))


def _cap_readings(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    return np.minimum(profiles_kwh, profiles_kwh.max() * np.float32(random.uniform(0.15, 0.5)))


def _ramp_up(
    profiles_kwh: Float32Array, _other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    steepness = random.uniform(1.5, 3.0) / EPISODE_NIGHTS
    return (
        profiles_kwh
        * (1 + steepness * np.arange(1, len(profiles_kwh) + 1, dtype=np.float32))[:, None]
    )


def _change_tenancy(
    _profiles_kwh: Float32Array, other_profiles_kwh: Float32Array, _random: RandomGenerator
) -> Float32Array:
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
ONE_NIGHT_KINDS: Final = ("outage_catch_up", "spike")
GRADUAL_KINDS: Final = ("ramp",)


def quantize_to_meter(profiles_kwh: Float32Array) -> Float32Array:
    """Whole watt-hours that the supply can deliver."""
    metered = np.rint(np.clip(profiles_kwh, 0, SUPPLY_LIMIT_KWH) * np.float32(1000)) / np.float32(
        1000
    )
    return np.asarray(metered, dtype=np.float32)


def is_visibly_changed(
    before: Float32Array, after: Float32Array, usual_daily_kwh: float
) -> NDArray[np.bool_]:
    """Whether each day `[L]` has changed by `VISIBLE` of the home's usual day in kWh."""
    return np.asarray(
        np.nansum(np.abs(after - before), axis=1) >= MIN_VISIBLE_SHARE * usual_daily_kwh
    )


def _draw_uniform(
    random: RandomGenerator, low: float, high: float, shape: tuple[int, ...]
) -> Float32Array:
    drawn: NDArray[np.floating[Any]] = random.uniform(low, high, shape)
    return drawn.astype(np.float32)
