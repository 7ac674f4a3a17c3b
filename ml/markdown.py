"""Markdown tables, for reports and benchmarks."""

from collections.abc import Iterable, Sequence

import polars as pl


def render_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table: the first column to the left, the others, numbers, to the right.

    Not `polars.Config(tbl_formatting="MARKDOWN")`: it wraps a cell wider than the table over
    several lines, which Markdown reads as several rows.
    """
    ruler = ["---", *("---:" for _ in header[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (header, ruler, *rows)]


def render_frame(frame: pl.DataFrame) -> str:
    """Return a frame as a table: floats with three decimals, null as an empty cell."""
    rows = ([_format_value(value) for value in row] for row in frame.iter_rows())
    return "\n".join(render_table(frame.columns, rows))


def _format_value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
