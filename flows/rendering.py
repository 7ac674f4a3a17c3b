"""Print and encode frames, for users and for other programs."""

import io
import sys
from pathlib import Path
from typing import Final, Literal

import polars as pl
import polars.selectors as cs
from rich.console import Console
from rich.table import Table

from ml.errors import UserError

OutputFormat = Literal["table", "csv", "json", "parquet"]
LOG_WIDTH_CHARACTERS: Final = 160
"""Width of a table where standard output is no terminal. Chosen to hold the widest named query."""
EXACT_DIGITS_BELOW: Final = 1000
"""Numbers below it are shown with four significant digits, larger ones as integers. Chosen."""


def print_table(frame: pl.DataFrame, title: str | None = None) -> None:
    """Print a frame as a table, as wide as the terminal, or `LOG_WIDTH_CHARACTERS` in a log."""
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH_CHARACTERS)
    if title:
        console.print(title, style="bold", highlight=False)
    console.print(_build_table(frame))


def write_frame(frame: pl.DataFrame, output_format: OutputFormat, output_file: Path | None) -> None:
    """Write a frame to a file or, without one, to standard output.

    Raises:
        UserError: the file cannot be written.
    """
    if output_format == "table" and output_file is None:
        print_table(frame)
    elif output_file is None:
        sys.stdout.buffer.write(_encode_frame(frame, output_format))
    else:
        try:
            output_file.write_bytes(_encode_frame(frame, output_format))
        except OSError as error:
            raise UserError(f"{output_file}: cannot be written: {error.strerror}") from None


def _encode_frame(frame: pl.DataFrame, output_format: OutputFormat) -> bytes:
    buffer = io.BytesIO()
    match output_format:
        case "table":
            text = io.StringIO()
            Console(file=text, width=LOG_WIDTH_CHARACTERS).print(_build_table(frame))
            return text.getvalue().encode()
        case "csv":
            # Polars refuses lists in CSV: their values come into one cell, separated by spaces.
            texts = pl.element().cast(pl.String).fill_null("")
            lists = frame.with_columns(cs.array().arr.to_list())
            lists.with_columns(cs.list().list.eval(texts).list.join(" ")).write_csv(buffer)
        case "json":
            frame.write_json(buffer)
        case "parquet":
            frame.write_parquet(buffer)
    return buffer.getvalue()


def _build_table(frame: pl.DataFrame) -> Table:
    table = Table(caption=None if len(frame) else "no rows", caption_justify="left")
    for name, dtype in frame.schema.items():
        table.add_column(name, justify="right" if dtype.is_numeric() else "left")
    for row in frame.iter_rows():
        table.add_row(*map(format_cell, row))
    return table


def format_cell(value: object) -> str:
    """Return a value as text for a table's cell; null is empty, a list is its values."""
    match value:
        case None:
            return ""
        case float():
            return f"{value:,.4g}" if abs(value) < EXACT_DIGITS_BELOW else f"{value:,.0f}"
        case list():
            return " ".join(map(format_cell, value))
        case _:
            return str(value)
