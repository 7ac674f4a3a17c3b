"""Stamps of half-hours as people write them, read as naive UTC."""

from typing import Final

import polars as pl

from ml.errors import UserError

US: Final = pl.Datetime("us")
WHOLE: Final = "%Y-%m-%d %H:%M:%S"
NO_FRACTION: Final = ["." + "0" * digits for digits in range(1, 10)]
# How stamps are written besides `WHOLE` with a fraction of zeros; an offset leads to UTC.
OTHERS: Final = (
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M%#z",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)


def text(column: str) -> pl.Expr:
    """A column as text without padding; nothing at all is null."""
    stripped = pl.col(column).cast(pl.String).str.strip_chars()
    return pl.when(stripped.str.len_bytes() > 0).then(stripped)


def stamp(column: str, dtype: pl.DataType) -> pl.Expr:
    """The column `stamp`: text as delivered, or the time itself where it was delivered as one."""
    if dtype in (pl.String, pl.Null):
        return text(column).alias("stamp")
    if not dtype.is_temporal() or isinstance(dtype, (pl.Time, pl.Duration)):
        raise UserError(f"column {column!r} holds {dtype}, expected time stamps")
    ts = pl.col(column)
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        ts = ts.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return ts.cast(US).alias("stamp")


def usual(dtype: pl.DataType) -> pl.Expr:
    """The column `ts_utc` out of `stamp`; null where it is not written the usual way."""
    stamp = pl.col("stamp")
    if dtype not in (pl.String, pl.Null):
        return stamp.alias("ts_utc")
    tail = stamp.str.slice(19)
    plain = (tail == "") | tail.is_in(NO_FRACTION)
    seconds = stamp.str.head(19).str.replace("T", " ", literal=True)
    ts = seconds.str.to_datetime(WHOLE, time_unit="us", strict=False, cache=False)
    return pl.when(plain).then(ts).alias("ts_utc")


def patched(rows: pl.DataFrame) -> pl.DataFrame:
    """Fill in `ts_utc` where `stamp` is written another way; null where it cannot be read."""
    unread = pl.col("ts_utc").is_null() & pl.col("stamp").is_not_null()
    where = rows.select(unread.arg_true()).to_series()
    if where.is_empty():
        return rows
    stamps = rows.get_column("stamp").gather(where)
    ts = rows.get_column("ts_utc").scatter(where, any_way(stamps))
    return rows.with_columns(ts)


def any_way(stamps: pl.Series) -> pl.Series:
    """Read stamps written in any of the ways that are met; null where none fits."""
    written = stamps.str.strip_chars().str.replace("T", " ", literal=True)
    ways = [written.str.to_datetime(way, time_unit="us", strict=False) for way in OTHERS]
    return pl.select(pl.coalesce([ts.dt.replace_time_zone(None) for ts in ways])).to_series()
