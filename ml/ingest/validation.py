"""Delivered rows become household-days; a row that breaks a rule is set aside under its name."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml.ingest.timestamps import parse_timestamps, strip_text
from ml.schemas import HALF_HOURS, QUARANTINE_RULES

Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]
Codes = NDArray[np.int32]
Readings = NDArray[np.float32]

HALF_HOUR_US: Final = 30 * 60 * 1_000_000
# What meters and their collectors write for "no reading": the largest 32-bit counts, in Wh or kWh.
SENTINEL_READINGS: Final = (4294967.295, 2147483.647, 4294967295.0, 2147483647.0)
EARLIEST_TIMESTAMP: Final = datetime(2000, 1, 1)
LATEST_TIMESTAMP: Final = datetime(2099, 12, 31, 23, 30)
NULL_TEXTS: Final = ("Null", "null", "NULL")
RULE_DTYPE: Final = pl.Enum(QUARANTINE_RULES)
# As many household-days may be laid out empty.
MAX_EMPTY_HOUSEHOLD_NIGHTS: Final = 1_000_000


def _build_row_rules(supply_limit_kwh: float) -> list[tuple[str, pl.Expr]]:
    """The rules that one row can break by itself, the first broken one counts."""
    kwh, ts = pl.col("kwh"), pl.col("ts_utc")
    sentinels = [kwh.cast(pl.Float32) == pl.lit(value, pl.Float32) for value in SENTINEL_READINGS]
    return [
        ("null", pl.col("value").is_null() | pl.col("value").is_in(NULL_TEXTS)),
        ("not_a_number", kwh.is_null() | ~kwh.is_finite()),
        ("sentinel", pl.any_horizontal(sentinels)),
        ("bad_timestamp", ts.is_null() | ~ts.is_between(EARLIEST_TIMESTAMP, LATEST_TIMESTAMP)),
        ("off_grid", ts.to_physical() % HALF_HOUR_US != 0),
        ("negative", kwh < 0),
        ("above_limit", kwh > supply_limit_kwh),
        ("no_household", pl.col("household_id").is_null()),
    ]


def _derive_columns(supply_limit_kwh: float) -> list[pl.Expr]:
    """`half_hour` since 1970, `kwh` as Float32, and whether plain arithmetic passes the row.

    Nearly all rows are `is_plain` and keep every rule; the others are judged rule by rule.
    """
    ts_us, kwh = pl.col("ts_utc").to_physical(), pl.col("kwh")
    half_hour = ts_us // HALF_HOUR_US
    is_plain = (
        (half_hour * HALF_HOUR_US == ts_us)
        & pl.col("ts_utc").is_between(EARLIEST_TIMESTAMP, LATEST_TIMESTAMP)
        & (kwh >= 0)
        & (kwh <= min(supply_limit_kwh, min(SENTINEL_READINGS) - 1))
    )
    return [
        half_hour.cast(pl.Int32, strict=False).fill_null(0).alias("epoch_half_hour"),
        is_plain.fill_null(value=False).alias("is_plain"),
        kwh.cast(pl.Float32).fill_null(0).alias("reading"),
    ]


@dataclass(frozen=True)
class ValidatedRows:
    """Delivered rows `[n]`: which keep every rule, and what was set aside."""

    rows: pl.DataFrame
    household_ids: pl.Series
    """The sorted distinct households."""
    is_valid: Bools
    household_code: Codes
    """Of each good row, its place in `names`."""
    epoch_half_hour: Codes
    """Of each good row, in half-hours since 1970."""
    kwh: Readings
    """Of each good row."""
    quarantined_rows: pl.DataFrame
    """The rows that were set aside, with the rule."""

    def take_delivered_rows(self, positions: Indices) -> pl.DataFrame:
        """Good rows as delivered, by their places among the good ones."""
        lost = np.flatnonzero(~self.is_valid)
        return self.rows[
            positions + np.searchsorted(lost - np.arange(len(lost)), positions, "right")
        ]


def validate_rows(delivered_rows: pl.DataFrame, supply_limit_kwh: float) -> ValidatedRows:
    """Split rows into those that keep every rule and those set aside, with the rule."""
    stamped = delivered_rows.with_columns(
        parse_timestamps(delivered_rows.get_column("timestamp")).alias("ts_utc")
    )
    measured = stamped.lazy().with_columns(*_derive_columns(supply_limit_kwh))
    rows = measured.collect(engine="streaming")  # a piece at a time stays in a core's cache
    names, household = _encode_households(rows.get_column("household_id"))
    is_good = rows.get_column("is_plain").to_numpy() & (household >= 0)
    odd = np.flatnonzero(~is_good)
    first = [
        pl.when(test).then(pl.lit(rule, RULE_DTYPE))
        for rule, test in _build_row_rules(supply_limit_kwh)
    ]
    suspects = rows[odd].with_columns(strip_text("household_id"), strip_text("value"))
    judged = suspects.with_columns(rule=pl.coalesce(first))
    is_good[odd] = judged.get_column("rule").is_null().to_numpy()
    bad = judged.filter(pl.col("rule").is_not_null()).select(
        "household_id", "ts_utc", "value", "rule"
    )
    half_hour, kwh = (rows.get_column(name).to_numpy() for name in ("epoch_half_hour", "reading"))
    good = is_good if bad.height else slice(None)
    return ValidatedRows(rows, names, is_good, household[good], half_hour[good], kwh[good], bad)


def build_household_nights(validated: ValidatedRows) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Household-days [48, NaN where missing] of good rows, and the rows whose half-hour was taken.

    Both with their `month`, a month's together. Of several rows for one half-hour the largest
    reading is laid down, so row order is no matter.
    """
    first = int(validated.epoch_half_hour.min()) // HALF_HOURS
    days = int(validated.epoch_half_hour.max()) // HALF_HOURS - first + 1
    found, cell = _locate_cells(validated, first, days)
    flat, again = _scatter_readings(cell, validated.kwh, len(found) * HALF_HOURS)
    kwh = flat.reshape(-1, HALF_HOURS)
    there = ~np.isnan(kwh).all(axis=1)
    laid = pl.DataFrame(
        {
            "night": pl.Series(found[there] % days + first).cast(pl.Int32).cast(pl.Date),
            "household_id": validated.household_ids.gather(found[there] // days),
            "kwh": kwh[there],
        }
    )
    taken = validated.take_delivered_rows(again).select(
        strip_text("household_id"),
        pl.Series("ts_utc", validated.epoch_half_hour[again] * np.int64(HALF_HOUR_US)).cast(
            pl.Datetime("us")
        ),
        pl.col("value").cast(pl.String),
        pl.Series("kwh", validated.kwh[again]),
    )
    return _sort_by_month(laid, "night"), _sort_by_month(taken, "ts_utc")


def _sort_by_month(frame: pl.DataFrame, time_column: str) -> pl.DataFrame:
    day = frame.get_column(time_column).cast(pl.Date)
    months = frame.with_columns(day.dt.month_start().alias("month"))
    return months.sort("month", maintain_order=True)


def _locate_cells(
    validated: ValidatedRows, first_day: int, n_days: int
) -> tuple[Indices, Codes | Indices]:
    """Household-days as household * days + day, and in which half-hour of them each row lies.

    Every one that there might be, in a table by household, if that is not far more than there are.
    """
    size = len(validated.household_ids) * n_days
    if size <= MAX_EMPTY_HOUSEHOLD_NIGHTS + len(validated.kwh) // HALF_HOURS:
        width = _smallest_int_type(size * HALF_HOURS)
        start = validated.household_code.astype(width) * (n_days * HALF_HOURS)
        return np.arange(size), start + (validated.epoch_half_hour - first_day * HALF_HOURS)
    day, slot = np.divmod(validated.epoch_half_hour - first_day * HALF_HOURS, HALF_HOURS)
    code = validated.household_code.astype(np.int64) * n_days + day
    found, row = np.unique(code, return_inverse=True)
    return found, row * HALF_HOURS + slot


def _scatter_readings(
    cell: Codes | Indices, kwh: Readings, n_cells: int
) -> tuple[Readings, Indices]:
    """Lay readings into cells; give back the cells and the rows whose cell another row holds."""
    flat = np.full(n_cells, np.nan, dtype=np.float32)
    flat[cell] = kwh
    flat += 0  # -0 becomes 0
    crowded = _find_colliding_rows(cell, n_cells)
    crowded = crowded[np.lexsort((kwh[crowded], cell[crowded]))]
    is_last = np.append(cell[crowded][1:] != cell[crowded][:-1], True)[: len(crowded)]
    flat[cell[crowded[is_last]]] = kwh[crowded[is_last]] + 0
    return flat, crowded[~is_last]


def _find_colliding_rows(cell: Codes | Indices, n_cells: int) -> Indices:
    """The rows that share one of `size` cells with another; where they are sorted, neighbours."""
    if (cell[1:] >= cell[:-1]).all():
        again = np.flatnonzero(cell[1:] == cell[:-1])
        return np.union1d(again, again + 1)
    row = np.arange(len(cell), dtype=_smallest_int_type(len(cell)))
    holder = np.empty(n_cells, dtype=row.dtype)
    holder[cell] = row  # one of those that share a cell
    again = np.flatnonzero(holder[cell] != row)
    return np.union1d(again, holder[cell[again]])


def _smallest_int_type(max_value: int) -> type[np.signedinteger[Any]]:
    """The type that counts up to `size` in the least memory."""
    return np.int32 if max_value <= np.iinfo(np.int32).max else np.int64


def _encode_households(household_ids: pl.Series) -> tuple[pl.Series, Codes]:
    """The sorted distinct households, and each row's place among them, -1 where it has none.

    Text is looked at once a run of equal cells, as most files are sorted by household.
    """
    runs = household_ids.rle()
    values = runs.struct.unnest().select(strip_text("value")).to_series()
    names = values.drop_nulls().unique().sort()
    codes = values.cast(pl.Enum(names)).to_physical().cast(pl.Int32).fill_null(-1).to_numpy()
    return names, np.repeat(codes, runs.struct.field("len").to_numpy())


def find_reading_spans(household_nights: pl.DataFrame) -> pl.DataFrame:
    """Each household's first and last stamp in household-days (NaN where missing)."""
    is_read = ~np.isnan(household_nights.get_column("kwh").to_numpy())
    first, last = is_read.argmax(axis=1), HALF_HOURS - 1 - is_read[:, ::-1].argmax(axis=1)
    day = pl.col("night").cast(pl.Datetime("us"))
    stamped = household_nights.select(
        "household_id",
        (day + pl.lit(pl.Series(first)) * pl.duration(minutes=30)).alias("first_ts_utc"),
        (day + pl.lit(pl.Series(last)) * pl.duration(minutes=30)).alias("last_ts_utc"),
    )
    return merge_reading_spans([stamped])


def merge_reading_spans(span_tables: list[pl.DataFrame]) -> pl.DataFrame:
    """Each household's first and last stamp over several spans."""
    every = pl.concat(span_tables).group_by("household_id")
    return every.agg(pl.min("first_ts_utc"), pl.max("last_ts_utc")).sort("household_id")


def collect_household_attributes(validated: ValidatedRows, columns: Iterable[str]) -> pl.DataFrame:
    """What good rows say of their households besides readings: one row a household."""
    starts = np.flatnonzero(np.diff(validated.household_code, prepend=-1))
    told = validated.take_delivered_rows(starts).with_columns(strip_text("household_id"))
    every = told.group_by("household_id").agg(strip_text(name).max() for name in columns)
    return every.sort("household_id")
