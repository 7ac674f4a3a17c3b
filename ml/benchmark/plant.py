"""Plants anomalies in real readings, and keeps the truth about them.

    rows = copies_of(np.flatnonzero(held_out(fleet.household_ids)), copies=17)
    planted, truth = plant(fleet, rows, slice(250, 362), seed=0, min_readings=36)
    score = judge(detector, planted, 36).score                      # [R, D]
    print(figures.summary(figures.count(score, truth)))             # with intervals

A row is a copy of a household and carries one kind: about half of its planted nights stand alone,
the others make an episode of `LASTING_NIGHTS`. What was planted stays in the readings, so the
history of a later night is contaminated as it would be in service.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml.features import Fleet, median_and_mad
from ml.kinds import KINDS, LASTING_NIGHTS, ONE_NIGHT, SLOW, Floats, Random, as_metered, visible

SHARE: Final = 0.08
NAMES: Final = tuple(KINDS)

Ints = NDArray[np.int_]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Lasting:
    """An episode of several nights in one row; nights are places in the fleet."""

    row: int
    first: int
    length: int
    kind: str


@dataclass(frozen=True)
class Truth:
    """What was planted in `R` rows over `D` nights, and which of their nights count."""

    household: Ints
    """`[R]` place of the row's household in the fleet; copies of a household share it."""
    counts: Bools
    """`[R, D]` whether the night belongs to the test and has readings enough."""
    kind: NDArray[np.int8]
    """`[R, D]` 0 where nothing was planted, otherwise 1 + the kind's place in `NAMES`."""
    lasting: tuple[Lasting, ...]

    @property
    def planted(self) -> Bools:
        """`[R, D]` the nights that count and on which something was planted."""
        return np.asarray(self.counts & (self.kind > 0))

    @property
    def clean(self) -> Bools:
        """`[R, D]` the nights that count and on which nothing was planted."""
        return np.asarray(self.counts & (self.kind == 0))

    def of(self, kind: str) -> Bools:
        """`[R, D]` the nights that count and on which this kind was planted."""
        return np.asarray(self.counts & (self.kind == 1 + NAMES.index(kind)))

    def among(self, households: Ints) -> "Truth":
        """The same rows, where only those of these households count."""
        kept = np.isin(self.household, households)
        lasting = tuple(episode for episode in self.lasting if kept[episode.row])
        return Truth(self.household, self.counts & kept[:, None], self.kind, lasting)

    def rows(self, kept: Bools) -> "Truth":
        """These rows `[R]` alone."""
        place = np.cumsum(kept) - 1
        lasting = tuple(
            replace(episode, row=int(place[episode.row]))
            for episode in self.lasting
            if kept[episode.row]
        )
        return Truth(self.household[kept], self.counts[kept], self.kind[kept], lasting)


def copies_of(households: Ints, copies: int) -> Ints:
    """Rows `[copies * H]` that plant each household `copies` times; `len(NAMES)` is every kind."""
    return np.tile(households, copies)


def plant(
    fleet: Fleet, rows: Ints, nights: slice, *, seed: int, min_readings: int, share: float = SHARE
) -> tuple[Fleet, Truth]:
    """Plant about `share` of the nights of each row, a household's place in the fleet.

    Kinds take turns by household and copy. A missing half-hour stays missing, and a night stays
    as it was where nothing would show or readings are too few.
    """
    random = np.random.default_rng(seed)
    kwh = fleet.kwh[rows]
    kind = np.zeros(kwh.shape[:2], dtype=np.int8)
    counts = np.zeros(kwh.shape[:2], dtype=np.bool_)
    counts[:, nights] = np.isfinite(kwh[:, nights]).sum(axis=2) >= min_readings
    usual = _usual_kwh(kwh)
    lasting = []
    for row, name in enumerate(_turns(rows, random)):
        for first, length in _episodes(counts[row], name, share, random):
            days = slice(first, first + length)
            other = _gapless(fleet.kwh[_another(rows, row, random), days])
            before = kwh[row, days]
            after = _changed(before, name, other, random)
            shows = visible(before, after, usual[row]) & counts[row, days]
            kwh[row, days] = np.where(shows[:, None], after, before)
            kind[row, days][shows] = 1 + NAMES.index(name)
            if length > 1 and shows.any():
                start, stop = np.flatnonzero(shows)[[0, -1]]
                lasting.append(Lasting(row, first + int(start), int(stop - start) + 1, name))
    ids = [fleet.household_ids[row] for row in rows]
    planted = Fleet(ids, fleet.nights, kwh, fleet.group[rows], fleet.conditions)
    return planted, Truth(rows, counts, kind, tuple(lasting))


def _turns(rows: Ints, random: Random) -> list[str]:
    """The kind of each row: the copies of a household take consecutive kinds, in a drawn order."""
    order = random.permutation(len(NAMES))
    _, household, copies = np.unique(rows, return_inverse=True, return_counts=True)
    copy = np.empty(len(rows), dtype=np.int_)
    copy[np.argsort(household, kind="stable")] = np.concatenate([np.arange(n) for n in copies])
    return [NAMES[order[turn]] for turn in (household + copy) % len(NAMES)]


def _episodes(usable: Bools, kind: str, share: float, random: Random) -> list[tuple[int, int]]:
    """Where to plant in one row: first night and length, nights apart unless they last."""
    places = np.flatnonzero(usable)
    target = share * len(places)
    alone = 1.0 if kind in ONE_NIGHT else 0.0 if kind in SLOW else 0.5
    found = []
    last = places[-1] + 2 - LASTING_NIGHTS if len(places) else 0
    if len(places) and last > places[0] and random.random() < (1 - alone) * target / LASTING_NIGHTS:
        first = int(random.integers(places[0], last))
        found.append((first, LASTING_NIGHTS))
        places = places[(places < first - 1) | (places > first + LASTING_NIGHTS)]
    drawn = random.permutation(places)[: int(alone * target + random.random())]
    return found + [(int(place), 1) for place in drawn]


def _another(rows: Ints, row: int, random: Random) -> int:
    others = rows[rows != rows[row]]
    return int(random.choice(others)) if len(others) else int(rows[row])


def _changed(before: Floats, kind: str, other: Floats, random: Random) -> Floats:
    after = as_metered(KINDS[kind](_gapless(before), other, random))
    return np.where(np.isnan(before), np.float32(np.nan), after)


def _usual_kwh(kwh: Floats) -> Floats:
    """Median kWh of the days `[R]` that have any reading."""
    daily = np.nansum(kwh, axis=2)
    daily[np.isnan(kwh).all(axis=2)] = np.nan
    return median_and_mad(daily)[0].astype(np.float32)


def _gapless(days: Floats) -> Floats:
    """A copy of days `[L, 48]` with the mean of what is there in place of what is missing."""
    known = np.isfinite(days)
    mean = days[known].mean() if known.any() else np.float32(0)
    return np.where(known, days, mean).astype(np.float32)
