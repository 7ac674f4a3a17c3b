"""Validate delivered rows and lay the valid readings out as household-nights.

Each rule that a row can break by itself stands once, in `build_row_rules`. Rules about two rows,
`duplicate` and `superseded`, are `ml/ingest/conflicts.py`.
"""

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
"""Microseconds of a settlement period."""
SENTINEL_READINGS: Final = (4294967.295, 2147483.647, 4294967295.0, 2147483647.0)
"""kWh that meters and their collectors write for "no reading": the largest unsigned and signed
32-bit counts, in Wh and in kWh (sentinel check of utilities' validation rules)."""
SENTINEL_MARGIN_KWH: Final = 1.0
"""kWh below the smallest sentinel from which a reading is compared with each of them. Sentinels are
compared as Float32, whose step is 0.25 at 2 million: chosen, a few steps."""
EARLIEST_TIMESTAMP: Final = datetime(2000, 1, 1)
LATEST_TIMESTAMP: Final = datetime(2099, 12, 31, 23, 30)
"""Stamps outside these are misread dates. Chosen: no smart meter is older than 2000, and the
half-hours between them fit Int32 many times over."""
NULL_TEXTS: Final = ("Null", "null", "NULL")
"""Cells that stand for no reading; the London data writes `Null`."""
RULE_DTYPE: Final = pl.Enum(QUARANTINE_RULES)
MAX_EMPTY_HOUSEHOLD_NIGHTS: Final = 1_000_000
"""Household-nights beyond those delivered that may be laid out empty: 192 MB of Float32 at most.
Chosen; more means stamps that lie far apart, which are looked up instead."""


@dataclass(frozen=True)
class RowRule:
    """A rule of delivered rows: its name in the quarantine, and when a row breaks it.

    `is_broken` is true where a row breaks the rule; null counts as kept. `is_surely_kept` may be
    given where that test is slow on millions of rows: a cheap one that never passes a row which
    breaks the rule, but may fail a row which keeps it.
    """

    name: str
    is_broken: pl.Expr
    is_surely_kept: pl.Expr | None = None

    @property
    def passes_fast_check(self) -> pl.Expr:
        """Return the test that every row is put to."""
        return ~self.is_broken if self.is_surely_kept is None else self.is_surely_kept


