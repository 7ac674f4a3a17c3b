"""Frames are shown as tables and written as CSV, JSON and Parquet."""

from pathlib import Path

import polars as pl
import pytest

from flows.rendering import format_cell, write_frame
from ml.errors import UserError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0.000123456, "0.0001235"),
        (999.96, "1,000"),
        (12345.6, "12,346"),
        ([1.5, None, 2.0], "1.5  2"),
        ("spike", "spike"),
    ],
)
def test_cell_shows_four_digits_of_a_number_and_nothing_of_a_null(value: object, text: str) -> None:
    assert format_cell(value) == text


@pytest.mark.parametrize("dtype", [pl.List(pl.Int64), pl.Array(pl.Int64, 2)])
def test_lists_and_arrays_are_one_csv_cell(dtype: pl.DataType, tmp_path: Path) -> None:
    out = tmp_path / "answer.csv"
    write_frame(pl.DataFrame({"pair": [[1, None]]}, schema={"pair": dtype}), "csv", out)
    assert out.read_text() == "pair\n1 \n"


def test_table_without_rows_says_so(tmp_path: Path) -> None:
    out = tmp_path / "answer.txt"
    write_frame(pl.DataFrame(schema={"night": pl.Date}), "table", out)
    assert "no rows" in out.read_text()


def test_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written"):
        write_frame(pl.DataFrame(), "csv", tmp_path)
