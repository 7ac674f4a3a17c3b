"""From household-days to what a model reads: the fleet as one array, its conditions, its scale.

Training and scoring call the same functions, and every value of a night depends on that night
and on the nights before it alone, so a night computed in bulk equals the night computed by itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any, Final

import holidays as calendars
import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml.schemas import HALF_HOURS, readings_as_array

FloatArray = NDArray[np.floating[Any]]

TIME_ZONE: Final = "Europe/London"
LEVEL_NIGHTS: Final = 28
MIN_LEVEL_KWH: Final = 0.01
HOUSEHOLDS_PER_BATCH: Final = 64
"""Sorting the nights before each night takes 28 times the memory of the nights."""

NIGHT_CONDITIONS: Final = (
    "is_monday",
    "is_tuesday",
    "is_wednesday",
    "is_thursday",
    "is_friday",
    "is_saturday",
    "is_sunday",
    "is_day_off",  # weekend or bank holiday
    "is_summer_time",  # people follow the local clock, stamps are UTC
    "season_sin",  # position in the year, without steps at a season's edge
    "season_cos",
    "temperature_c",  # mean of the day's hours
    "humidity",  # mean of the day's hours, a share
)
HOUSEHOLD_CONDITIONS: Final = (
    "price_signal",  # mean of -1 low, 0 normal, 1 high; 0 on the standard tariff
    "affluence",  # of the Acorn group; unknown of others
)
CONDITIONS: Final = NIGHT_CONDITIONS + HOUSEHOLD_CONDITIONS
AFFLUENCE_BY_ACORN_GROUP: Final = {"Affluent": 1.0, "Comfortable": 0.0, "Adversity": -1.0}


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


def build_night_conditions(
    nights: list[date], weather: pl.DataFrame, holidays: pl.DataFrame
) -> pl.DataFrame:
    """The conditions that all households share: `night` and `NIGHT_CONDITIONS`, a row a night."""
    days_off = _collect_bank_holidays({night.year for night in nights}, set(holidays["day"]))
    night = pl.col("night")
    noon = night.cast(pl.Datetime("us")).dt.offset_by("12h").dt.replace_time_zone("UTC")
    turn = 2 * np.pi * (night.dt.ordinal_day() - 1) / 365.25
    hours = weather.group_by(night=pl.col("ts_utc").dt.date()).agg(
        pl.col("temperature_c", "humidity").mean()
    )
    frame = pl.DataFrame({"night": nights}, schema={"night": pl.Date})
    return (
        frame.with_columns(
            *(
                (night.dt.weekday() == day).alias(name)
                for day, name in enumerate(NIGHT_CONDITIONS[:7], start=1)
            ),
            is_day_off=(night.dt.weekday() >= 6) | night.is_in(sorted(days_off)),
            is_summer_time=noon.dt.convert_time_zone(TIME_ZONE).dt.dst_offset().dt.total_hours(),
            season_sin=turn.sin(),
            season_cos=turn.cos(),
        )
        .join(hours, on="night", how="left", maintain_order="left")
        .select("night", pl.col(NIGHT_CONDITIONS).cast(pl.Float32))
    )


def compute_price_signals(nights: list[date], tariffs: pl.DataFrame) -> NDArray[np.float32]:
    """Mean price signal of each night, `[D]`: -1 always low, 0 normal, 1 always high."""
    signal = (
        pl.col("price")
        .cast(pl.String)
        .replace_strict({"Low": -1.0, "Normal": 0.0, "High": 1.0}, return_dtype=pl.Float32)
    )
    means = tariffs.group_by(night=pl.col("ts_utc").dt.date()).agg(signal=signal.mean())
    frame = pl.DataFrame({"night": nights}, schema={"night": pl.Date})
    joined = frame.join(means, on="night", how="left", maintain_order="left")
    return joined["signal"].fill_null(0.0).to_numpy().astype(np.float32)


def assign_condition_groups(households: pl.DataFrame) -> NDArray[np.int64]:
    """Whose `conditions` each household has, `[H]`: by Acorn group and tariff."""
    acorn = households["acorn_group"].replace_strict(
        list(AFFLUENCE_BY_ACORN_GROUP),
        range(len(AFFLUENCE_BY_ACORN_GROUP)),
        default=len(AFFLUENCE_BY_ACORN_GROUP),
        return_dtype=pl.Int64,
    )
    is_time_of_use = (households["tariff"] == "ToU").fill_null(value=False)
    return (2 * acorn + is_time_of_use).to_numpy(writable=True)


def build_conditions(
    nights: list[date], weather: pl.DataFrame, holidays: pl.DataFrame, tariffs: pl.DataFrame
) -> NDArray[np.float32]:
    """The conditions of every group and night, `[G, D, 15]` in the order of `CONDITIONS`."""
    affluence = np.array([*AFFLUENCE_BY_ACORN_GROUP.values(), np.nan])
    result = np.zeros((len(affluence), 2, len(nights), len(CONDITIONS)), dtype=np.float32)
    shared = build_night_conditions(nights, weather, holidays).select(NIGHT_CONDITIONS).to_numpy()
    result[..., : len(NIGHT_CONDITIONS)] = shared
    result[:, 1, :, -2] = compute_price_signals(nights, tariffs)
    result[..., -1] = affluence[:, None, None]
    return result.reshape(-1, *result.shape[2:])


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
        means = _nan_mean(fleet.kwh[some])
        usable = np.where(fleet.n_readings[some] >= min_readings, means, np.nan)
        own = _nan_median(rolling_windows(usable, LEVEL_NIGHTS))
        level[some] = np.fmax(np.where(np.isnan(own), means, own), MIN_LEVEL_KWH)
    return level


def count_usable_nights(fleet: Fleet, n_nights: int, min_readings: int) -> NDArray[np.int_]:
    """How many of the `nights` before each night hold at least `min_readings`, `[H, D]`."""
    usable = np.where(fleet.n_readings >= min_readings, 1.0, np.nan)
    return np.asarray(np.isfinite(rolling_windows(usable, n_nights)).sum(axis=-1))


def rolling_windows(values: FloatArray, n_nights: int) -> FloatArray:
    """The `nights` values before each night, `[H, D]` to `[H, D, nights]`, NaN before the first."""
    padded = np.pad(values, ((0, 0), (n_nights, 0)), constant_values=np.nan)
    return np.lib.stride_tricks.sliding_window_view(padded, n_nights, axis=1)[:, :-1]


def pad_left(values: FloatArray, n_nights: int) -> FloatArray:
    """Figures of the nights from place `start` on, `[H, D - start]` to `[H, D]`, NaN before."""
    return np.pad(values, ((0, 0), (n_nights, 0)), constant_values=np.nan)


def median_and_mad(windows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Median and median absolute deviation over the last axis, NaN left out, NaN where empty."""
    median = _nan_median(windows)
    return median, _nan_median(np.abs(windows - median[..., None]))


