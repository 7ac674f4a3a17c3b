"""What is delivered beside readings: households, weather, bank holidays, tariffs."""

from collections.abc import Callable
from typing import Final

import polars as pl

from ml.errors import UserError
from ml.ingest.delivered import HOUSEHOLD_ATTRIBUTES, TARIFF_PRICES, TableFormat
from ml.ingest.stamps import parse_timestamps, select_timestamp, strip_text
from ml.schemas import Holidays, Households, Tariffs, Weather

KEYS: Final = {
    "households": "household_id",
    "weather": "ts_utc",
    "holidays": "day",
    "tariffs": "ts_utc",
}
SCHEMAS: Final = {
    "households": Households,
    "weather": Weather,
    "holidays": Holidays,
    "tariffs": Tariffs,
}


def companion(rows: pl.DataFrame, shape: TableFormat) -> pl.DataFrame:
    """A delivered companion as its reference table, one row a key, sorted.

    Raises:
        UserError: a cell cannot be read; the message names column and cell.
    """
    key = KEYS[shape.kind]
    schema = SCHEMAS[shape.kind]
    read: dict[str, Callable[[pl.DataFrame, str], pl.Series]] = {
        "ts_utc": _stamps,
        "day": _days,
        "temperature_c": _numbers,
        "humidity": _numbers,
        "price": _prices,
    }
    names = schema.column_names()
    table = pl.DataFrame(
        [read.get(name, _texts)(rows, shape.required_columns[name]).alias(name) for name in names]
    )
    if table.get_column(key).null_count():
        raise UserError(f"column {shape.required_columns[key]!r} has empty cells")
    unique = table.sort(*names).unique(subset=key, keep="last", maintain_order=True)
    refused = schema.filter(unique, cast=True).failure.counts()
    if refused:
        raise UserError(f"rows break the rules of {shape.title}: {refused}")
    return schema.validate(unique, cast=True).sort(key)


def merged(parts: list[pl.DataFrame], key: str) -> pl.DataFrame:
    """A reference out of several tables: the last row of a key wins."""
    return pl.concat(parts).unique(subset=key, keep="last", maintain_order=True).sort(key)


def registered(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """The register of households out of several: the last that says something wins, column-wise."""
    last = [pl.col(name).drop_nulls().last() for name in HOUSEHOLD_ATTRIBUTES]
    every = pl.concat(parts, how="diagonal").group_by("household_id", maintain_order=True)
    return every.agg(last).sort("household_id")


def _texts(rows: pl.DataFrame, column: str) -> pl.Series:
    return rows.select(strip_text(column)).to_series()


def _stamps(rows: pl.DataFrame, column: str) -> pl.Series:
    ts = parse_timestamps(rows.select(select_timestamp(column, rows.schema[column])).to_series())
    return _whole(ts, _texts(rows, column), column, "no time")


def _days(rows: pl.DataFrame, column: str) -> pl.Series:
    return _stamps(rows, column).dt.date()


def _numbers(rows: pl.DataFrame, column: str) -> pl.Series:
    written = _texts(rows, column)
    return _whole(written.cast(pl.Float32, strict=False), written, column, "no number")


def _prices(rows: pl.DataFrame, column: str) -> pl.Series:
    written = _texts(rows, column)
    price = written.cast(pl.Enum(TARIFF_PRICES), strict=False)
    return _whole(price, written, column, f"none of {', '.join(TARIFF_PRICES)}")


def _whole(read: pl.Series, written: pl.Series, column: str, fault: str) -> pl.Series:
    """Refuse cells that hold something which could not be read."""
    unread = written.filter(read.is_null() & written.is_not_null())
    if unread.len():
        raise UserError(f"column {column!r} has a cell that is {fault}: {unread.item(0)!r}")
    return read
