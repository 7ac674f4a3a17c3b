"""What a run leaves behind for people to read, in Markdown."""

from collections.abc import Iterable, Mapping
from datetime import date

import polars as pl

MOST_URGENT = 10


def delivered(rows_in: int, rows_kept: int, set_aside: Mapping[str, int]) -> str:
    """Rows delivered, kept and set aside, by rule."""
    total = sum(set_aside.values())
    lines = [f"{rows_in:,} rows delivered, {rows_kept:,} kept, {total:,} set aside.", ""]
    if total:
        counts = sorted(set_aside.items(), key=lambda item: -item[1])
        lines += _table(("rule", "rows"), ((rule, f"{rows:,}") for rule, rows in counts if rows))
    return _section("Rows", lines)


def scored(scores: pl.DataFrame) -> str:
    """Households by status and the most urgent, of the nights in `scores`."""
    nights = scores.get_column("night").unique().sort().to_list()
    return "\n".join([_by_status(scores), *(_most_urgent(scores, night) for night in nights[-1:])])


def checked(failures: Mapping[str, int]) -> str:
    """What the SQL checks found: offending rows by check."""
    bad = {name: rows for name, rows in failures.items() if rows}
    lines = [f"{len(failures) - len(bad)} of {len(failures)} checks passed.", ""]
    if bad:
        lines += _table(("check", "offending rows"), ((n, f"{rows:,}") for n, rows in bad.items()))
    return _section("Checks", lines)


def _by_status(scores: pl.DataFrame) -> str:
    counts = (
        scores.group_by("status")
        .agg(rows=pl.len(), flagged=pl.col("is_anomaly").sum())
        .sort("rows", descending=True)
    )
    rows = ((str(s), f"{n:,}", f"{flagged:,}") for s, n, flagged in counts.iter_rows())
    return _section("Households by status", _table(("status", "households", "flagged"), rows))


def _most_urgent(scores: pl.DataFrame, night: date) -> str:
    flagged = scores.filter(pl.col("is_anomaly"), pl.col("night") == night)
    if flagged.is_empty():
        return _section(f"Most urgent of {night}", ["No household is within the alert budget."])
    columns = ("rank", "household_id", "reason", "score", "p_value", "actual_kwh", "expected_kwh")
    urgent = flagged.sort("rank").head(MOST_URGENT).select(columns)
    rows = (
        (str(rank), household, str(reason), *(_number(value) for value in values))
        for rank, household, reason, *values in urgent.iter_rows()
    )
    return _section(f"Most urgent of {night}", _table(columns, rows))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _section(title: str, lines: Iterable[str]) -> str:
    return "\n".join([f"## {title}", "", *lines, ""])


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    columns = list(header)
    ruled = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cells)} |" for cells in ruled]
