"""Parse the stamps of half-hours as people write them, as naive UTC."""

from typing import Final

import polars as pl
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from ml.errors import UserError

DATETIME_US: Final = pl.Datetime("us")
TIMESTAMP_FORMATS: Final = (
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M%#z",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)
"""Year first throughout, since day and month of `01/06/2013` cannot be told apart. A stamp with an
offset (`%#z`) is turned into UTC; the others are UTC."""


def strip_text(column: str) -> pl.Expr:
    """Return a column as text without padding; null where nothing is left."""
    stripped = pl.col(column).cast(pl.String).str.strip_chars()
    return pl.when(stripped.str.len_bytes() > 0).then(stripped)


def select_timestamp(column: str, dtype: pl.DataType) -> pl.Expr:
    """Return the column as `timestamp`: text as delivered, or Datetime (us, UTC, naive).

    Raises:
        UserError: the column holds neither text nor times.
    """
    if dtype in (pl.String, pl.Null):
        return pl.col(column).cast(pl.String).alias("timestamp")
    if not dtype.is_temporal() or isinstance(dtype, (pl.Time, pl.Duration)):
        raise UserError(f"column {column!r} holds {dtype}, expected time stamps")
    ts_utc = pl.col(column)
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        ts_utc = ts_utc.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return ts_utc.cast(DATETIME_US).alias("timestamp")


def parse_timestamps(timestamps: pl.Series) -> pl.Series:
    """Return the times of stamps `[n]` as Datetime in us, null where one cannot be read.

    Arrow reads ISO 8601 fastest, but refuses the whole column where one cell is written another
    way. Then each distinct stamp is tried in all of `TIMESTAMP_FORMATS`; there are few, since
    households share their half-hours.
    """
    if timestamps.dtype != pl.String:
        return timestamps
    try:
        # Nanoseconds: the Datastore writes seven decimals, which Arrow refuses to cut to us.
        ts_utc = pc.cast(timestamps.to_arrow(), pa.timestamp("ns"))
    except pa.ArrowInvalid:
        distinct = timestamps.drop_nulls().unique()
        return timestamps.replace_strict(
            distinct, _parse_any_format(distinct), default=None, return_dtype=DATETIME_US
        )
    return pl.Series(timestamps.name, ts_utc).cast(DATETIME_US)


def _parse_any_format(timestamps: pl.Series) -> pl.Series:
    texts = timestamps.str.strip_chars().str.replace("T", " ", literal=True)
    # Arrow reads "2013-06-03 05" as five o'clock; Polars needs the minutes. A stamp must not
    # depend on how its neighbours are written.
    texts = texts.str.replace("^([0-9-]{10} [0-9]{2})$", "$1:00")
    parsed = [
        texts.str.to_datetime(each, time_unit="us", strict=False) for each in TIMESTAMP_FORMATS
    ]
    return pl.select(pl.coalesce([ts.dt.replace_time_zone(None) for ts in parsed])).to_series()
