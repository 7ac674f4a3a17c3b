"""Anomalies that a simulated fleet carries: what goes wrong at a home, and on which nights.

Each kind maps the days of an episode [L, 48] to the days as the meter reports them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from ml.schemas import HALF_HOURS
from ml.simulate.surroundings import SUPPLY_KWH, Bools, Floats, Ints

LONGEST: Final = 14
RECENT: Final = 10
SHARE: Final = 0.03
# A night counts as anomalous where at least this share of the home's usual day has changed.
VISIBLE: Final = 0.1

Random = np.random.Generator
Kind = Callable[[Floats, Floats, Random], Floats]


@dataclass(frozen=True)
class Episode:
    """What went wrong at one home of a block, on the nights whose readings it changed."""

    home: int
    days: tuple[int, ...]
    kind: str


def _scale_down(days: Floats, _other: Floats, random: Random) -> Floats:
    return days * np.float32(random.uniform(0.1, 0.6))


def _zero_window(days: Floats, _other: Floats, random: Random) -> Floats:
    first, length = random.integers(10, 32), random.integers(8, 24)
    days[:, first : first + length] = 0
    return days


def _stuck(days: Floats, _other: Floats, random: Random) -> Floats:
    first, length = random.integers(4, 30), random.integers(14, HALF_HOURS)
    last = days.size if len(days) > 1 else first + length
    flat = days.ravel()
    flat[first:last] = max(flat[first], np.float32(0.01))
    return flat.reshape(days.shape)


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


def _ramp(days: Floats, _other: Floats, random: Random) -> Floats:
    steepness = random.uniform(1.5, 3.0) / LONGEST
    return days * (1 + steepness * np.arange(1, len(days) + 1, dtype=np.float32))[:, None]


def _tenancy(_days: Floats, other: Floats, _random: Random) -> Floats:
    return other


KINDS: Final[dict[str, Kind]] = {
    "scale_down": _scale_down,
    "zero_window": _zero_window,
    "stuck": _stuck,
    "outage_catch_up": _outage_catch_up,
    "spike": _spike,
    "added_baseload": _added_baseload,
    "night_load": _night_load,
    "clock_shift": _clock_shift,
    "doubled": _doubled,
    "ramp": _ramp,
    "tenancy": _tenancy,
}
ONE_NIGHT: Final = ("outage_catch_up", "spike")
SLOW: Final = ("ramp",)


def plant(kwh: Floats, numbers: range, random: Random) -> list[Episode]:
    """Plant the fleet's episodes `numbers` in a block [n, D, 48], in place.

    Kinds take turns by number; every other episode begins within the last nights of the period,
    the others within its last third. Homes where nothing would show are left alone.
    """
    usual = np.median(kwh.sum(axis=2), axis=1)
    homes = random.permutation(np.flatnonzero(usual >= 1.5))[: len(numbers)]
    planted = []
    for home, number in zip(homes, numbers, strict=False):
        kind = list(KINDS)[number % len(KINDS)]
        days = _nights(kwh.shape[1], kind, recent=number % 2 == 0, random=random)
        other = kwh[random.choice([h for h in range(len(kwh)) if h != home] or [home]), days]
        changed = _as_metered(KINDS[kind](kwh[home, days].copy(), other.copy(), random))
        visible = _visible(kwh[home, days], changed, usual[home])
        kwh[home, days] = np.where(visible[:, None], changed, kwh[home, days])
        if visible.any():
            planted.append(Episode(int(home), tuple(days[visible].tolist()), kind))
    return planted


def _nights(period: int, kind: str, recent: bool, random: Random) -> Ints:
    third = max(1, period // 3)
    first = int(period - random.integers(1, 1 + (min(RECENT, third) if recent else third)))
    length = 1 if random.random() < 0.5 else int(random.integers(2, LONGEST + 1))
    if kind in ONE_NIGHT:
        length = 1
    if kind in SLOW:
        first, length = max(period - third, min(first, period - LONGEST // 2)), LONGEST
    return np.arange(first, min(first + length, period))


def _as_metered(days: Floats) -> Floats:
    metered = np.rint(np.clip(days, 0, SUPPLY_KWH) * np.float32(1000)) / np.float32(1000)
    return np.asarray(metered, dtype=np.float32)


def _visible(before: Floats, after: Floats, usual: float) -> Bools:
    return np.asarray(np.abs(after - before).sum(axis=1) >= VISIBLE * usual)
