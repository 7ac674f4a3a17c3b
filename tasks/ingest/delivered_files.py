"""Open delivered files, whatever they are packed in, and read them in batches.

Whatever goes wrong on the way is one `UserError` that begins with the file's name.
"""

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
"""Rows that one thread validates at once. Chosen: small enough that the batches of all threads fit
in memory, large enough that most households lie in one batch."""
MAX_HEADER_BYTES: Final = 1 << 20
"""Bytes of the first line that are looked at for column names; chosen, so that a binary file
without line ends is not read whole."""
SAMPLE_BYTES: Final = 1 << 16
"""Bytes from which the rows of a text are estimated; chosen: some 1,500 rows, which for the shown
total is close enough."""
BLOCK_BYTES: Final = 1 << 20
"""Bytes that are copied or hashed at once; chosen."""
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
    """One delivered table: a file, or a CSV member of a zip; `file` is its name in every report."""

    path: Path
    file: str
    container: FileContainer
    zip_member: str | None = None


def list_tables(path: Path, file: str) -> list[DeliveredTable]:
    """Return the tables that a file holds: itself, or the CSV members of a zip, by name.

    Raises:
        UserError: the file is empty, cannot be read, or is a zip without a CSV.
    """
    container = detect_container(path)
    if container != "zip":
        return [DeliveredTable(path, file, container)]
    with _explain_read_errors(file), zipfile.ZipFile(path) as archive:
        members = sorted(name for name in archive.namelist() if name.lower().endswith(".csv"))
    if not members:
        raise UserError(f"{file}: holds no CSV file")
    return [DeliveredTable(path, f"{file}/{member}", "zip", member) for member in members]


def detect_container(path: Path) -> FileContainer:
    """Return what a file is packed in, by its first bytes.

    A file named Parquet is taken for one whatever it begins with, so that a broken one is reported
    as that and not as a strange CSV.
    """
    with _explain_read_errors(path.name), path.open("rb") as file:
        magic = file.read(4)
    if not magic:
        raise UserError(f"{path.name}: is empty")
    if magic == b"PAR1" or path.suffix.lower() == ".parquet":
        return "parquet"
    # RFC 1952, and the local file header of a zip's first member (an empty zip has none).
    if magic[:2] == b"\x1f\x8b":
        return "gzip"
    return "zip" if magic == b"PK\x03\x04" else "plain"


def read_column_names(table: DeliveredTable) -> list[str]:
    """Return the clean names of a table's columns; a Parquet file is checked to be whole.

    Raises:
        UserError: the table is empty or cannot be read.
    """
    if table.container == "parquet":
        _require_whole_parquet(table)
        with _explain_read_errors(table.file):
            return [clean_column_name(name) for name in pl.read_parquet_schema(table.path)]
    with _explain_read_errors(table.file), _open_stream(table) as stream:
        lines = iter(lambda: stream.readline(MAX_HEADER_BYTES), b"")
        header = next((line for line in lines if line.strip()), b"")
        if not header:
            raise UserError(f"{table.file}: is empty")
        # Polars splits the header, as it will when the rows are read: quotes, repeated names.
        names = pl.read_csv(BytesIO(header), infer_schema=False).columns
    return [clean_column_name(name) for name in names]


def hash_content(table: DeliveredTable) -> str:
    """Return the SHA-256 of a table's bytes, the key of the delivery.

    A member of a zip is hashed by itself, unpacked; any other file as it is.
    """
    if table.zip_member is None:
        with _explain_read_errors(table.file), table.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    content = hashlib.sha256()
    with _explain_read_errors(table.file), _open_stream(table) as stream:
        while block := stream.read(BLOCK_BYTES):
            content.update(block)
    return content.hexdigest()


def estimate_row_count(table: DeliveredTable) -> int:
    """Return how many rows a table has, for the progress bar; 0 if that cannot be told.

    Parquet says it exactly; of text it is its size over the length of its first lines.
    """
    try:
        if table.container == "parquet":
            return int(pq.read_metadata(table.path).num_rows)
        with _open_stream(table) as stream:
            sample = stream.read(SAMPLE_BYTES)
        return _estimate_unpacked_bytes(table) * sample.count(b"\n") // max(len(sample), 1)
    except (UserError, *READ_ERRORS):
        return 0


def _estimate_unpacked_bytes(table: DeliveredTable) -> int:
    if table.zip_member is not None:
        with zipfile.ZipFile(table.path) as archive:
            return archive.getinfo(table.zip_member).file_size
    if table.container == "plain":
        return table.path.stat().st_size
    with table.path.open("rb") as file:
        file.seek(-4, SEEK_END)  # RFC 1952: a gzip ends with its size, modulo 4 GiB
        return int.from_bytes(file.read(), "little")


