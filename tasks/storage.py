"""The tables of the home: how they are read, also those of an earlier release, and written.

This module alone writes Parquet there. A file is replaced whole: written under a name that no
reader's glob matches, synced, renamed. Files that belong together are prepared under another root
and published in one step, which the next writer finishes if this one is killed in it.
"""

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Final, Literal

import dataframely as dy
import polars as pl
from filelock import FileLock
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random

from ml import schemas
from ml.errors import UserError
from ml.schemas import FORMER_COLUMN_NAMES
from tasks import paths

ReferenceTableName = Literal["households", "weather", "holidays", "tariffs"]
LedgerName = Literal["deliveries", "quarantine", "spans", "runs"]
ResultTableName = Literal["scores", "anomalies", "episodes", "nights"]

TABLE_SCHEMAS: Final[dict[str, type[dy.Schema]]] = {
    "days": schemas.HouseholdNights,
    "households": schemas.Households,
    "weather": schemas.Weather,
    "holidays": schemas.Holidays,
    "tariffs": schemas.Tariffs,
    "deliveries": schemas.Deliveries,
    "quarantine": schemas.Quarantine,
    "spans": schemas.DeliverySpans,
    "runs": schemas.Runs,
    "scores": schemas.Scores,
    "anomalies": schemas.Anomalies,
    "episodes": schemas.Episodes,
    "nights": schemas.Nights,
    "score_cache": schemas.ScoreCacheRows,
}


# A scan can panic while a file under it is replaced (pola-rs/polars #27365): read again.
@retry(
    retry=retry_if_exception_type((pl.exceptions.PanicException, FileNotFoundError)),
    stop=stop_after_attempt(5),
    wait=wait_random(max=0.2),
    reraise=True,
)
def collect_with_retry(frame: pl.LazyFrame) -> pl.DataFrame:
    """Collect a scan of the home, also while a writer replaces a file of it."""
    return frame.collect()


def scan_table(table: str) -> pl.LazyFrame:
    """Scan a table; an absent one is empty."""
    return _scan_files(table, paths.list_table_files(table))


def scan_nights(table: str, first_night: date, last_night: date) -> pl.LazyFrame:
    """Scan a result table's nights `first_night` to `last_night`, both included."""
    return _scan_partitions(table, f"night={first_night}", f"night={last_night}")


def scan_household_nights(first_night: date, last_night: date) -> pl.LazyFrame:
    """Scan the household-nights of `first_night` to `last_night`, both included."""
    days = _scan_partitions("days", f"month={first_night:%Y-%m}", f"month={last_night:%Y-%m}")
    return days.filter(pl.col("night").is_between(first_night, last_night))


def _scan_partitions(table: str, first_partition: str, last_partition: str) -> pl.LazyFrame:
    return _scan_files(
        table,
        [
            path
            for path in paths.list_table_files(table)
            if first_partition <= path.parent.name <= last_partition
        ],
    )


def _scan_files(table: str, files: list[Path]) -> pl.LazyFrame:
    """Scan files of a table that this or an earlier release wrote, in the present schema.

    Consecutive files of one schema are one scan: no option of `scan_parquet` reads an Enum of one
    file and a String of another, or a renamed column, in the same scan (Polars 2.1). Reading the
    schemas of 900 files takes 0.3 s.
    """
    if not files:
        return TABLE_SCHEMAS[table].create_empty().lazy()
    frames = [
        _conform_to_schema(table, pl.scan_parquet(list(group), hive_partitioning=False), schema)
        for schema, group in itertools.groupby(files, key=pl.read_parquet_schema)
    ]
    return pl.concat(frames)


