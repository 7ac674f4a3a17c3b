"""Anomalies of a simulated fleet: which household carries which kind, on which nights."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from ml.evaluation import injections
from ml.evaluation.injections import (
    EPISODE_NIGHTS,
    RandomGenerator,
    is_visibly_changed,
    quantize_to_meter,
)
from ml.simulation.environment import Floats, Ints

RECENT_NIGHTS: Final = 10
"""Nights at the end of the period in which every other episode begins: the main job scores the last
nights and shows how well their anomalies were found."""
ANOMALOUS_HOUSEHOLD_SHARE: Final = 0.03
"""Share of the households that carry an episode: 167 of 5,567, enough to tell a recall. Chosen."""
MIN_DAILY_KWH: Final = 1.5
"""Least usual daily kWh of a household that carries one: below it hardly a kind would show."""
SINGLE_NIGHT_SHARE: Final = 0.5
"""Share of the episodes that last one night; others last 2 to 14."""
SIMULATED_KINDS: Final = (
    "scale_down",
    "zero_window",
    "stuck",
    "outage_catch_up",
    "spike",
    "added_baseload",
    "night_load",
    "clock_shift",
    "doubled",
    "ramp",
    "tenancy",
)
"""Kinds that a simulated fleet carries, in turn: 11 of the benchmark's 17 that differ most."""


@dataclass(frozen=True)
class SimulatedEpisode:
    """An anomaly of one household of a block, on the nights whose readings it changed."""

    household_index: int
    """Place of the household in the block."""
    night_indices: tuple[int, ...]
    kind: str


def inject_episodes(
    kwh: Floats, episode_numbers: range, random: RandomGenerator
) -> list[SimulatedEpisode]:
    """Inject the fleet's episodes with these numbers into a block `[n, D, 48]`, in place.

    Kinds take turns by number; every other episode begins within the last nights of the period,
    the others within its last third. Households where nothing would show are left alone, so fewer
    episodes may come back than there are numbers.
    """
    usual_daily_kwh = np.median(kwh.sum(axis=2), axis=1)
    candidates = random.permutation(np.flatnonzero(usual_daily_kwh >= MIN_DAILY_KWH))
    episodes = []
    for household, number in zip(candidates[: len(episode_numbers)], episode_numbers, strict=False):
        kind = SIMULATED_KINDS[number % len(SIMULATED_KINDS)]
        nights = _draw_nights(kwh.shape[1], kind, is_recent=number % 2 == 0, random=random)
        others = [h for h in range(len(kwh)) if h != household]
        other_kwh = kwh[random.choice(others or [household]), nights]
        before = kwh[household, nights]
        after = quantize_to_meter(
            injections.INJECTION_KINDS[kind](before.copy(), other_kwh.copy(), random)
        )
        shows = is_visibly_changed(before, after, usual_daily_kwh[household])
        kwh[household, nights] = np.where(shows[:, None], after, before)
        if shows.any():
            episodes.append(SimulatedEpisode(int(household), tuple(nights[shows].tolist()), kind))
    return episodes


def _draw_nights(n_nights: int, kind: str, is_recent: bool, random: RandomGenerator) -> Ints:
    """Return consecutive nights of an episode of this kind, within the last third of the period."""
    third = max(1, n_nights // 3)
    max_before_end = min(RECENT_NIGHTS, third) if is_recent else third
    first = int(n_nights - random.integers(1, 1 + max_before_end))
    length = 1
    if random.random() >= SINGLE_NIGHT_SHARE:
        length = int(random.integers(2, EPISODE_NIGHTS + 1))
    if kind in injections.ONE_NIGHT_KINDS:
        length = 1
    if kind in injections.GRADUAL_KINDS:
        # Half an episode before the end at the latest: a ramp needs nights to show.
        first = max(n_nights - third, min(first, n_nights - EPISODE_NIGHTS // 2))
        length = EPISODE_NIGHTS
    return np.arange(first, min(first + length, n_nights))