@contextmanager
def scan_table(table: DeliveredTable, scratch_dir: Path) -> Iterator[pl.LazyFrame]:
    """Scan a table under its clean column names, a CSV as text.

    What is packed is unpacked to a file in `scratch_dir`, which is removed when the block ends.
    """
    if table.container == "parquet":
        yield _clean_column_names(pl.scan_parquet(table.path, glob=False, hive_partitioning=False))
    elif table.container == "plain":
        yield _scan_csv(table.path)
    else:
        scratch_dir.mkdir(parents=True, exist_ok=True)
        unpacked = scratch_dir / "unpacked.csv"
        with unpacked.open("wb") as file, _open_stream(table) as stream:
            _write_unpacked(table, stream, file)
        yield _scan_csv(unpacked)
        unpacked.unlink()


def iterate_batches(table: DeliveredTable, frame: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """Yield the rows of a table's scan in batches of about `BATCH_ROWS`.

    Raises:
        UserError: a row or a page cannot be read.
    """
    # In the file's order: validation is fastest on rows that are sorted by household.
    with _explain_read_errors(table.file, table):
        yield from frame.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True, lazy=True)


def read_table(table: DeliveredTable, scratch_dir: Path) -> pl.DataFrame:
    """Return all rows of a small table; `scratch_dir` as in `scan_table`."""
    with scan_table(table, scratch_dir) as frame, _explain_read_errors(table.file, table):
        return frame.collect()


@contextmanager
def name_file_in_errors(file: str) -> Iterator[None]:
    """Put the file's name before a `UserError` about its content."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


@contextmanager
def _explain_read_errors(file: str, table: DeliveredTable | None = None) -> Iterator[None]:
    """Turn whatever reading a delivered file raises into a `UserError` of one line.

    Given the table, a line with too many fields is looked for: Polars does not say which it is.
    """
    try:
        yield
    except READ_ERRORS as error:
        ragged = _describe_ragged_line(table) if table and "more fields" in str(error) else None
        reason = ragged or f"cannot be read ({_summarize_error(error)})"
        raise UserError(f"{file}: {reason}") from error


def _summarize_error(error: BaseException) -> str:
    """Return the first line of an error, without the path that `str` of an OSError repeats."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return message.strip().splitlines()[0] if message.strip() else type(error).__name__


def _describe_ragged_line(table: DeliveredTable) -> str | None:
    """Return which line has more fields than the header; None if there is none."""
    with (
        _open_stream(table) as stream,
        TextIOWrapper(stream, "utf-8", errors="replace", newline="") as lines,
    ):
        rows = csv.reader(lines)
        n_columns = len(next((row for row in rows if row), []))
        for row in rows:
            if len(row) > n_columns:
                return (
                    f"line {rows.line_num} has {len(row)} fields where the header has {n_columns}"
                )
    return None


def _require_whole_parquet(table: DeliveredTable) -> None:
    """Refuse a Parquet file that ends before its column chunks do: Polars panics on it.

    Its panics are caught too (`READ_ERRORS`), but print a traceback before.
    """
    try:
        metadata = pq.read_metadata(table.path)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{table.file}: is not a whole Parquet file ({_summarize_error(error)})"
        ) from error
    # A chunk begins with its dictionary page, where it has one.
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    ends = [
        start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True)
    ]
    if max(ends, default=0) > table.path.stat().st_size:
        raise UserError(f"{table.file}: is not a whole Parquet file (its pages are cut off)")


def _scan_csv(path: Path) -> pl.LazyFrame:
    """Scan a CSV as text: types are ours to parse, cell by cell. Blank lines are no rows."""
    # Without `glob=False` a name with brackets would be a pattern.
    frame = _clean_column_names(pl.scan_csv(path, infer_schema=False, glob=False))
    return frame.filter(~pl.all_horizontal(pl.all().is_null()))


def _clean_column_names(frame: pl.LazyFrame) -> pl.LazyFrame:
    names = frame.collect_schema().names()
    return frame.rename({name: clean_column_name(name) for name in names})


@contextmanager
def _open_stream(table: DeliveredTable) -> Iterator[IO[bytes]]:
    """Open a CSV as its unpacked bytes."""
    if table.zip_member is not None:
        with zipfile.ZipFile(table.path) as archive, archive.open(table.zip_member) as stream:
            yield stream
    elif table.container == "gzip":
        with gzip.open(table.path) as unpacked, BufferedReader(unpacked) as stream:
            yield stream
    else:
        with table.path.open("rb") as stream:
            yield stream


def _write_unpacked(table: DeliveredTable, stream: IO[bytes], target: IO[bytes]) -> None:
    with _explain_read_errors(table.file):
        shutil.copyfileobj(stream, target, length=BLOCK_BYTES)
