"""Anomalies that a simulated fleet carries: what goes wrong at which home, on which nights."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from ml import kinds
from ml.kinds import LASTING_NIGHTS, Random, as_metered, visible
from ml.simulate.surroundings import Floats, Ints

RECENT: Final = 10
SHARE: Final = 0.03
KINDS: Final = (
    *("scale_down", "zero_window", "stuck", "outage_catch_up", "spike", "added_baseload"),
    *("night_load", "clock_shift", "doubled", "ramp", "tenancy"),
)


@dataclass(frozen=True)
class Episode:
    """What went wrong at one home of a block, on the nights whose readings it changed."""

    home: int
    days: tuple[int, ...]
    kind: str


def plant(kwh: Floats, numbers: range, random: Random) -> list[Episode]:
    """Plant the fleet's episodes `numbers` in a block [n, D, 48], in place.

    Kinds take turns by number; every other episode begins within the last nights of the period,
    the others within its last third. Homes where nothing would show are left alone.
    """
    usual = np.median(kwh.sum(axis=2), axis=1)
    homes = random.permutation(np.flatnonzero(usual >= 1.5))[: len(numbers)]
    planted = []
    for home, number in zip(homes, numbers, strict=False):
        kind = KINDS[number % len(KINDS)]
        days = _nights(kwh.shape[1], kind, recent=number % 2 == 0, random=random)
        other = kwh[random.choice([h for h in range(len(kwh)) if h != home] or [home]), days]
        changed = as_metered(kinds.KINDS[kind](kwh[home, days].copy(), other.copy(), random))
        shows = visible(kwh[home, days], changed, usual[home])
        kwh[home, days] = np.where(shows[:, None], changed, kwh[home, days])
        if shows.any():
            planted.append(Episode(int(home), tuple(days[shows].tolist()), kind))
    return planted


def _nights(period: int, kind: str, recent: bool, random: Random) -> Ints:
    third = max(1, period // 3)
    first = int(period - random.integers(1, 1 + (min(RECENT, third) if recent else third)))
    length = 1 if random.random() < 0.5 else int(random.integers(2, LASTING_NIGHTS + 1))
    if kind in kinds.ONE_NIGHT:
        length = 1
    if kind in kinds.SLOW:
        first, length = (
            max(period - third, min(first, period - LASTING_NIGHTS // 2)),
            LASTING_NIGHTS,
        )
    return np.arange(first, min(first + length, period))
