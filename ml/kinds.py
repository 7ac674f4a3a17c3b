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

from ml.schemas import HALF_HOURS

Floats = NDArray[np.float32]
Random = np.random.Generator
Kind = Callable[[Floats, Floats, Random], Floats]

LASTING_NIGHTS: Final = 14
SUPPLY_KWH: Final = 11.5  # what a 100 A supply can deliver in a half-hour
# A night counts as anomalous where at least this share of the home's usual day has changed.
VISIBLE: Final = 0.1


def _scale_down(days: Floats, _other: Floats, random: Random) -> Floats:
    return days * np.float32(random.uniform(0.1, 0.8))


def _half_hour_scale(days: Floats, _other: Floats, random: Random) -> Floats:
    return days * _uniform(random, 0.1, 0.8, days.shape)


def _zero_window(days: Floats, _other: Floats, random: Random) -> Floats:
    first, length = random.integers(10, 32), random.integers(8, 24)
    days[:, first : first + length] = 0
    return days


def _random_share(days: Floats, _other: Floats, random: Random) -> Floats:
    return days.mean(axis=1, keepdims=True) * _uniform(random, 0.1, 0.8, days.shape)


def _constant_mean(days: Floats, _other: Floats, _random: Random) -> Floats:
    return np.repeat(days.mean(axis=1, keepdims=True), HALF_HOURS, axis=1)


def _reversed_day(days: Floats, _other: Floats, _random: Random) -> Floats:
    return days[:, ::-1]


def _stuck(days: Floats, _other: Floats, random: Random) -> Floats:
    first, length = random.integers(4, 30), random.integers(14, HALF_HOURS)
    last = days.size if len(days) > 1 else first + length
    flat = days.ravel()
    flat[first:last] = max(flat[first], np.float32(0.01))
    return flat.reshape(days.shape)


def _near_zero(days: Floats, _other: Floats, random: Random) -> Floats:
    return _uniform(random, 0, 0.015, days.shape)


def _outage_catch_up(days: Floats, _other: Floats, random: Random) -> Floats:
    first, length = random.integers(2, 24), random.integers(8, 22)
    days[0, first + length] += days[0, first : first + length].sum()
    days[0, first : first + length] = 0
    return days


def _spike(days: Floats, _other: Floats, random: Random) -> Floats:
    first, length = random.integers(0, HALF_HOURS - 2), random.integers(1, 3)
    days[0, first : first + length] += np.float32(random.uniform(2, 7))
    return days


def _added_baseload(days: Floats, _other: Floats, random: Random) -> Floats:
    return days + np.float32(random.uniform(0.15, 0.6))


def _night_load(days: Floats, _other: Floats, random: Random) -> Floats:
    first, length = random.integers(0, 4), random.integers(6, 11)
    days[:, first : first + length] += np.float32(random.uniform(0.5, 1.5))
    return days


def _clock_shift(days: Floats, _other: Floats, random: Random) -> Floats:
    return np.roll(days.ravel(), random.integers(8, 21)).reshape(days.shape)


def _doubled(days: Floats, _other: Floats, random: Random) -> Floats:
    return days * np.float32(random.uniform(2, 3))


def _cap(days: Floats, _other: Floats, random: Random) -> Floats:
    return np.minimum(days, days.max() * np.float32(random.uniform(0.15, 0.5)))


def _ramp(days: Floats, _other: Floats, random: Random) -> Floats:
    steepness = random.uniform(1.5, 3.0) / LASTING_NIGHTS
    return days * (1 + steepness * np.arange(1, len(days) + 1, dtype=np.float32))[:, None]


def _tenancy(_days: Floats, other: Floats, _random: Random) -> Floats:
    return other


KINDS: Final[dict[str, Kind]] = {
    "scale_down": _scale_down,
    "half_hour_scale": _half_hour_scale,
    "zero_window": _zero_window,
    "random_share": _random_share,
    "constant_mean": _constant_mean,
    "reversed_day": _reversed_day,
    "stuck": _stuck,
    "near_zero": _near_zero,
    "outage_catch_up": _outage_catch_up,
    "spike": _spike,
    "added_baseload": _added_baseload,
    "night_load": _night_load,
    "clock_shift": _clock_shift,
    "doubled": _doubled,
    "cap": _cap,
    "ramp": _ramp,
    "tenancy": _tenancy,
}
ONE_NIGHT: Final = ("outage_catch_up", "spike")
SLOW: Final = ("ramp",)


def as_metered(days: Floats) -> Floats:
    """Whole watt-hours that the supply can deliver."""
    metered = np.rint(np.clip(days, 0, SUPPLY_KWH) * np.float32(1000)) / np.float32(1000)
    return np.asarray(metered, dtype=np.float32)


def visible(before: Floats, after: Floats, usual_kwh: float) -> NDArray[np.bool_]:
    """Whether each day `[L]` has changed by `VISIBLE` of the home's usual day in kWh."""
    return np.asarray(np.nansum(np.abs(after - before), axis=1) >= VISIBLE * usual_kwh)


def _uniform(random: Random, low: float, high: float, shape: tuple[int, ...]) -> Floats:
    drawn: NDArray[np.floating[Any]] = random.uniform(low, high, shape)
    return drawn.astype(np.float32)
