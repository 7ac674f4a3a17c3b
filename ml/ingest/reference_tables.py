"""Parse and merge reference tables: households, weather, bank holidays, tariffs.

Cells are parsed here and not by dataframely's `filter(cast=True)` alone: it knows one way to write
a time, and names its own rule (`temperature_c|dtype`) where a person needs column and cell. Types,
bounds and keys are the schema's.
"""

from collections.abc import Callable
from typing import Final

import polars as pl

from ml.errors import UserError
from ml.ingest.formats import HOUSEHOLD_ATTRIBUTES, TableFormat
from ml.ingest.timestamps import parse_timestamps, select_timestamp, strip_text
from ml.schemas import TARIFF_PRICES, Holidays, Households, Tariffs, Weather

KEY_COLUMNS: Final = {
    "households": "household_id",
    "weather": "ts_utc",
    "holidays": "day",
    "tariffs": "ts_utc",
}
REFERENCE_SCHEMAS: Final = {
    "households": Households,
    "weather": Weather,
    "holidays": Holidays,
    "tariffs": Tariffs,
}


def parse_reference_table(rows: pl.DataFrame, table_format: TableFormat) -> pl.DataFrame:
    """Parse a delivered reference table: columns as in its schema, one row a key, sorted by key.

    Of several rows of one key the largest (column by column) is kept, so that row order does not
    matter.

    Raises:
        UserError: a cell cannot be parsed (the message names column and cell), a key is empty, or
            rows break a rule of the schema.
    """
    key = KEY_COLUMNS[table_format.kind]
    schema = REFERENCE_SCHEMAS[table_format.kind]
    parsers: dict[str, Callable[[pl.DataFrame, str], pl.Series]] = {
        "ts_utc": _parse_timestamps,
        "day": _parse_dates,
        "temperature_c": _parse_required_numbers,
        "humidity": _parse_required_numbers,
        "price": _parse_prices,
    }
    names = schema.column_names()
    columns = []
    for name in names:
        parse = parsers.get(name, _parse_texts)
        columns.append(parse(rows, table_format.required_columns[name]).alias(name))
    table = pl.DataFrame(columns)
    if table.get_column(key).null_count():
        raise UserError(f"column {table_format.required_columns[key]!r} has empty cells")
    # Nulls sort first, so that a row with a value is kept rather than one without.
    unique = table.sort(*names).unique(subset=key, keep="last", maintain_order=True)
    valid, failures = schema.filter(unique, cast=True)
    if broken_rules := failures.counts():
        raise UserError(f"rows break the rules of {table_format.title}: {broken_rules}")
    return valid.sort(key)


def merge_reference_tables(tables: list[pl.DataFrame], key: str) -> pl.DataFrame:
    """Merge tables in the order of delivery, sorted by key: the last row of a key is kept."""
    return pl.concat(tables).unique(subset=key, keep="last", maintain_order=True).sort(key)


def merge_household_registers(registers: list[pl.DataFrame]) -> pl.DataFrame:
    """Merge registers in the order of delivery, sorted: one row a household.

    Of each attribute the last value that is not null is kept: readings name households without
    saying anything of them. A register may lack attributes.
    """
    last_known = [pl.col(name).drop_nulls().last() for name in HOUSEHOLD_ATTRIBUTES]
    rows = pl.concat(registers, how="diagonal")
    by_household = rows.group_by("household_id", maintain_order=True)
    return by_household.agg(last_known).sort("household_id")


def _parse_texts(rows: pl.DataFrame, column: str) -> pl.Series:
    return rows.select(strip_text(column)).to_series()


def _parse_timestamps(rows: pl.DataFrame, column: str) -> pl.Series:
    timestamps = rows.select(select_timestamp(column, rows.schema[column])).to_series()
    texts = _parse_texts(rows, column)
    return _require_all_parsed(parse_timestamps(timestamps), texts, column, "no time")


def _parse_dates(rows: pl.DataFrame, column: str) -> pl.Series:
    return _parse_timestamps(rows, column).dt.date()


def _parse_required_numbers(rows: pl.DataFrame, column: str) -> pl.Series:
    """Return a column as Float32; refuse the first cell that holds text and no number."""
    texts = _parse_texts(rows, column)
    return _require_all_parsed(texts.cast(pl.Float32, strict=False), texts, column, "no number")


def _parse_prices(rows: pl.DataFrame, column: str) -> pl.Series:
    texts = _parse_texts(rows, column)
    prices = texts.cast(pl.Enum(TARIFF_PRICES), strict=False)
    return _require_all_parsed(prices, texts, column, f"none of {', '.join(TARIFF_PRICES)}")


def _require_all_parsed(
    parsed: pl.Series, delivered_texts: pl.Series, column: str, problem: str
) -> pl.Series:
    """Return `parsed`, or refuse the first cell that holds text and could not be parsed."""
    unparsed = delivered_texts.filter(parsed.is_null() & delivered_texts.is_not_null())
    if unparsed.len():
        raise UserError(f"column {column!r} has a cell that is {problem}: {unparsed.item(0)!r}")
    return parsed