def _nan_median(windows: FloatArray) -> FloatArray:
    """As `numpy.nanmedian` over the last axis, by one sort; NaN sorts last."""
    ordered = np.sort(windows, axis=-1)
    count = np.isfinite(windows).sum(axis=-1, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=-1)
    high = np.take_along_axis(ordered, np.minimum(count // 2, windows.shape[-1] - 1), axis=-1)
    return ((low + high) / 2)[..., 0]


def _nan_mean(kwh: FloatArray) -> FloatArray:
    """Mean over the half-hours that are there, NaN where none is."""
    count = np.isfinite(kwh).sum(axis=-1)
    total = np.nansum(kwh, axis=-1, dtype=np.float64)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _collect_bank_holidays(years: Iterable[int], delivered_days: Iterable[date]) -> set[date]:
    """England's calendar and what was delivered beside it.

    A delivered day whose day and month, swapped, make a bank holiday was written the other way
    round, as 8 of the 25 that came with the trial's data are: the calendar has it already.
    """
    calendar = calendars.country_holidays("GB", subdiv="ENG", years=sorted(years))
    return set(calendar) | {
        day for day in delivered_days if _swap_day_and_month(day) not in calendar
    }


def _swap_day_and_month(day: date) -> date:
    return day.replace(month=day.day, day=day.month) if day.day <= 12 else day
