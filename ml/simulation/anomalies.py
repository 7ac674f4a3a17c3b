"""Anomalies that a simulated fleet carries: what goes wrong at which home, on which nights."""

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
ANOMALOUS_HOUSEHOLD_SHARE: Final = 0.03
SIMULATED_KINDS: Final = (
    *("scale_down", "zero_window", "stuck", "outage_catch_up", "spike", "added_baseload"),
    *("night_load", "clock_shift", "doubled", "ramp", "tenancy"),
)


@dataclass(frozen=True)
class SimulatedEpisode:
    """What went wrong at one home of a block, on the nights whose readings it changed."""

    household_index: int
    night_indices: tuple[int, ...]
    kind: str


def inject_episodes(
    kwh: Floats, episode_numbers: range, random: RandomGenerator
) -> list[SimulatedEpisode]:
    """Plant the fleet's episodes `numbers` in a block [n, D, 48], in place.

    Kinds take turns by number; every other episode begins within the last nights of the period,
    the others within its last third. Homes where nothing would show are left alone.
    """
    usual = np.median(kwh.sum(axis=2), axis=1)
    homes = random.permutation(np.flatnonzero(usual >= 1.5))[: len(episode_numbers)]
    planted = []
    for home, number in zip(homes, episode_numbers, strict=False):
        kind = SIMULATED_KINDS[number % len(SIMULATED_KINDS)]
        days = _draw_nights(kwh.shape[1], kind, is_recent=number % 2 == 0, random=random)
        other = kwh[random.choice([h for h in range(len(kwh)) if h != home] or [home]), days]
        changed = quantize_to_meter(
            injections.INJECTION_KINDS[kind](kwh[home, days].copy(), other.copy(), random)
        )
        shows = is_visibly_changed(kwh[home, days], changed, usual[home])
        kwh[home, days] = np.where(shows[:, None], changed, kwh[home, days])
        if shows.any():
            planted.append(SimulatedEpisode(int(home), tuple(days[shows].tolist()), kind))
    return planted


def _draw_nights(n_nights: int, kind: str, is_recent: bool, random: RandomGenerator) -> Ints:
    third = max(1, n_nights // 3)
    first = int(
        n_nights - random.integers(1, 1 + (min(RECENT_NIGHTS, third) if is_recent else third))
    )
    length = 1 if random.random() < 0.5 else int(random.integers(2, EPISODE_NIGHTS + 1))
    if kind in injections.ONE_NIGHT_KINDS:
        length = 1
    if kind in injections.GRADUAL_KINDS:
        first, length = (
            max(n_nights - third, min(first, n_nights - EPISODE_NIGHTS // 2)),
            EPISODE_NIGHTS,
        )
    return np.arange(first, min(first + length, n_nights))