def build_row_rules(supply_limit_kwh: float) -> list[RowRule]:
    """Return the rules that one row can break by itself; the first broken one is reported.

    Columns: `household_code` (-1 without a household), `value` (as delivered), `kwh` (Float64),
    `ts_utc`. The limit is the most that a supply can deliver in a half-hour, in kWh.
    """
    kwh = pl.col("kwh")
    ts_utc = pl.col("ts_utc")
    ts_us = ts_utc.to_physical()
    sentinels = [kwh.cast(pl.Float32) == pl.lit(value, pl.Float32) for value in SENTINEL_READINGS]
    return [
        # Comparing texts is slow, and one that was read as a number is none of those for null.
        RowRule(
            "null",
            is_broken=pl.col("value").is_null() | pl.col("value").is_in(NULL_TEXTS),
            is_surely_kept=kwh.is_not_null(),
        ),
        RowRule("not_a_number", kwh.is_null() | ~kwh.is_finite()),
        RowRule(
            "sentinel",
            is_broken=pl.any_horizontal(sentinels),
            is_surely_kept=kwh < min(SENTINEL_READINGS) - SENTINEL_MARGIN_KWH,
        ),
        RowRule(
            "bad_timestamp",
            ts_utc.is_null() | ~ts_utc.is_between(EARLIEST_TIMESTAMP, LATEST_TIMESTAMP),
        ),
        # Multiplied back: `%` took 0.05 s for two million rows, more than all other rules together.
        RowRule("off_grid", ts_us // HALF_HOUR_US * HALF_HOUR_US != ts_us),
        RowRule("negative", kwh < 0),
        RowRule("above_limit", kwh > supply_limit_kwh),
        RowRule("no_household", pl.col("household_code") < 0),
    ]


@dataclass(frozen=True)
class ValidatedRows:
    """Delivered rows `[n]`, the readings of the m valid ones, and the rows quarantined."""

    rows: pl.DataFrame
    """All n rows as delivered, and the columns that the rules read."""
    household_ids: pl.Series
    """The distinct households of all rows, sorted."""
    is_valid: Bools
    """Of each of the n rows, whether it keeps every rule."""
    household_code: Codes
    """Of each valid row, its place in `household_ids`."""
    epoch_half_hour: Codes
    """Of each valid row, its half-hour, counted from 1970."""
    kwh: Readings
    """Of each valid row."""
    quarantined_rows: pl.DataFrame
    """`household_id`, `ts_utc`, `value` as delivered, `rule`: the first rule that was broken."""

    def take_delivered_rows(self, positions: Indices) -> pl.DataFrame:
        """Return valid rows as delivered, by their positions among the m valid ones."""
        invalid = np.flatnonzero(~self.is_valid)
        # The k-th invalid row (from 0) lies behind `invalid[k] - k` valid ones, so that many
        # invalid rows must be skipped to get from a place among the valid ones to one among all.
        n_valid_before = invalid - np.arange(len(invalid))
        return self.rows[positions + np.searchsorted(n_valid_before, positions, "right")]


def validate_rows(delivered_rows: pl.DataFrame, supply_limit_kwh: float) -> ValidatedRows:
    """Split delivered rows into valid ones and those that break a rule, each with its rule.

    Rows have `household_id`, `timestamp` (text or Datetime), `value` and `kwh` (Float64, null where
    the value is no number), as `select_readings` gives them.

    Nearly all rows are plain, so all are put to one fast check and only those that fail it are
    stripped of padding and tested rule by rule. Two million plain rows take 0.04 s, all rules on
    every row 0.07 s; a dataframely schema of them 0.10 s, without the rule that was broken first.
    """
    household_ids, household_code = _encode_households(delivered_rows.get_column("household_id"))
    rules = build_row_rules(supply_limit_kwh)
    rows = (
        delivered_rows.with_columns(
            parse_timestamps(delivered_rows.get_column("timestamp")).alias("ts_utc"),
            pl.Series("household_code", household_code),
        )
        .lazy()
        .with_columns(*_derive_columns(), _pass_fast_check(rules).alias("is_plain"))
        .collect(engine="streaming")  # in pieces that stay in a core's cache
    )
    is_valid = rows.get_column("is_plain").to_numpy().copy()
    suspect_positions = np.flatnonzero(~is_valid)
    broken_rules = [pl.when(rule.is_broken).then(pl.lit(rule.name, RULE_DTYPE)) for rule in rules]
    suspects = rows[suspect_positions].with_columns(strip_text("household_id"), strip_text("value"))
    tested = suspects.with_columns(rule=pl.coalesce(broken_rules))
    is_valid[suspect_positions] = tested.get_column("rule").is_null().to_numpy()
    quarantined = tested.filter(pl.col("rule").is_not_null()).select(
        "household_id", "ts_utc", "value", "rule"
    )
    # A slice where all rows are valid, as in most batches: a mask would copy the columns.
    valid = is_valid if quarantined.height else slice(None)
    return ValidatedRows(
        rows,
        household_ids,
        is_valid,
        household_code[valid],
        rows.get_column("epoch_half_hour").to_numpy()[valid],
        rows.get_column("reading").to_numpy()[valid],
        quarantined,
    )


def _pass_fast_check(rules: Iterable[RowRule]) -> pl.Expr:
    """Return whether a row surely keeps all rules; where that cannot be told it is false."""
    return pl.all_horizontal(rule.passes_fast_check for rule in rules).fill_null(value=False)


def _derive_columns() -> list[pl.Expr]:
    """Return `epoch_half_hour` (since 1970, Int32) and `reading` (kWh, Float32), 0 where null."""
    half_hour = pl.col("ts_utc").to_physical() // HALF_HOUR_US
    return [
        half_hour.cast(pl.Int32, strict=False).fill_null(0).alias("epoch_half_hour"),
        pl.col("kwh").cast(pl.Float32).fill_null(0).alias("reading"),
    ]


def build_household_nights(validated: ValidatedRows) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Lay valid readings out as household-nights, and list those whose half-hour was filled.

    Of several readings of one half-hour the largest is laid out, so that the order of a file's rows
    does not matter; the others come back as collisions.

    Returns:
        `night, household_id, kwh` (48 Float32, NaN where missing), without empty household-nights;
        and `household_id, ts_utc, value, kwh`. Both with `month`, sorted by it.
    """
    first_day = int(validated.epoch_half_hour.min()) // HALF_HOURS
    n_days = int(validated.epoch_half_hour.max()) // HALF_HOURS - first_day + 1
    codes, cells = _locate_cells(validated, first_day, n_days)
    flat, colliding_rows = _scatter_readings(cells, validated.kwh, len(codes) * HALF_HOURS)
    kwh = flat.reshape(-1, HALF_HOURS)
    has_reading = ~np.isnan(kwh).all(axis=1)
    epoch_day = codes[has_reading] % n_days + first_day
    household_nights = pl.DataFrame(
        {
            "night": pl.Series(epoch_day).cast(pl.Int32).cast(pl.Date),
            "household_id": validated.household_ids.gather(codes[has_reading] // n_days),
            "kwh": kwh[has_reading],
        }
    )
    ts_us = validated.epoch_half_hour[colliding_rows] * np.int64(HALF_HOUR_US)
    collisions = validated.take_delivered_rows(colliding_rows).select(
        strip_text("household_id"),
        pl.Series("ts_utc", ts_us).cast(pl.Datetime("us")),
        pl.col("value").cast(pl.String),
        pl.Series("kwh", validated.kwh[colliding_rows]),
    )
    return _sort_by_month(household_nights, "night"), _sort_by_month(collisions, "ts_utc")


def _sort_by_month(frame: pl.DataFrame, time_column: str) -> pl.DataFrame:
    month = frame.get_column(time_column).cast(pl.Date).dt.month_start()
    return frame.with_columns(month.alias("month")).sort("month", maintain_order=True)


def _locate_cells(
    validated: ValidatedRows, first_day: int, n_days: int
) -> tuple[Indices, Codes | Indices]:
    """Return the household-nights to lay out, and the cell (half-hour) of each valid row in them.

    A household-night is coded `household_code * n_days + day`; a cell is 48 times the position of
    its household-night, plus the half-hour. Every household-night of the span is laid out, which
    needs no search, unless that is far more than were delivered: two stamps a century apart would
    else take gigabytes.
    """
    half_hour_of_span = validated.epoch_half_hour - first_day * HALF_HOURS
    size = len(validated.household_ids) * n_days
    if size <= MAX_EMPTY_HOUSEHOLD_NIGHTS + len(validated.kwh) // HALF_HOURS:
        # In the smallest type: cells are the largest array of a batch.
        first_cell = validated.household_code.astype(_smallest_int_type(size * HALF_HOURS)) * (
            n_days * HALF_HOURS
        )
        return np.arange(size), first_cell + half_hour_of_span
    day, half_hour = np.divmod(half_hour_of_span, HALF_HOURS)
    codes, positions = np.unique(
        validated.household_code.astype(np.int64) * n_days + day, return_inverse=True
    )
    return codes, positions * HALF_HOURS + half_hour


def _scatter_readings(
    cells: Codes | Indices, kwh: Readings, n_cells: int
) -> tuple[Readings, Indices]:
    """Put readings into cells `[n_cells]`, NaN where none; return them and the rows left over."""
    flat = np.full(n_cells, np.nan, dtype=np.float32)
    flat[cells] = kwh
    flat += 0  # -0 becomes 0: equal readings must be equal bytes, so that files are
    colliding = _find_colliding_rows(cells, n_cells)
    # NumPy does not promise which of several rows stays in a cell. Sorted by cell, then by reading,
    # the last row of a cell has the largest.
    colliding = colliding[np.lexsort((kwh[colliding], cells[colliding]))]
    is_last_of_cell = np.append(cells[colliding][1:] != cells[colliding][:-1], True)
    is_last_of_cell = is_last_of_cell[: len(colliding)]  # the appended one, where none collide
    winning = colliding[is_last_of_cell]
    flat[cells[winning]] = kwh[winning] + 0
    return flat, colliding[~is_last_of_cell]


def _find_colliding_rows(cells: Codes | Indices, n_cells: int) -> Indices:
    """Return the rows that share their cell with another row, ascending.

    Sorted cells, as most files have them, are compared with their neighbours. Otherwise each row
    writes its number into its cell: a row that does not read its own number back was overwritten,
    and the number it reads is that of a row which it collides with. So no sort of all rows is
    needed to find a few collisions.
    """
    if (cells[1:] >= cells[:-1]).all():
        earlier = np.flatnonzero(cells[1:] == cells[:-1])
        return np.union1d(earlier, earlier + 1)
    row = np.arange(len(cells), dtype=_smallest_int_type(len(cells)))
    last_row_of_cell = np.empty(n_cells, dtype=row.dtype)
    last_row_of_cell[cells] = row
    overwritten = np.flatnonzero(last_row_of_cell[cells] != row)
    return np.union1d(overwritten, last_row_of_cell[cells[overwritten]])


def _smallest_int_type(max_value: int) -> type[np.signedinteger[Any]]:
    """Return the type that holds `max_value` in the least memory."""
    return np.int32 if max_value <= np.iinfo(np.int32).max else np.int64


def _encode_households(household_ids: pl.Series) -> tuple[pl.Series, Codes]:
    """Return the distinct households, sorted, and of each row its place among them, -1 if none.

    Text is stripped and compared once a run of equal cells: most files are sorted by household.
    """
    runs = household_ids.rle()
    household_of_run = runs.struct.unnest().select(strip_text("value")).to_series()
    names = household_of_run.drop_nulls().unique().sort()
    code_of_run = household_of_run.cast(pl.Enum(names)).to_physical().cast(pl.Int32).fill_null(-1)
    return names, np.repeat(code_of_run.to_numpy(), runs.struct.field("len").to_numpy())


def find_reading_spans(household_nights: pl.DataFrame) -> pl.DataFrame:
    """Return `household_id, first_ts_utc, last_ts_utc` of the readings in household-nights.

    Every household-night has at least one reading; missing ones are NaN.
    """
    is_read = ~np.isnan(household_nights.get_column("kwh").to_numpy())
    first = is_read.argmax(axis=1)
    last = HALF_HOURS - 1 - is_read[:, ::-1].argmax(axis=1)
    midnight = pl.col("night").cast(pl.Datetime("us"))
    half_hour = pl.duration(minutes=30)
    spans = household_nights.select(
        "household_id",
        (midnight + pl.lit(pl.Series(first)) * half_hour).alias("first_ts_utc"),
        (midnight + pl.lit(pl.Series(last)) * half_hour).alias("last_ts_utc"),
    )
    return merge_reading_spans([spans])


def merge_reading_spans(span_tables: list[pl.DataFrame]) -> pl.DataFrame:
    """Return each household's earliest and latest stamp over several tables of spans, sorted."""
    by_household = pl.concat(span_tables).group_by("household_id")
    return by_household.agg(pl.min("first_ts_utc"), pl.max("last_ts_utc")).sort("household_id")


def collect_household_attributes(validated: ValidatedRows, columns: Iterable[str]) -> pl.DataFrame:
    """Return one row a household with the given columns of its valid rows, as stripped text.

    Attributes are repeated on every row, so the first row of each run of one household is read;
    where runs differ the largest text is taken, in whatever order they come.
    """
    run_starts = np.flatnonzero(np.diff(validated.household_code, prepend=-1))
    rows = validated.take_delivered_rows(run_starts).with_columns(strip_text("household_id"))
    by_household = rows.group_by("household_id")
    return by_household.agg(strip_text(name).max() for name in columns).sort("household_id")
