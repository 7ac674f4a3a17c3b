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

from ml.arrays import BoolArray, IntArray, median_and_mad
from ml.evaluation.injections import (
    EPISODE_NIGHTS,
    GRADUAL_KINDS,
    INJECTION_KINDS,
    ONE_NIGHT_KINDS,
    Float32Array,
    RandomGenerator,
    is_visibly_changed,
    quantize_to_meter,
)
from ml.fleet import Fleet

INJECTED_SHARE: Final = 0.08
KIND_NAMES: Final = tuple(INJECTION_KINDS)


@dataclass(frozen=True)
class InjectedEpisode:
    """An episode of several nights in one row; nights are places in the fleet."""

    row: int
    first_night: int
    n_nights: int
    kind: str


@dataclass(frozen=True)
class GroundTruth:
    """What was planted in `R` rows over `D` nights, and which of their nights count."""

    household_index: IntArray
    """`[R]` place of the row's household in the fleet; copies of a household share it."""
    is_tested: BoolArray
    """`[R, D]` whether the night belongs to the test and has readings enough."""
    kind_code: NDArray[np.int8]
    """`[R, D]` 0 where nothing was planted, otherwise 1 + the kind's place in `NAMES`."""
    episodes: tuple[InjectedEpisode, ...]

    @property
    def is_injected(self) -> BoolArray:
        """`[R, D]` the nights that count and on which something was planted."""
        return np.asarray(self.is_tested & (self.kind_code > 0))

    @property
    def is_normal(self) -> BoolArray:
        """`[R, D]` the nights that count and on which nothing was planted."""
        return np.asarray(self.is_tested & (self.kind_code == 0))

    def find_nights_of_kind(self, kind: str) -> BoolArray:
        """`[R, D]` the nights that count and on which this kind was planted."""
        return np.asarray(self.is_tested & (self.kind_code == 1 + KIND_NAMES.index(kind)))

    def restrict_to_households(self, household_indices: IntArray) -> "GroundTruth":
        """The same rows, where only those of these households count."""
        kept = np.isin(self.household_index, household_indices)
        lasting = tuple(episode for episode in self.episodes if kept[episode.row])
        return GroundTruth(
            self.household_index, self.is_tested & kept[:, None], self.kind_code, lasting
        )

    def select_rows(self, is_kept: BoolArray) -> "GroundTruth":
        """These rows `[R]` alone."""
        place = np.cumsum(is_kept) - 1
        lasting = tuple(
            replace(episode, row=int(place[episode.row]))
            for episode in self.episodes
            if is_kept[episode.row]
        )
        return GroundTruth(
            self.household_index[is_kept], self.is_tested[is_kept], self.kind_code[is_kept], lasting
        )


def repeat_households(household_indices: IntArray, n_copies: int) -> IntArray:
    """Rows `[copies * H]` that plant each household `copies` times; `len(NAMES)` is every kind."""
    return np.tile(household_indices, n_copies)


def inject_anomalies(
    fleet: Fleet,
    household_indices: IntArray,
    test_nights: slice,
    *,
    seed: int,
    min_readings: int,
    injected_share: float = INJECTED_SHARE,
) -> tuple[Fleet, GroundTruth]:
    """Plant about `share` of the nights of each row, a household's place in the fleet.

    Kinds take turns by household and copy. A missing half-hour stays missing, and a night stays
    as it was where nothing would show or readings are too few.
    """
    random = np.random.default_rng(seed)
    kwh = fleet.kwh[household_indices]
    kind = np.zeros(kwh.shape[:2], dtype=np.int8)
    counts = np.zeros(kwh.shape[:2], dtype=np.bool_)
    counts[:, test_nights] = np.isfinite(kwh[:, test_nights]).sum(axis=2) >= min_readings
    usual = _median_daily_kwh(kwh)
    lasting = []
    for row, name in enumerate(_assign_kinds(household_indices, random)):
        for first, length in _draw_episodes(counts[row], name, injected_share, random):
            days = slice(first, first + length)
            other = _fill_gaps_with_mean(
                fleet.kwh[_draw_other_household(household_indices, row, random), days]
            )
            before = kwh[row, days]
            after = _inject_kind(before, name, other, random)
            shows = is_visibly_changed(before, after, usual[row]) & counts[row, days]
            kwh[row, days] = np.where(shows[:, None], after, before)
            kind[row, days][shows] = 1 + KIND_NAMES.index(name)
            if length > 1 and shows.any():
                start, stop = np.flatnonzero(shows)[[0, -1]]
                lasting.append(
                    InjectedEpisode(row, first + int(start), int(stop - start) + 1, name)
                )
    ids = [fleet.household_ids[row] for row in household_indices]
    planted = Fleet(
        ids, fleet.nights, kwh, fleet.condition_group[household_indices], fleet.conditions
    )
    return planted, GroundTruth(household_indices, counts, kind, tuple(lasting))


def _assign_kinds(household_indices: IntArray, random: RandomGenerator) -> list[str]:
    """The kind of each row: the copies of a household take consecutive kinds, in a drawn order."""
    order = random.permutation(len(KIND_NAMES))
    _, household, copies = np.unique(household_indices, return_inverse=True, return_counts=True)
    copy = np.empty(len(household_indices), dtype=np.int_)
    copy[np.argsort(household, kind="stable")] = np.concatenate([np.arange(n) for n in copies])
    return [KIND_NAMES[order[turn]] for turn in (household + copy) % len(KIND_NAMES)]


def _draw_episodes(
    is_tested: BoolArray, kind: str, injected_share: float, random: RandomGenerator
) -> list[tuple[int, int]]:
    """Where to plant in one row: first night and length, nights apart unless they last."""
    places = np.flatnonzero(is_tested)
    target = injected_share * len(places)
    alone = 1.0 if kind in ONE_NIGHT_KINDS else 0.0 if kind in GRADUAL_KINDS else 0.5
    found = []
    last = places[-1] + 2 - EPISODE_NIGHTS if len(places) else 0
    if len(places) and last > places[0] and random.random() < (1 - alone) * target / EPISODE_NIGHTS:
        first = int(random.integers(places[0], last))
        found.append((first, EPISODE_NIGHTS))
        places = places[(places < first - 1) | (places > first + EPISODE_NIGHTS)]
    drawn = random.permutation(places)[: int(alone * target + random.random())]
    return found + [(int(place), 1) for place in drawn]


def _draw_other_household(household_indices: IntArray, row: int, random: RandomGenerator) -> int:
    others = household_indices[household_indices != household_indices[row]]
    return int(random.choice(others)) if len(others) else int(household_indices[row])


def _inject_kind(
    profiles_kwh: Float32Array, kind: str, other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    after = quantize_to_meter(
        INJECTION_KINDS[kind](_fill_gaps_with_mean(profiles_kwh), other_profiles_kwh, random)
    )
    return np.where(np.isnan(profiles_kwh), np.float32(np.nan), after)


def _median_daily_kwh(kwh: Float32Array) -> Float32Array:
    """Median kWh of the days `[R]` that have any reading."""
    daily = np.nansum(kwh, axis=2)
    daily[np.isnan(kwh).all(axis=2)] = np.nan
    return median_and_mad(daily)[0].astype(np.float32)


def _fill_gaps_with_mean(profiles_kwh: Float32Array) -> Float32Array:
    """A copy of days `[L, 48]` with the mean of what is there in place of what is missing."""
    known = np.isfinite(profiles_kwh)
    mean = profiles_kwh[known].mean() if known.any() else np.float32(0)
    return np.where(known, profiles_kwh, mean).astype(np.float32)