def _conform_to_schema(
    table: str, frame: pl.LazyFrame, file_schema: Mapping[str, pl.DataType]
) -> pl.LazyFrame:
    """Select a table's present columns: renamed, cast, null where a file has none of them."""
    former_names = FORMER_COLUMN_NAMES.get(table, {})
    columns = []
    for name, column in TABLE_SCHEMAS[table].columns().items():
        stored_name = name if name in file_schema else former_names.get(name, name)
        if stored_name not in file_schema:
            columns.append(pl.lit(None, dtype=column.dtype).alias(name))
        elif file_schema[stored_name] == column.dtype:
            columns.append(pl.col(stored_name).alias(name))
        else:
            columns.append(pl.col(stored_name).cast(column.dtype).alias(name))
    return frame.select(columns)


def read_table(table: str) -> pl.DataFrame:
    """Read a whole small table; an absent one is empty."""
    return collect_with_retry(scan_table(table))


def list_table_nights(table: ResultTableName) -> list[date]:
    """Return the nights that a result table holds, in order."""
    return [
        date.fromisoformat(path.parent.name.removeprefix("night="))
        for path in paths.list_table_files(table)
    ]


def read_night_range() -> tuple[date, date]:
    """Return the first and the last night of the lake.

    Raises:
        UserError: nothing has been ingested.
    """
    files = paths.list_table_files("days")
    if not files:
        raise UserError("the lake is empty: run `meterwatch ingest` first")
    first_and_last_month = pl.scan_parquet([files[0], files[-1]], hive_partitioning=False)
    nights = first_and_last_month.select(first=pl.min("night"), last=pl.max("night"))
    first, last = collect_with_retry(nights).row(0)
    return first, last


def replace_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Replace one Parquet file whole; a killed writer leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    frame.write_parquet(
        partial, compression="zstd", compression_level=1, statistics=True, row_group_size=32_768
    )
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def replace_bytes(path: Path, content: bytes) -> None:
    """Replace one small file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def replace_month(month: date, household_nights: pl.DataFrame, root: Path | None = None) -> None:
    """Replace one month of the lake; rows come sorted by night and household."""
    path = paths.month_file(month, root or paths.home_dir())
    replace_parquet(path, schemas.HouseholdNights.validate(household_nights))


def replace_reference_table(
    table: ReferenceTableName, frame: pl.DataFrame, root: Path | None = None
) -> None:
    """Replace a reference table."""
    replace_parquet(
        paths.reference_table_file(table, root or paths.home_dir()),
        TABLE_SCHEMAS[table].validate(frame, cast=True),
    )


def replace_ledger_entry(
    ledger: LedgerName, key: str, frame: pl.DataFrame, root: Path | None = None
) -> None:
    """Replace one entry of a ledger."""
    path = paths.ledger_entry_file(ledger, key, root or paths.home_dir())
    replace_parquet(path, TABLE_SCHEMAS[ledger].validate(frame, cast=True))


def replace_night(table: ResultTableName, night: date, frame: pl.DataFrame) -> None:
    """Replace one night of a result table."""
    path = paths.result_file(table, night)
    replace_parquet(path, TABLE_SCHEMAS[table].validate(frame, cast=True))


def cache_night_scores(night: date, cached_scores: pl.DataFrame) -> None:
    """Replace the score cache of a night."""
    path = paths.score_cache_file(night)
    replace_parquet(path, schemas.ScoreCacheRows.validate(cached_scores))


@contextmanager
def hold_write_lock() -> Iterator[None]:
    """Hold the home's write lock: one writer at a time, readers never wait."""
    paths.home_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(paths.write_lock_file()):
        _finish_publishing()
        try:
            yield
        finally:
            _finish_publishing()


def publish_prepared() -> None:
    """Move everything that was prepared to its place: all of it or, if killed before, nothing."""
    if paths.prepared_dir().exists():
        paths.prepared_dir().rename(paths.publishing_dir())
    _finish_publishing()


def _finish_publishing() -> None:
    """Finish what a writer began to publish, and remove the rest of what it staged."""
    for path in sorted(paths.publishing_dir().rglob("*.parquet")):
        target = paths.home_dir() / path.relative_to(paths.publishing_dir())
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    shutil.rmtree(paths.staging_dir(), ignore_errors=True)
