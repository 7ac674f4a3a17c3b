"""Report what a run did: Markdown artifacts, pictures, how much of a simulation was flagged."""

import io
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl

from ml.evaluation.detection_summary import DetectionSummary, summarize_detection
from ml.markdown import render_table
from tasks import paths, storage

if TYPE_CHECKING:
    from tasks.scoring import ScoreReceipt

MAX_URGENT_ROWS: Final = 10
"""Most households in a report's table. Chosen: the table `top_anomalies` has all of them."""
PICTURE_DPI: Final = 90
"""Dots an inch of pictures. Chosen: sharp enough on a screen, and small."""


def publish_artifact(key: str, markdown: str) -> None:
    """Store a Markdown artifact with the flow run; do nothing outside one."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.context import FlowRunContext

    if FlowRunContext.get() is not None:
        create_markdown_artifact(markdown, key=key)


def publish_score_report(receipt: "ScoreReceipt") -> None:
    """Store the report of a scored span of nights with the flow run; do nothing outside one."""
    publish_artifact(f"scores-{receipt.last_night}", render_scores(receipt))


def render_scores(receipt: "ScoreReceipt") -> str:
    """Render household-nights by status, and alerts and urgent households of the last night."""
    night = receipt.last_night
    scores = storage.collect_with_retry(storage.scan_nights("scores", night, night))
    nights = storage.collect_with_retry(storage.scan_nights("nights", night, night))
    return (
        render_status_counts(receipt.counts_by_status)
        + render_alerts(nights)
        + render_most_urgent(scores, night)
    )


def draw_most_urgent(first_night: date, last_night: date) -> Path | None:
    """Draw the most urgent households of a span of nights, each by its night of the lowest p-value.

    Returns the picture's path, None if no household was flagged.
    """
    from ml.plots import household_nights

    flagged = storage.collect_with_retry(storage.scan_nights("anomalies", first_night, last_night))
    urgent = (
        flagged.sort("p_value", "night", "household_id")
        .unique("household_id", keep="first", maintain_order=True)
        .head(household_nights.N_EXAMPLES)
    )
    if urgent.is_empty():
        return None
    title = (
        f"Most urgent households, {first_night} to {last_night}"
        if first_night < last_night
        else f"Most urgent of {last_night}"
    )
    path = paths.picture_file(last_night)
    image = io.BytesIO()
    household_nights.draw_profiles(household_nights.build_flagged_examples(urgent), title).savefig(
        image, dpi=PICTURE_DPI
    )
    storage.replace_bytes(path, image.getvalue())
    return path


def summarize_simulated_detection(first_night: date, last_night: date) -> DetectionSummary:
    """Compare the flags of a span of nights with the anomalies that the main job's fleet holds."""
    is_in_span = pl.col("night").is_between(first_night, last_night)
    truth = pl.read_parquet(paths.simulated_dir() / "truth.parquet").filter(is_in_span)
    scores = storage.collect_with_retry(storage.scan_nights("scores", first_night, last_night))
    return summarize_detection(scores, truth)


def render_row_counts(rows_in: int, rows_kept: int, quarantined_by_rule: Mapping[str, int]) -> str:
    """Render the rows delivered, kept and quarantined, by rule, the most frequent first."""
    total = sum(quarantined_by_rule.values())
    lines = [f"{rows_in:,} rows delivered, {rows_kept:,} kept, {total:,} quarantined.", ""]
    if total:
        counts = sorted(quarantined_by_rule.items(), key=lambda item: -item[1])
        lines += render_table(
            ("rule", "rows"), ((rule, f"{rows:,}") for rule, rows in counts if rows)
        )
    return _render_section("Rows", lines)


def render_status_counts(counts: Mapping[str, int]) -> str:
    """Render household-nights by status."""
    rows = ((status, f"{count:,}") for status, count in counts.items())
    return _render_section(
        "Household-nights by status", render_table(("status", "household-nights"), rows)
    )


def render_alerts(nights: pl.DataFrame) -> str:
    """Render flags and new episodes beside the alert budget, fleet shift and tail inflation.

    `nights` has the rows of the table `nights` to report, one paragraph each.
    """
    lines = [
        f"{night['flagged']:,} of {night['scored']:,} scored households are flagged on "
        f"{night['night']}; {night['opened']:,} episodes opened, {night['opened_per_1000']:.2f} in "
        f"1,000 (budget of false ones: {night['alert_budget']:g}). The fleet's scores moved by "
        f"{night['fleet_shift']:+.2f} together, and its unusual nights are "
        f"{night['tail_inflation']:.2f} times as many as in the calibration."
        for night in nights.iter_rows(named=True)
    ]
    return _render_section("Alerts", lines)


def render_most_urgent(scores: pl.DataFrame, night: date) -> str:
    """Render the flagged households of a night by rank, at most `MAX_URGENT_ROWS`."""
    flagged = scores.filter(pl.col("is_anomaly"), pl.col("night") == night)
    if flagged.is_empty():
        return _render_section("Most urgent", [f"No household was flagged on {night}."])
    columns = ("rank", "household_id", "reason", "score", "p_value", "actual_kwh", "expected_kwh")
    urgent = flagged.sort("rank").head(MAX_URGENT_ROWS).select(columns)
    rows = (
        (str(rank), household, str(reason), *(_format_number(value) for value in values))
        for rank, household, reason, *values in urgent.iter_rows()
    )
    return _render_section(f"Most urgent of {night}", render_table(columns, rows))


def render_checks(offending_rows_by_check: Mapping[str, int]) -> str:
    """Render how many SQL checks passed, and the offending rows of those that did not."""
    failed = {name: rows for name, rows in offending_rows_by_check.items() if rows}
    n_checks = len(offending_rows_by_check)
    lines = [
        f"{n_checks - len(failed)} of {n_checks} checks passed.",
        "",
    ]
    if failed:
        lines += render_table(
            ("check", "offending rows"), ((n, f"{rows:,}") for n, rows in failed.items())
        )
    return _render_section("Checks", lines)


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _render_section(title: str, lines: Iterable[str]) -> str:
    return "\n".join([f"## {title}", "", *lines, "", ""])
