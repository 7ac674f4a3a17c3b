"""Conditions: calendar, weather, tariff and household, by name and in a fixed order.

Day of week, day off, season, temperature and humidity as the conditional autoencoder that the
project grew from had them, and price signal and affluence in place of its one-hot seasons. Names
and order are stored with each model version and compared when it is loaded.
"""

from collections.abc import Iterable
from datetime import date
from typing import Final

import holidays as calendars
import numpy as np
import polars as pl
from numpy.typing import NDArray

TIME_ZONE: Final = "Europe/London"
"""The local clock that people follow; stamps are UTC."""

WEEKDAY_CONDITIONS: Final = (
    "is_monday",
    "is_tuesday",
    "is_wednesday",
    "is_thursday",
    "is_friday",
    "is_saturday",
    "is_sunday",
)
NIGHT_CONDITIONS: Final = (
    *WEEKDAY_CONDITIONS,
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
"""Acorn groups (CACI) in their order of affluence; every other group is unknown, NaN."""
SIGNAL_BY_PRICE: Final = {"Low": -1.0, "Normal": 0.0, "High": 1.0}
"""The price levels of the trial's time-of-use tariff (3.99, 11.76, 67.20 pence a kWh) in order."""
DAYS_PER_YEAR: Final = 365.25


def build_night_conditions(
    nights: list[date], weather: pl.DataFrame, holidays: pl.DataFrame
) -> pl.DataFrame:
    """Return the conditions that all households share, a row a night.

    Columns `night` and `NIGHT_CONDITIONS`, null where the weather is unknown. A holiday is one of
    England's calendar or of the delivered table (`_collect_bank_holidays`).
    """
    days_off = _collect_bank_holidays({night.year for night in nights}, set(holidays["day"]))
    night = pl.col("night")
    noon = night.cast(pl.Datetime("us")).dt.offset_by("12h").dt.replace_time_zone("UTC")
    turn = 2 * np.pi * (night.dt.ordinal_day() - 1) / DAYS_PER_YEAR
    hours = weather.group_by(night=pl.col("ts_utc").dt.date()).agg(
        pl.col("temperature_c", "humidity").mean()
    )
    frame = pl.DataFrame({"night": nights}, schema={"night": pl.Date})
    return (
        frame.with_columns(
            *(
                (night.dt.weekday() == day).alias(name)
                for day, name in enumerate(WEEKDAY_CONDITIONS, start=1)
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
    """Return the mean price signal of each night, `[D]`: -1 always low, 0 normal, 1 always high.

    A night without prices is normal, 0.
    """
    signal = (
        pl.col("price").cast(pl.String).replace_strict(SIGNAL_BY_PRICE, return_dtype=pl.Float32)
    )
    means = tariffs.group_by(night=pl.col("ts_utc").dt.date()).agg(signal=signal.mean())
    frame = pl.DataFrame({"night": nights}, schema={"night": pl.Date})
    with_signal = frame.join(means, on="night", how="left", maintain_order="left")
    return with_signal["signal"].fill_null(0.0).to_numpy().astype(np.float32)


def assign_condition_groups(households: pl.DataFrame) -> NDArray[np.int64]:
    """Return the condition group of each household, `[H]`: its place in `build_conditions`.

    Groups are Acorn groups in the order of `AFFLUENCE_BY_ACORN_GROUP`, unknown last, each on the
    standard and on the time-of-use tariff.
    """
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
    """Return the conditions of every group and night, `[G, D, 15]` in the order of `CONDITIONS`.

    Kept once a group, not once a household: 277 MB less of the full trial. NaN where unknown.
    """
    affluence = np.array([*AFFLUENCE_BY_ACORN_GROUP.values(), np.nan])
    by_name = {
        name: np.broadcast_to(values, (len(affluence), 2, len(nights)))
        for name, values in build_night_conditions(nights, weather, holidays)
        .select(NIGHT_CONDITIONS)
        .to_dict()
        .items()
    }
    standard_and_time_of_use = np.zeros((2, len(nights)), dtype=np.float32)
    standard_and_time_of_use[1] = compute_price_signals(nights, tariffs)
    by_name["price_signal"] = np.broadcast_to(
        standard_and_time_of_use, (len(affluence), 2, len(nights))
    )
    by_name["affluence"] = np.broadcast_to(
        affluence[:, None, None], (len(affluence), 2, len(nights))
    )
    stacked = np.stack([by_name[name] for name in CONDITIONS], axis=-1).astype(np.float32)
    return stacked.reshape(-1, len(nights), len(CONDITIONS))


def _collect_bank_holidays(years: Iterable[int], delivered_days: Iterable[date]) -> set[date]:
    """Return the bank holidays of England's calendar and those that were delivered.

    A delivered day whose day and month, swapped, make a bank holiday was written the other way
    round, as 8 of the 25 that came with the trial's data are: the calendar has it already.
    """
    calendar = calendars.country_holidays("GB", subdiv="ENG", years=sorted(years))
    return set(calendar) | {
        day for day in delivered_days if _swap_day_and_month(day) not in calendar
    }


def _swap_day_and_month(day: date) -> date:
    return day.replace(month=day.day, day=day.month) if day.day <= 12 else day
