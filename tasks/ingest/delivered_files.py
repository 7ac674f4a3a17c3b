"""Delivered files: found, told apart by their columns, opened, read in batches."""

import csv
import gzip
import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO, TextIOWrapper
from os import SEEK_END
from pathlib import Path
from typing import IO, Final, Literal

import polars as pl
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from ml.errors import UserError
from ml.ingest.formats import clean_column_name

DELIVERED_SUFFIXES: Final = (".csv", ".csv.gz", ".zip", ".parquet")
BATCH_ROWS: Final = 2_000_000
MAX_HEADER_BYTES: Final = 1 << 20
SAMPLE_BYTES: Final = 1 << 16
READ_ERRORS: Final = (
    OSError,
    EOFError,
    zlib.error,
    zipfile.BadZipFile,
    RuntimeError,  # an encrypted zip
    NotImplementedError,  # a zip's compression
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
)
FileContainer = Literal["parquet", "gzip", "zip", "plain"]


@dataclass(frozen=True)
class DeliveredTable:
    """One delivered table: a file, or a member of a zip; `file` is its name in every report."""

    path: Path
    file: str
    zip_member: str | None = None


def list_tables(path: Path, file: str) -> list[DeliveredTable]:
    """The tables that a file holds: itself, or the CSV members of a zip."""
    if detect_container(path) != "zip":
        return [DeliveredTable(path, file)]
    with _explain_read_errors(file), zipfile.ZipFile(path) as archive:
        members = sorted(name for name in archive.namelist() if name.lower().endswith(".csv"))
    if not members:
        raise UserError(f"{file}: holds no CSV file")
    return [DeliveredTable(path, f"{file}/{member}", member) for member in members]


def detect_container(path: Path) -> FileContainer:
    """How a file is packed, by its first bytes; a Parquet file's name is believed too."""
    with _explain_read_errors(path.name), path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise UserError(f"{path.name}: is empty")
    if start == b"PAR1" or path.suffix.lower() == ".parquet":
        return "parquet"
    if start[:2] == b"\x1f\x8b":
        return "gzip"
    return "zip" if start == b"PK\x03\x04" else "plain"


def read_column_names(table: DeliveredTable) -> list[str]:
    """The names of a table's columns, clean.

    Raises:
        UserError: the table is empty or cannot be read.
    """
    if table.zip_member is None and detect_container(table.path) == "parquet":
        _require_whole_parquet(table)
        with _explain_read_errors(table.file):
            return [clean_column_name(name) for name in pl.read_parquet_schema(table.path)]
    with _explain_read_errors(table.file), _open_stream(table) as stream:
        header = next(
            (line for line in iter(lambda: stream.readline(MAX_HEADER_BYTES), b"") if line.strip()),
            b"",
        )
        if not header:
            raise UserError(f"{table.file}: is empty")
        names = pl.read_csv(BytesIO(header), infer_schema=False).columns
    return [clean_column_name(name) for name in names]


def hash_content(table: DeliveredTable) -> str:
    """What the table's content hashes to: the key of the delivery."""
    if table.zip_member is None:
        with _explain_read_errors(table.file), table.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    with _explain_read_errors(table.file), _open_stream(table) as stream:
        content = hashlib.sha256()
        while block := stream.read(1 << 20):
            content.update(block)
    return content.hexdigest()


def estimate_row_count(table: DeliveredTable) -> int:
    """How many rows a table has: of Parquet exactly, of text by its first lines; 0 if not known."""
    try:
        if table.zip_member is None and detect_container(table.path) == "parquet":
            return int(pq.read_metadata(table.path).num_rows)
        with _open_stream(table) as stream:
            start = stream.read(SAMPLE_BYTES)
        return _estimate_unpacked_bytes(table) * start.count(b"\n") // max(len(start), 1)
    except (UserError, *READ_ERRORS):
        return 0


def _estimate_unpacked_bytes(table: DeliveredTable) -> int:
    if table.zip_member is not None:
        with zipfile.ZipFile(table.path) as archive:
            return archive.getinfo(table.zip_member).file_size
    with table.path.open("rb") as file:
        if detect_container(table.path) == "plain":
            return file.seek(0, SEEK_END)
        file.seek(-4, SEEK_END)  # RFC 1952: the size, modulo 4 GiB
        return int.from_bytes(file.read(), "little")


