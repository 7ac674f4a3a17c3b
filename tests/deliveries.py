"""Deliveries that tests write by hand."""

import gzip
import hashlib
import zipfile
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from flows.ingest import ingest
from tasks import storage
from tasks.ingest.commit import IngestReceipt

START = datetime(2013, 6, 3)
KAGGLE_HEADER = "LCLid,tstp,energy(kWh/hh)"
ReadingRow = tuple[str, str, str]


def format_timestamp(slot: int) -> str:
    """Return the stamp of the half-hour `slot` after START, as Kaggle writes it."""
    return f"{START + timedelta(minutes=30 * slot):%Y-%m-%d %H:%M:%S}"


def build_rows(values: dict[int, object], household_id: str = "MAC000001") -> list[ReadingRow]:
    """Return rows of one household from its values by half-hour after START."""
    return [(household_id, format_timestamp(slot), str(value)) for slot, value in values.items()]


def write_csv(path: Path, lines: list[ReadingRow] | list[str], header: str = KAGGLE_HEADER) -> Path:
    """Write a CSV, gzipped or zipped if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = [line if isinstance(line, str) else ",".join(line) for line in lines]
    content = ("\n".join([header, *body]) + "\n").encode()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content, mtime=0))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readings.csv", content)
    else:
        path.write_bytes(content)
    return path


def ingest_sources(*sources: Path | str, **options: str) -> IngestReceipt:
    """Ingest without a Prefect server."""
    return ingest.fn([str(source) for source in sources], **options)


def load_readings() -> dict[tuple[str, str], float]:
    """Return the readings of the lake: kWh by household and stamp."""
    slots = (
        storage.scan_table("days")
        .explode("kwh")
        .with_columns(slot=pl.int_range(pl.len()).over("night", "household_id"))
    )
    ts = pl.col("night").cast(pl.Datetime("us")) + pl.duration(minutes=30 * pl.col("slot"))
    readings = slots.filter(pl.col("kwh").is_not_null()).select(
        "household_id", ts.dt.strftime("%Y-%m-%d %H:%M:%S"), "kwh"
    )
    return {(household, at): round(kwh, 3) for household, at, kwh in readings.collect().iter_rows()}


def load_quarantine() -> list[tuple[str | None, str | None, str, str]]:
    """Return the quarantine's rows: stamp, value, rule, file."""
    rows = storage.read_table("quarantine").with_columns(
        pl.col("ts_utc").dt.strftime("%Y-%m-%d %H:%M:%S")
    )
    return sorted(rows.select("ts_utc", "value", "rule", "file").rows(), key=str)


def hash_files(home: Path, subdirectory: str = "lake") -> dict[str, str]:
    """Return the SHA-256 of every file below a directory of the home, or of one file."""
    top = home / subdirectory
    files = [top] if top.is_file() else [path for path in top.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
