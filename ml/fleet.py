"""The fleet: all households as one dense array, its usual levels and usable nights.

Training and scoring call the same functions, and every value of a night depends on that night
and on the nights before it alone, so a night computed in bulk equals the night computed by itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml.arrays import nan_mean, nan_median, rolling_windows
from ml.conditions import CONDITIONS, assign_condition_groups, build_conditions
from ml.schemas import HALF_HOURS, readings_as_array

LEVEL_NIGHTS: Final = 28
MIN_LEVEL_KWH: Final = 0.01
HOUSEHOLDS_PER_BATCH: Final = 64
"""Sorting the nights before each night takes 28 times the memory of the nights."""


@dataclass(frozen=True)
class Fleet:
    """Every registered household over consecutive nights."""

    household_ids: list[str]
    nights: list[date]
    kwh: NDArray[np.float32]
    """`[H, D, 48]` kWh per half-hour, NaN where missing."""
    condition_group: NDArray[np.int64]
    """`[H]` which of the groups of equal conditions a household is in."""
    conditions: NDArray[np.float32]
    """`[G, D, 15]` of each group in the order of `CONDITIONS`, NaN where unknown."""

    @cached_property
    def n_readings(self) -> NDArray[np.int16]:
        """Valid half-hours, `[H, D]`."""
        # A home at a time: a mask of the whole fleet would be a quarter of its memory.
        counts = [np.isfinite(home).sum(axis=1, dtype=np.int16) for home in self.kwh]
        return np.array(counts, dtype=np.int16).reshape(self.kwh.shape[:2])

    def get_condition(self, name: str) -> NDArray[np.float32]:
        """One of the conditions of every household and night, `[H, D]`."""
        return self.conditions[:, :, CONDITIONS.index(name)][self.condition_group]

    def select_households(self, households: NDArray[Any] | slice) -> "Fleet":
        """These households, by place or by a mask, over the same nights."""
        places = np.arange(len(self.household_ids))[households]
        ids = [self.household_ids[place] for place in places]
        kwh, group = self.kwh[households], self.condition_group[households]
        return Fleet(ids, self.nights, kwh, group, self.conditions)

    def select_nights(self, start: int, stop: int | None = None) -> "Fleet":
        """The same households from the night at place `start` on, up to `stop`."""
        part = slice(start, stop)
        kwh, conditions = self.kwh[:, part], self.conditions[:, part]
        return Fleet(self.household_ids, self.nights[part], kwh, self.condition_group, conditions)


@dataclass(frozen=True)
class ScaledFleet:
    """A fleet in units of each household's own level."""

    log_readings: NDArray[np.float32]
    """`[H, D, 48]` log(1 + kWh / level), NaN where missing."""
    level_kwh: NDArray[np.float32]
    """`[H, D]` kWh per half-hour that is usual for the household before this night."""


def build_fleet(
    household_nights: Iterable[pl.DataFrame],
    nights: list[date],
    households: pl.DataFrame,
    weather: pl.DataFrame,
    holidays: pl.DataFrame,
    tariffs: pl.DataFrame,
) -> Fleet:
    """Lay household-days, part by part, out by household and night; `nights` are consecutive.

    Households keep the order of the register; days of others or of other nights are left out.
    """
    ids = households.get_column("household_id")
    kwh = np.full((len(ids), len(nights), HALF_HOURS), np.nan, dtype=np.float32)
    for part in household_nights:
        _scatter_readings(kwh, part, nights, ids)
    known = build_conditions(nights, weather, holidays, tariffs)
    return Fleet(ids.to_list(), nights, kwh, assign_condition_groups(households), known)


def _scatter_readings(
    kwh: NDArray[np.float32],
    household_nights: pl.DataFrame,
    nights: list[date],
    household_ids: pl.Series,
) -> None:
    """Put days in their places in `kwh` `[H, D, 48]`."""
    within = household_nights.filter(
        pl.col("night").is_between(nights[0], nights[-1]),
        pl.col("household_id").is_in(household_ids.implode()),
    )
    h = within.get_column("household_id").cast(pl.Enum(household_ids)).to_physical().to_numpy()
    d = (within.get_column("night") - nights[0]).dt.total_days().to_numpy()
    kwh[h, d] = readings_as_array(within).to_numpy()


def scale_fleet(fleet: Fleet, min_readings: int) -> ScaledFleet:
    """Express readings in units of the household's level."""
    level = usual_levels_kwh(fleet, min_readings)
    return ScaledFleet(np.log1p(fleet.kwh / level[:, :, None]), level)


def usual_levels_kwh(fleet: Fleet, min_readings: int) -> NDArray[np.float32]:
    """What is usual for the household before each night, `[H, D]` kWh per half-hour.

    The median of the daily means over the `LEVEL_NIGHTS` before the night that hold at least
    `min_readings`; a household without any is measured by the night itself.
    """
    level = np.empty(fleet.kwh.shape[:2], dtype=np.float32)
    for first in range(0, len(level), HOUSEHOLDS_PER_BATCH):
        some = slice(first, first + HOUSEHOLDS_PER_BATCH)
        means = nan_mean(fleet.kwh[some])
        usable = np.where(fleet.n_readings[some] >= min_readings, means, np.nan)
        own = nan_median(rolling_windows(usable, LEVEL_NIGHTS))
        level[some] = np.fmax(np.where(np.isnan(own), means, own), MIN_LEVEL_KWH)
    return level


def count_usable_nights(fleet: Fleet, n_nights: int, min_readings: int) -> NDArray[np.int_]:
    """How many of the `nights` before each night hold at least `min_readings`, `[H, D]`."""
    usable = np.where(fleet.n_readings >= min_readings, 1.0, np.nan)
    return np.asarray(np.isfinite(rolling_windows(usable, n_nights)).sum(axis=-1))
