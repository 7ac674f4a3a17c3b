"""What is delivered beside readings: households, weather, bank holidays, tariffs."""

from collections.abc import Callable
from typing import Final

import polars as pl

from ml.errors import UserError
from ml.ingest.formats import HOUSEHOLD_ATTRIBUTES, TARIFF_PRICES, TableFormat
from ml.ingest.timestamps import parse_timestamps, select_timestamp, strip_text
from ml.schemas import Holidays, Households, Tariffs, Weather

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
    """A delivered companion as its reference table, one row a key, sorted.

    Raises:
        UserError: a cell cannot be read; the message names column and cell.
    """
    key = KEY_COLUMNS[table_format.kind]
    schema = REFERENCE_SCHEMAS[table_format.kind]
    read: dict[str, Callable[[pl.DataFrame, str], pl.Series]] = {
        "ts_utc": _parse_timestamps,
        "day": _parse_dates,
        "temperature_c": _parse_numbers,
        "humidity": _parse_numbers,
        "price": _parse_prices,
    }
    names = schema.column_names()
    table = pl.DataFrame(
        [
            read.get(name, _parse_texts)(rows, table_format.required_columns[name]).alias(name)
            for name in names
        ]
    )
    if table.get_column(key).null_count():
        raise UserError(f"column {table_format.required_columns[key]!r} has empty cells")
    unique = table.sort(*names).unique(subset=key, keep="last", maintain_order=True)
    refused = schema.filter(unique, cast=True).failure.counts()
    if refused:
        raise UserError(f"rows break the rules of {table_format.title}: {refused}")
    return schema.validate(unique, cast=True).sort(key)


def merge_reference_tables(tables: list[pl.DataFrame], key: str) -> pl.DataFrame:
    """A reference out of several tables: the last row of a key wins."""
    return pl.concat(tables).unique(subset=key, keep="last", maintain_order=True).sort(key)


def merge_household_registers(registers: list[pl.DataFrame]) -> pl.DataFrame:
    """The register of households out of several: the last that says something wins, column-wise."""
    last = [pl.col(name).drop_nulls().last() for name in HOUSEHOLD_ATTRIBUTES]
    every = pl.concat(registers, how="diagonal").group_by("household_id", maintain_order=True)
    return every.agg(last).sort("household_id")


def _parse_texts(rows: pl.DataFrame, column: str) -> pl.Series:
    return rows.select(strip_text(column)).to_series()


def _parse_timestamps(rows: pl.DataFrame, column: str) -> pl.Series:
    ts = parse_timestamps(rows.select(select_timestamp(column, rows.schema[column])).to_series())
    return _require_all_parsed(ts, _parse_texts(rows, column), column, "no time")


def _parse_dates(rows: pl.DataFrame, column: str) -> pl.Series:
    return _parse_timestamps(rows, column).dt.date()


def _parse_numbers(rows: pl.DataFrame, column: str) -> pl.Series:
    written = _parse_texts(rows, column)
    return _require_all_parsed(written.cast(pl.Float32, strict=False), written, column, "no number")


def _parse_prices(rows: pl.DataFrame, column: str) -> pl.Series:
    written = _parse_texts(rows, column)
    price = written.cast(pl.Enum(TARIFF_PRICES), strict=False)
    return _require_all_parsed(price, written, column, f"none of {', '.join(TARIFF_PRICES)}")


def _require_all_parsed(
    parsed: pl.Series, delivered_texts: pl.Series, column: str, problem: str
) -> pl.Series:
    """Refuse cells that hold something which could not be read."""
    unread = delivered_texts.filter(parsed.is_null() & delivered_texts.is_not_null())
    if unread.len():
        raise UserError(f"column {column!r} has a cell that is {problem}: {unread.item(0)!r}")
    return parsed
