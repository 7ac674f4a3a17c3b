"""The tables of the home, and the only code that writes Parquet there.

A file is replaced whole: written under a name that no reader's glob matches, synced, renamed.
Files that belong together are prepared under another root and published in one step, which the
next writer finishes if this one is killed in it.
"""

import os
import shutil
from collections.abc import Iterator
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
from tasks.paths import (
    TABLE_GLOBS,
    has_table_files,
    home_dir,
    list_table_files,
    mlflow_dir,
    model_dir,
    training_dir,
)
from tasks.paths import champion_file as champion_file

Reference = Literal["households", "weather", "holidays", "tariffs"]
Ledger = Literal["deliveries", "quarantine", "spans", "runs"]
Table = Literal["scores", "anomalies", "episodes", "nights"]

SCHEMAS: Final[dict[str, type[dy.Schema]]] = {
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
    "raw_scores": schemas.ScoreCacheRows,
}


# A scan can panic while a file under it is replaced (pola-rs/polars #27365): read again.
@retry(
    retry=retry_if_exception_type((pl.exceptions.PanicException, FileNotFoundError)),
    stop=stop_after_attempt(5),
    wait=wait_random(max=0.2),
    reraise=True,
)
def collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """Collect a scan of the home, also while a writer replaces a file of it."""
    return frame.collect()


def scan(name: str) -> pl.LazyFrame:
    """Scan a table; an absent one is empty."""
    return _scan(name, list_table_files(name))


def scan_nights(name: str, first: date, last: date) -> pl.LazyFrame:
    """Scan the nights `first` to `last`, both included, of a table that keeps a file a night."""
    return _scan_parts(name, f"night={first}", f"night={last}")


def scan_days(first: date, last: date) -> pl.LazyFrame:
    """Scan the household-days of the nights `first` to `last`, both included."""
    days = _scan_parts("days", f"month={first:%Y-%m}", f"month={last:%Y-%m}")
    return days.filter(pl.col("night").is_between(first, last))


def _scan_parts(name: str, lowest: str, highest: str) -> pl.LazyFrame:
    return _scan(
        name, [path for path in list_table_files(name) if lowest <= path.parent.name <= highest]
    )


def _scan(name: str, found: list[Path]) -> pl.LazyFrame:
    if not found:
        return SCHEMAS[name].create_empty().lazy()
    return pl.scan_parquet(found, hive_partitioning=False)


def read(name: str) -> pl.DataFrame:
    """Read a whole small table; an absent one is empty."""
    return collect(scan(name))


def nights(table: Table) -> list[date]:
    """The nights that a result table holds, in order."""
    return [
        date.fromisoformat(path.parent.name.removeprefix("night="))
        for path in list_table_files(table)
    ]


def extent() -> tuple[date, date]:
    """The first and the last night of the lake.

    Raises:
        UserError: nothing has been ingested.
    """
    found = list_table_files("days")
    if not found:
        raise UserError("the lake is empty: run `meterwatch ingest` first")
    ends = pl.scan_parquet([found[0], found[-1]], hive_partitioning=False)
    first, last = collect(ends.select(pl.min("night"), last=pl.max("night"))).row(0)
    return first, last


def replace(path: Path, frame: pl.DataFrame) -> None:
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


def replace_month(month: date, days: pl.DataFrame, root: Path | None = None) -> None:
    """Replace one month of the lake; rows come sorted by night and household."""
    path = (root or home_dir()) / f"lake/days/month={month:%Y-%m}/days.parquet"
    replace(path, schemas.HouseholdNights.validate(days))


def replace_reference(name: Reference, frame: pl.DataFrame, root: Path | None = None) -> None:
    """Replace a reference table."""
    replace((root or home_dir()) / f"lake/{name}.parquet", SCHEMAS[name].validate(frame))


def replace_ledger(name: Ledger, key: str, frame: pl.DataFrame, root: Path | None = None) -> None:
    """Replace one entry of a ledger."""
    path = (root or home_dir()) / Path(TABLE_GLOBS[name]).with_name(f"{key}.parquet")
    replace(path, SCHEMAS[name].validate(frame))


def replace_night(table: Table, night: date, frame: pl.DataFrame) -> None:
    """Replace one night of a result table."""
    path = home_dir() / f"tables/{table}/night={night}/{table}.parquet"
    replace(path, SCHEMAS[table].validate(frame))


def remember_night(night: date, raw_scores: pl.DataFrame) -> None:
    """Keep what a network made of a night."""
    path = home_dir() / f"memory/raw_scores/night={night}/raw_scores.parquet"
    replace(path, schemas.ScoreCacheRows.validate(raw_scores))


@contextmanager
def writing() -> Iterator[None]:
    """Hold the home's write lock: one writer at a time, readers never wait."""
    home_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(home_dir() / ".lock"):
        _finish()
        try:
            yield
        finally:
            _finish()


def staging() -> Path:
    """Where a writer that holds the lock works."""
    return home_dir() / "staging"


def prepared() -> Path:
    """The root under which files wait to be published together."""
    return staging() / "prepared"


def publish() -> None:
    """Put everything that was prepared in its place, all of it or, if killed before, nothing."""
    if prepared().exists():
        prepared().rename(_decided())
    _finish()


def _decided() -> Path:
    return staging() / "decided"


def _finish() -> None:
    """Finish what a writer decided to publish, and clear away what it left."""
    for path in sorted(_decided().rglob("*.parquet")):
        target = home_dir() / path.relative_to(_decided())
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    shutil.rmtree(staging(), ignore_errors=True)
