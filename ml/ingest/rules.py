"""Delivered rows become household-days; a row that breaks a rule is set aside under its name."""

from collections.abc import Iterable
from datetime import datetime
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml.schemas import HALF_HOURS, RULES

Indices = NDArray[np.int64]
Readings = NDArray[np.float32]

HALF_HOUR_US: Final = 30 * 60 * 1_000_000
# What meters and their collectors write for "no reading": the largest 32-bit counts, in Wh or kWh.
SENTINELS: Final = (4294967.295, 2147483.647, 4294967295.0, 2147483647.0)
EARLIEST: Final = datetime(2000, 1, 1)
LATEST: Final = datetime(2099, 12, 31, 23, 30)
RULE: Final = pl.Enum(RULES)
# A table of cells is laid out densely up to this size, found by sorting beyond it.
MOST_CELLS: Final = 50_000_000


def violations(supply_limit_kwh: float) -> dict[str, pl.Expr]:
    """The rules that one row can break by itself, the first broken one counts."""
    kwh, ts = pl.col("kwh"), pl.col("ts_utc")
    sentinels = [kwh.cast(pl.Float32) == pl.lit(value, pl.Float32) for value in SENTINELS]
    return {
        "null": pl.col("is_null"),
        "not_a_number": kwh.is_null() | ~kwh.is_finite(),
        "sentinel": pl.any_horizontal(sentinels),
        "bad_timestamp": ts.is_null() | ~ts.is_between(EARLIEST, LATEST),
        "off_grid": ts.to_physical() % HALF_HOUR_US != 0,
        "negative": kwh < 0,
        "above_limit": kwh > supply_limit_kwh,
        "no_household": pl.col("household_id").is_null(),
    }


def sift(rows: pl.DataFrame, supply_limit_kwh: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split rows into those that keep every rule and those set aside, with the rule."""
    broken = violations(supply_limit_kwh)
    is_bad = rows.select(pl.any_horizontal(*broken.values()).fill_null(value=False)).to_series()
    first = [pl.when(test).then(pl.lit(rule, RULE)) for rule, test in broken.items()]
    bad = rows.filter(is_bad).select(
        "household_id", "ts_utc", pl.col("value").cast(pl.String), pl.coalesce(first).alias("rule")
    )
    return (rows.filter(~is_bad) if bad.height else rows), bad


def household_days(good: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Household-days [48, NaN where missing] of good rows, and the rows whose half-hour was taken.

    Of several rows for one half-hour the largest reading is laid down, so row order is no matter.
    """
    household, names = _households(good.get_column("household_id"))
    stamp = good.get_column("ts_utc").to_physical().to_numpy() // HALF_HOUR_US
    kwh = good.get_column("kwh").cast(pl.Float32).to_numpy() + np.float32(0)  # -0 is 0
    day = stamp // HALF_HOURS
    first = int(day.min())
    days, day_index = _compact(day - first, int(day.max()) - first + 1)
    cells, row = _compact(day_index * len(names) + household, len(days) * len(names))
    cell = row * HALF_HOURS + stamp % HALF_HOURS
    flat, again = _lay(cell, kwh, len(cells) * HALF_HOURS)
    laid = pl.DataFrame(
        {
            "night": (days[cells // len(names)] + first).astype(np.int32),
            "household_id": names.gather(cells % len(names)),
            "kwh": flat.reshape(-1, HALF_HOURS),
        }
    )
    taken = good[again].select(
        "household_id", "ts_utc", pl.col("value").cast(pl.String), pl.col("kwh").cast(pl.Float32)
    )
    return laid.with_columns(pl.col("night").cast(pl.Date)), taken


def _lay(cell: Indices, kwh: Readings, size: int) -> tuple[Readings, Indices]:
    """Lay readings into cells; give back the cells and the rows whose cell another row holds."""
    flat = np.full(size, np.nan, dtype=np.float32)
    flat[cell] = kwh
    if np.count_nonzero(~np.isnan(flat)) == len(cell):
        return flat, np.empty(0, dtype=np.int64)
    crowded = np.flatnonzero(np.bincount(cell, minlength=size)[cell] > 1)
    crowded = crowded[np.lexsort((kwh[crowded], cell[crowded]))]
    is_last = np.append(cell[crowded][1:] != cell[crowded][:-1], True)
    flat[cell[crowded[is_last]]] = kwh[crowded[is_last]]
    return flat, crowded[~is_last]


def _compact(codes: Indices, size: int) -> tuple[Indices, Indices]:
    """The distinct codes in order, and each code's place among them."""
    if size > MOST_CELLS:
        return np.unique(codes, return_inverse=True)
    present = np.zeros(size, dtype=bool)
    present[codes] = True
    place = np.cumsum(present) - 1
    return np.flatnonzero(present), place[codes]


def _households(ids: pl.Series) -> tuple[Indices, pl.Series]:
    """Each row's place among the sorted distinct households; by runs, as most files are sorted."""
    runs = ids.rle()
    values = runs.struct.field("value")
    names = values.unique().sort()
    codes = values.cast(pl.Enum(names)).to_physical().to_numpy()
    return np.repeat(codes.astype(np.int64), runs.struct.field("len").to_numpy()), names


def spans(days: pl.DataFrame) -> pl.DataFrame:
    """Each household's first and last stamp in household-days (NaN where missing)."""
    is_read = ~np.isnan(days.get_column("kwh").to_numpy())
    first, last = is_read.argmax(axis=1), HALF_HOURS - 1 - is_read[:, ::-1].argmax(axis=1)
    day = pl.col("night").cast(pl.Datetime("us"))
    stamped = days.select(
        "household_id",
        (day + pl.lit(pl.Series(first)) * pl.duration(minutes=30)).alias("first_ts_utc"),
        (day + pl.lit(pl.Series(last)) * pl.duration(minutes=30)).alias("last_ts_utc"),
    )
    return widest([stamped])


def widest(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """Each household's first and last stamp over several spans."""
    every = pl.concat(parts).group_by("household_id")
    return every.agg(pl.min("first_ts_utc"), pl.max("last_ts_utc")).sort("household_id")


def about(good: pl.DataFrame, columns: Iterable[str]) -> pl.DataFrame:
    """What good rows say of their households besides readings: one row a household."""
    starts = good.filter(pl.col("household_id").ne_missing(pl.col("household_id").shift()))
    return starts.group_by("household_id").agg(pl.max(*columns)).sort("household_id")
