"""Injects anomalies into real readings, and keeps the truth about them.

    rows = repeat_households(np.flatnonzero(is_held_out(fleet.household_ids)), n_copies=17)
    injected, truth = inject_anomalies(fleet, rows, slice(250, 362), seed=0, min_readings=36)
    score = score_fleet(detector, injected, min_readings=36).score       # [R, D]
    print(compute_metrics(score, truth))                                 # with intervals

A row is a copy of a household and carries one kind: about half of its injected nights stand alone,
the others make an episode of `EPISODE_NIGHTS`. What was injected stays in the readings, so the
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
"""Share of a row's tested nights to inject into: rare enough to leave a household its habits, and
often enough for recalls by kind. Metrics are corrected for it (`PREVALENCES`)."""
SINGLE_NIGHT_SHARE: Final = 0.5
"""Share of a row's injected nights that stand alone; the others make an episode."""
KIND_NAMES: Final = tuple(INJECTION_KINDS)
"""Kinds in the order of `GroundTruth.kind_code`."""


@dataclass(frozen=True)
class InjectedEpisode:
    """An episode of several nights in one row; `row` and `first_night` are places in the fleet."""

    row: int
    first_night: int
    n_nights: int
    kind: str


@dataclass(frozen=True)
class GroundTruth:
    """What was injected into `R` rows over `D` nights, and which of their nights are tested."""

    household_index: IntArray
    """`[R]` place of the row's household in the original fleet; copies of a household share it."""
    is_tested: BoolArray
    """`[R, D]` whether the night belongs to the test and has enough readings."""
    kind_code: NDArray[np.int8]
    """`[R, D]` 0 where nothing was injected, otherwise 1 + the kind's place in `KIND_NAMES`."""
    episodes: tuple[InjectedEpisode, ...]

    @property
    def is_injected(self) -> BoolArray:
        """`[R, D]` tested nights on which something was injected."""
        return np.asarray(self.is_tested & (self.kind_code > 0))

    @property
    def is_normal(self) -> BoolArray:
        """`[R, D]` tested nights on which nothing was injected."""
        return np.asarray(self.is_tested & (self.kind_code == 0))

    def find_nights_of_kind(self, kind: str) -> BoolArray:
        """Return the tested nights `[R, D]` on which this kind was injected."""
        return np.asarray(self.is_tested & (self.kind_code == 1 + KIND_NAMES.index(kind)))

    def restrict_to_households(self, household_indices: IntArray) -> "GroundTruth":
        """Return the same rows, of which only those of these households are tested."""
        is_kept = np.isin(self.household_index, household_indices)
        episodes = tuple(episode for episode in self.episodes if is_kept[episode.row])
        return GroundTruth(
            self.household_index, self.is_tested & is_kept[:, None], self.kind_code, episodes
        )

    def select_rows(self, is_kept: BoolArray) -> "GroundTruth":
        """Return the rows for which the mask `[R]` is true."""
        new_row = np.cumsum(is_kept) - 1
        episodes = tuple(
            replace(episode, row=int(new_row[episode.row]))
            for episode in self.episodes
            if is_kept[episode.row]
        )
        return GroundTruth(
            self.household_index[is_kept],
            self.is_tested[is_kept],
            self.kind_code[is_kept],
            episodes,
        )


def repeat_households(household_indices: IntArray, n_copies: int) -> IntArray:
    """Return rows `[n_copies * H]` that inject into each household `n_copies` times.

    With `len(KIND_NAMES)` copies each household carries every kind once.
    """
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
    """Return a fleet of rows with anomalies injected into the test nights, and the truth.

    `household_indices` `[R]` are places in `fleet`, one a row; about `injected_share` of a row's
    tested nights are injected into. Kinds take turns by household and copy. A missing half-hour
    stays missing, and a night stays as it was where nothing would show or readings are too few.
    """
    random = np.random.default_rng(seed)
    kwh = fleet.kwh[household_indices]
    kind_code = np.zeros(kwh.shape[:2], dtype=np.int8)
    is_tested = np.zeros(kwh.shape[:2], dtype=np.bool_)
    is_tested[:, test_nights] = np.isfinite(kwh[:, test_nights]).sum(axis=2) >= min_readings
    usual_daily_kwh = _median_daily_kwh(kwh)
    episodes = []
    for row, kind in enumerate(_assign_kinds(household_indices, random)):
        for first, n_nights in _draw_episodes(is_tested[row], kind, injected_share, random):
            nights = slice(first, first + n_nights)
            other = _draw_other_household(household_indices, row, random)
            other_kwh = _fill_gaps_with_mean(fleet.kwh[other, nights])
            before = kwh[row, nights]
            after = _inject_kind(before, kind, other_kwh, random)
            shows = is_visibly_changed(before, after, usual_daily_kwh[row])
            shows &= is_tested[row, nights]
            kwh[row, nights] = np.where(shows[:, None], after, before)
            kind_code[row, nights][shows] = 1 + KIND_NAMES.index(kind)
            if n_nights > 1 and shows.any():
                start, stop = np.flatnonzero(shows)[[0, -1]]
                episodes.append(
                    InjectedEpisode(row, first + int(start), int(stop - start) + 1, kind)
                )
    household_ids = [fleet.household_ids[h] for h in household_indices]
    condition_group = fleet.condition_group[household_indices]
    injected = Fleet(household_ids, fleet.nights, kwh, condition_group, fleet.conditions)
    return injected, GroundTruth(household_indices, is_tested, kind_code, tuple(episodes))


