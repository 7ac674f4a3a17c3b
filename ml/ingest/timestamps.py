"""Stamps of half-hours as people write them, read as naive UTC."""

from typing import Final

import polars as pl
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from ml.errors import UserError

DATETIME_US: Final = pl.Datetime("us")
# How stamps are written; an offset leads to UTC.
TIMESTAMP_FORMATS: Final = (
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M%#z",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)


def strip_text(column: str) -> pl.Expr:
    """A column as text without padding; nothing at all is null."""
    stripped = pl.col(column).cast(pl.String).str.strip_chars()
    return pl.when(stripped.str.len_bytes() > 0).then(stripped)


def select_timestamp(column: str, dtype: pl.DataType) -> pl.Expr:
    """The column `stamp`: text as delivered, or the time itself where it was delivered as one."""
    if dtype in (pl.String, pl.Null):
        return pl.col(column).cast(pl.String).alias("timestamp")
    if not dtype.is_temporal() or isinstance(dtype, (pl.Time, pl.Duration)):
        raise UserError(f"column {column!r} holds {dtype}, expected time stamps")
    ts = pl.col(column)
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        ts = ts.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return ts.cast(DATETIME_US).alias("timestamp")


def parse_timestamps(timestamps: pl.Series) -> pl.Series:
    """The times of stamps `[n]`, null where one cannot be read.

    Arrow reads ISO 8601 fastest but not where one cell is written another way; then each distinct
    stamp, of which there are few, is tried in all of the `WAYS`.
    """
    if timestamps.dtype != pl.String:
        return timestamps
    try:
        ts = pc.cast(timestamps.to_arrow(), pa.timestamp("ns"))
    except pa.ArrowInvalid:
        distinct = timestamps.drop_nulls().unique()
        return timestamps.replace_strict(
            distinct, _parse_any_format(distinct), default=None, return_dtype=DATETIME_US
        )
    return pl.Series(timestamps.name, ts).cast(DATETIME_US)


def _parse_any_format(timestamps: pl.Series) -> pl.Series:
    written = timestamps.str.strip_chars().str.replace("T", " ", literal=True)
    written = written.str.replace("^([0-9-]{10} [0-9]{2})$", "$1:00")
    ways = [written.str.to_datetime(way, time_unit="us", strict=False) for way in TIMESTAMP_FORMATS]
    return pl.select(pl.coalesce([ts.dt.replace_time_zone(None) for ts in ways])).to_series()