@contextmanager
def scan_table(table: DeliveredTable, scratch_dir: Path) -> Iterator[pl.LazyFrame]:
    """Scan a table under its clean column names; what is packed is unpacked below `scratch`."""
    kind = "zip" if table.zip_member else detect_container(table.path)
    if kind == "parquet":
        _require_whole_parquet(table)
        yield _clean_column_names(pl.scan_parquet(table.path, glob=False, hive_partitioning=False))
    elif kind == "plain":
        yield _scan_csv(table.path)
    else:
        scratch_dir.mkdir(parents=True, exist_ok=True)
        plain = scratch_dir / "unpacked.csv"
        with plain.open("wb") as file, _open_stream(table) as stream:
            _write_unpacked(table, stream, file)
        yield _scan_csv(plain)
        plain.unlink()


def iterate_batches(table: DeliveredTable, frame: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """The rows of a table's scan, a batch at a time, in any order.

    Raises:
        UserError: a row or a page cannot be read.
    """
    with _explain_read_errors(table.file, table):
        yield from frame.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True, lazy=True)


def read_table(table: DeliveredTable, scratch_dir: Path) -> pl.DataFrame:
    """Read a whole small table."""
    with scan_table(table, scratch_dir) as frame, _explain_read_errors(table.file, table):
        return frame.collect()


@contextmanager
def name_file_in_errors(file: str) -> Iterator[None]:
    """Put the file's name before what is wrong with its content."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


@contextmanager
def _explain_read_errors(file: str, table: DeliveredTable | None = None) -> Iterator[None]:
    """Turn whatever reading a delivered file raises into one line that names it."""
    try:
        yield
    except READ_ERRORS as error:
        ragged = _describe_ragged_line(table) if table and "more fields" in str(error) else None
        reason = ragged or f"cannot be read ({_summarize_error(error)})"
        raise UserError(f"{file}: {reason}") from error


def _summarize_error(error: BaseException) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return said.strip().splitlines()[0] if said.strip() else type(error).__name__


def _describe_ragged_line(table: DeliveredTable) -> str | None:
    """Say which line has more fields than the header."""
    with (
        _open_stream(table) as stream,
        TextIOWrapper(stream, "utf-8", errors="replace", newline="") as lines,
    ):
        rows = csv.reader(lines)
        width = len(next((row for row in rows if row), []))
        for row in rows:
            if len(row) > width:
                return f"line {rows.line_num} has {len(row)} fields where the header has {width}"
    return None


def _require_whole_parquet(table: DeliveredTable) -> None:
    """Refuse a Parquet file that ends before its column chunks do: Polars panics on it."""
    try:
        about = pq.read_metadata(table.path)
        groups = [about.row_group(group) for group in range(about.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{table.file}: is not a whole Parquet file ({_summarize_error(error)})"
        ) from error
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    ends = [
        start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True)
    ]
    if max(ends, default=0) > table.path.stat().st_size:
        raise UserError(f"{table.file}: is not a whole Parquet file (its pages are cut off)")


def _scan_csv(path: Path) -> pl.LazyFrame:
    """Scan a CSV as text; blank lines are no rows."""
    frame = _clean_column_names(pl.scan_csv(path, infer_schema=False, glob=False))
    return frame.filter(~pl.all_horizontal(pl.all().is_null()))


def _clean_column_names(frame: pl.LazyFrame) -> pl.LazyFrame:
    names = frame.collect_schema().names()
    return frame.rename({name: clean_column_name(name) for name in names})


@contextmanager
def _open_stream(table: DeliveredTable) -> Iterator[IO[bytes]]:
    """The bytes of a CSV, unpacked."""
    if table.zip_member is not None:
        with zipfile.ZipFile(table.path) as archive, archive.open(table.zip_member) as stream:
            yield stream
    elif detect_container(table.path) == "gzip":
        with gzip.open(table.path) as unpacked, BufferedReader(unpacked) as stream:
            yield stream
    else:
        with table.path.open("rb") as stream:
            yield stream


def _write_unpacked(table: DeliveredTable, stream: IO[bytes], target: IO[bytes]) -> None:
    with _explain_read_errors(table.file):
        shutil.copyfileobj(stream, target, length=1 << 20)