def _assign_kinds(household_indices: IntArray, random: RandomGenerator) -> list[str]:
    """Return the kind of each row: a household's copies take consecutive kinds of a drawn order."""
    order = random.permutation(len(KIND_NAMES))
    _, household, n_copies = np.unique(household_indices, return_inverse=True, return_counts=True)
    copy_number = np.empty(len(household_indices), dtype=np.int_)
    # Rows sorted by household: 0, 1, 2 ... of the first, then of the second.
    copy_number[np.argsort(household, kind="stable")] = np.concatenate(
        [np.arange(n) for n in n_copies]
    )
    turns = (household + copy_number) % len(KIND_NAMES)
    return [KIND_NAMES[order[turn]] for turn in turns]


def _draw_episodes(
    is_tested: BoolArray, kind: str, injected_share: float, random: RandomGenerator
) -> list[tuple[int, int]]:
    """Return where to inject into one row: first nights and lengths, disjoint."""
    places = np.flatnonzero(is_tested)
    target = injected_share * len(places)
    single_share = SINGLE_NIGHT_SHARE
    if kind in ONE_NIGHT_KINDS:
        single_share = 1.0
    if kind in GRADUAL_KINDS:
        single_share = 0.0
    drawn = []
    # An episode from the night before this one on ends with the last tested night.
    end_of_starts = places[-1] + 2 - EPISODE_NIGHTS if len(places) else 0
    has_room = len(places) and end_of_starts > places[0]
    if has_room and random.random() < (1 - single_share) * target / EPISODE_NIGHTS:
        first = int(random.integers(places[0], end_of_starts))
        drawn.append((first, EPISODE_NIGHTS))
        places = places[(places < first - 1) | (places > first + EPISODE_NIGHTS)]
    single = random.permutation(places)
    # The fraction of a night is drawn: 2.4 are two, and three in 40 % of the rows.
    single = single[: int(single_share * target + random.random())]
    return drawn + [(int(place), 1) for place in single]


def _draw_other_household(household_indices: IntArray, row: int, random: RandomGenerator) -> int:
    """Return another row's household, or the row's own if there is no other."""
    others = household_indices[household_indices != household_indices[row]]
    return int(random.choice(others)) if len(others) else int(household_indices[row])


def _inject_kind(
    profiles_kwh: Float32Array, kind: str, other_profiles_kwh: Float32Array, random: RandomGenerator
) -> Float32Array:
    """Return profiles `[L, 48]` with a kind injected; missing half-hours stay missing."""
    gapless = _fill_gaps_with_mean(profiles_kwh)
    after = quantize_to_meter(INJECTION_KINDS[kind](gapless, other_profiles_kwh, random))
    return np.where(np.isnan(profiles_kwh), np.float32(np.nan), after)


def _median_daily_kwh(kwh: Float32Array) -> Float32Array:
    """Return the median kWh `[R]` of the days that have any reading."""
    daily_kwh = np.nansum(kwh, axis=2)
    daily_kwh[np.isnan(kwh).all(axis=2)] = np.nan
    median, _ = median_and_mad(daily_kwh)
    return median.astype(np.float32)


def _fill_gaps_with_mean(profiles_kwh: Float32Array) -> Float32Array:
    """Return a copy of profiles `[L, 48]` with their mean where readings are missing."""
    is_present = np.isfinite(profiles_kwh)
    mean = profiles_kwh[is_present].mean() if is_present.any() else np.float32(0)
    return np.where(is_present, profiles_kwh, mean).astype(np.float32)
