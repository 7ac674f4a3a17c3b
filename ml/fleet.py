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
from pydantic import BaseModel, ConfigDict, Field

from ml.arrays import nan_mean, nan_median, rolling_windows
from ml.conditions import CONDITIONS, assign_condition_groups, build_conditions
from ml.schemas import HALF_HOURS, readings_as_array

LEVEL_NIGHTS: Final = 28
"""Nights before a night that give its household's usual level and habits: four of each weekday."""
HOUSEHOLDS_PER_BATCH: Final = 64
"""Households whose levels are computed at once: sorting the nights before each night takes 28
times the memory of the nights."""


class LevelConfig(BaseModel):
    """Numbers of a household's usual level, the unit that readings are compared in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level_nights: int = Field(
        LEVEL_NIGHTS,
        ge=1,
        description="Nights before a night whose median daily mean is the usual level. Four weeks "
        "hold every weekday four times and follow the season.",
    )
    min_level_kwh: float = Field(
        0.01,
        gt=0,
        description="Least usual level, kWh per half-hour (20 W): below it a household is as good "
        "as empty, and a level of 0 would divide by 0. Chosen.",
    )


DEFAULT_LEVEL_CONFIG: Final = LevelConfig()


@dataclass(frozen=True)
class Fleet:
    """All households as one dense array over consecutive nights, and their conditions."""

    household_ids: list[str]
    nights: list[date]
    kwh: NDArray[np.float32]
    """`[H, D, 48]` kWh per half-hour, NaN where missing."""
    condition_group: NDArray[np.int64]
    """`[H]` the household's place in the first axis of `conditions`."""
    conditions: NDArray[np.float32]
    """`[G, D, 15]` of each condition group, in the order of `CONDITIONS`, NaN where unknown."""

    @cached_property
    def n_readings(self) -> NDArray[np.int16]:
        """Readings that each household-night holds, `[H, D]` from 0 to 48."""
        # A household at a time: a mask of the whole fleet would be a quarter of its memory.
        counts = [np.isfinite(profiles).sum(axis=1, dtype=np.int16) for profiles in self.kwh]
        return np.array(counts, dtype=np.int16).reshape(self.kwh.shape[:2])

    def get_condition(self, name: str) -> NDArray[np.float32]:
        """Return the condition of this name for every household and night, `[H, D]`."""
        return self.conditions[:, :, CONDITIONS.index(name)][self.condition_group]

    def select_households(self, households: NDArray[Any] | slice) -> "Fleet":
        """Return these households, by place or by a mask `[H]`, over the same nights."""
        places = np.arange(len(self.household_ids))[households]
        ids = [self.household_ids[place] for place in places]
        return Fleet(
            ids,
            self.nights,
            self.kwh[households],
            self.condition_group[households],
            self.conditions,
        )

    def select_nights(self, start: int, stop: int | None = None) -> "Fleet":
        """Return the same households from the night at place `start` on, up to `stop`; views."""
        part = slice(start, stop)
        return Fleet(
            self.household_ids,
            self.nights[part],
            self.kwh[:, part],
            self.condition_group,
            self.conditions[:, part],
        )


def build_fleet(
    household_nights: Iterable[pl.DataFrame],
    nights: list[date],
    households: pl.DataFrame,
    weather: pl.DataFrame,
    holidays: pl.DataFrame,
    tariffs: pl.DataFrame,
) -> Fleet:
    """Return the fleet of the register's households, in its order, over consecutive `nights`.

    `household_nights` are frames of the lake, which are laid out one after another so that only
    one is in memory beside the fleet. Rows of other households or nights are left out.
    """
    household_ids = households.get_column("household_id")
    shape = (len(household_ids), len(nights), HALF_HOURS)
    kwh = np.full(shape, np.nan, dtype=np.float32)
    for part in household_nights:
        _scatter_readings(kwh, part, nights, household_ids)
    return Fleet(
        household_ids.to_list(),
        nights,
        kwh,
        assign_condition_groups(households),
        build_conditions(nights, weather, holidays, tariffs),
    )


def _scatter_readings(
    kwh: NDArray[np.float32],
    household_nights: pl.DataFrame,
    nights: list[date],
    household_ids: pl.Series,
) -> None:
    """Write profiles to their places in `kwh` `[H, D, 48]`."""
    within = household_nights.filter(
        pl.col("night").is_between(nights[0], nights[-1]),
        pl.col("household_id").is_in(household_ids.implode()),
    )
    # An Enum's physical value is the household's place in the register.
    h = within.get_column("household_id").cast(pl.Enum(household_ids)).to_physical().to_numpy()
    d = (within.get_column("night") - nights[0]).dt.total_days().to_numpy()
    kwh[h, d] = readings_as_array(within).to_numpy()


def usual_levels_kwh(
    fleet: Fleet, min_readings: int, config: LevelConfig = DEFAULT_LEVEL_CONFIG
) -> NDArray[np.float32]:
    """Return the household's usual level before each night, `[H, D]` kWh per half-hour.

    The median of the daily means over the `level_nights` before the night that hold at least
    `min_readings`; a household without any is measured by the night itself.
    """
    level_kwh = np.empty(fleet.kwh.shape[:2], dtype=np.float32)
    for first in range(0, len(level_kwh), HOUSEHOLDS_PER_BATCH):
        batch = slice(first, first + HOUSEHOLDS_PER_BATCH)
        daily_mean = nan_mean(fleet.kwh[batch])
        usable_mean = np.where(fleet.n_readings[batch] >= min_readings, daily_mean, np.nan)
        usual = nan_median(rolling_windows(usable_mean, config.level_nights))
        usual_or_own = np.where(np.isnan(usual), daily_mean, usual)
        level_kwh[batch] = np.fmax(usual_or_own, config.min_level_kwh)
    return level_kwh


def count_usable_nights(fleet: Fleet, n_nights: int, min_readings: int) -> NDArray[np.int_]:
    """Return how many of the `n_nights` before each night hold `min_readings` or more, `[H, D]`."""
    is_usable = np.where(fleet.n_readings >= min_readings, 1.0, np.nan)
    return np.asarray(np.isfinite(rolling_windows(is_usable, n_nights)).sum(axis=-1))
