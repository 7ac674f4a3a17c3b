"""Markdown tables are valid whatever their cells hold."""

import polars as pl

from ml.markdown import render_frame, render_table


def test_table_has_a_ruler_and_a_line_a_row() -> None:
    assert render_table(["detector", "AP"], [["fusion", "0.5"]]) == [
        "| detector | AP |",
        "| --- | ---: |",
        "| fusion | 0.5 |",
    ]


def test_frame_is_rendered_with_three_decimals_and_without_null() -> None:
    frame = pl.DataFrame({"job": ["x" * 300, None], "s": [1234.5, None], "n": [1000, 2]})
    header, _, first, second = render_frame(frame).splitlines()
    assert header == "| job | s | n |"
    assert first == f"| {'x' * 300} | 1,234.500 | 1,000 |"
    assert second == "|  |  | 2 |"
