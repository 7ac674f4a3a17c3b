"""The benchmark's metrics as a person reads them, in Markdown."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from ml.evaluation.inject import KIND_NAMES
from ml.evaluation.metrics import (
    ALERT_BUDGETS,
    DETECTION_DELAY_NIGHTS,
    HEADLINE_BUDGET,
    HEADLINE_DELAY_NIGHTS,
)
from ml.markdown import render_table

HEADLINE_METRIC: Final = f"recall_{HEADLINE_BUDGET}_episodes"
"""The metric that kinds are compared by."""
RANKING_METRIC: Final = "average_precision_8pct"
"""The metric that detectors are ordered by: it needs no threshold and has the least noise."""
FLAG_COLUMNS: Final = {
    "flagged_false_episodes": "flags: false episodes in 1,000",
    "flagged_recall": "flags: recall",
    f"flagged_found_within_{HEADLINE_DELAY_NIGHTS}_nights": (
        f"flags: 14-night in {HEADLINE_DELAY_NIGHTS}"
    ),
}
"""What the product raises at its budget; empty for detectors without a calibration."""
MAIN_COLUMNS: Final = {
    **FLAG_COLUMNS,
    RANKING_METRIC: "AP at 8 %",
    "average_precision_2pct": "AP at 2 %",
    "average_precision_0.5pct": "AP at 0.5 %",
    "auc": "AUC",
    "recall_1pct": "R@1%",
    "recall_0.1pct": "R@.1%",
    **{f"recall_{budget}_episodes": f"recall at {budget}" for budget in ALERT_BUDGETS},
    **{
        f"found_within_{HEADLINE_DELAY_NIGHTS}_nights_{budget}_episodes": (
            f"14-night in {HEADLINE_DELAY_NIGHTS} at {budget}"
        )
        for budget in ALERT_BUDGETS
    },
}
DETAIL_COLUMNS: Final = {
    **{
        f"found_within_{n_nights}_nights_{HEADLINE_BUDGET}_episodes": f"found in {n_nights}"
        for n_nights in DETECTION_DELAY_NIGHTS
    },
    "precision_top_10": "precision top 10",
    "precision_top_50": "precision top 50",
    "worst_households_share": "false alarms of the worst 1 % of households",
}
METRICS_WITH_INTERVAL: Final = (*FLAG_COLUMNS, RANKING_METRIC, HEADLINE_METRIC)
"""Metrics whose bootstrap interval stands beside them; more would make the table unreadable."""


def render_benchmark(metrics: pl.DataFrame, description_lines: Sequence[str]) -> str:
    """Return the report of all detectors, in Markdown.

    `metrics` has `detector`, `households` (held_out or training), and the columns of
    `METRICS_SCHEMA`.
    """
    detectors = rank_detectors(metrics)
    held_out = metrics.filter(households="held_out")
    is_of_all = pl.col("subset").is_null()
    by_kind = held_out.filter(~is_of_all)
    training = metrics.filter(is_of_all, households="training")
    sections = [
        (
            "Households that no network learned from",
            _render_metrics(held_out.filter(is_of_all), detectors, MAIN_COLUMNS),
        ),
        (
            f"At {HEADLINE_BUDGET} false episodes in 1,000 nights",
            _render_metrics(held_out, detectors, DETAIL_COLUMNS),
        ),
        (
            "Households that were learned from",
            _render_metrics(training, detectors, MAIN_COLUMNS),
        ),
        (
            f"Recall by kind at {HEADLINE_BUDGET} false episodes in 1,000 nights",
            _render_subsets(by_kind, detectors, HEADLINE_METRIC, KIND_NAMES),
        ),
        ("AUC by kind", _render_subsets(by_kind, detectors, "auc", KIND_NAMES)),
        (
            "Alarms in 1,000 nights that must not alert, at the threshold of "
            f"{HEADLINE_BUDGET} episodes",
            _render_subsets(held_out, detectors, "alarms_per_1000"),
        ),
        (
            f"Realised over target alarm rate by month, {HEADLINE_BUDGET} in 1,000 nights",
            _render_subsets(held_out, detectors, "alarms_over_target"),
        ),
    ]
    lines = ["# Detection benchmark", "", *(f"- {line}" for line in description_lines), ""]
    for title, rows in sections:
        lines += [f"## {title}", "", *rows, ""]
    return "\n".join(lines)


def render_reasons(reason_table: pl.DataFrame, description: str) -> str:
    """Return the section of reasons, in Markdown.

    `reason_table` is that of `tabulate_reasons`: `kind`, a column of counts for each reason, and
    `right`, a share.
    """
    header = [_replace_underscores(name) for name in reason_table.columns]
    rows = [
        [_replace_underscores(kind), *(str(count) for count in counts), _format_number(right)]
        for kind, *counts, right in reason_table.iter_rows()
    ]
    return "\n".join(["", "## Reasons", "", description, "", *render_table(header, rows), ""])


def render_summary(metrics: pl.DataFrame) -> str:
    """Return the report's first table, of held-out households."""
    held_out = metrics.filter(pl.col("subset").is_null(), households="held_out")
    return "\n".join(_render_metrics(held_out, rank_detectors(metrics), MAIN_COLUMNS))


def rank_detectors(metrics: pl.DataFrame) -> list[str]:
    """Return the detectors by average precision on held-out households, the best first."""
    chosen = metrics.filter(households="held_out", metric=RANKING_METRIC)
    names: list[str] = chosen.sort("value", descending=True, nulls_last=True)["detector"].to_list()
    return names


def _render_metrics(
    metrics: pl.DataFrame, detectors: Sequence[str], columns: dict[str, str]
) -> list[str]:
    """Render a row a detector and a column a metric; empty where a detector lacks a metric."""
    cells = {
        (detector, metric): _format_cell(value, low, high, metric in METRICS_WITH_INTERVAL)
        for detector, metric, value, low, high in metrics.select(
            "detector", "metric", "value", "low", "high"
        ).iter_rows()
    }
    rows = ([name, *(cells.get((name, metric), "") for metric in columns)] for name in detectors)
    return render_table(["detector", *columns.values()], rows)


def _render_subsets(
    metrics: pl.DataFrame,
    detectors: Sequence[str],
    metric: str,
    subsets: Sequence[str] | None = None,
) -> list[str]:
    """Render a row a detector and a column a subset: a kind, a control or a month."""
    chosen = metrics.filter(metric=metric)
    names = subsets or chosen["subset"].unique(maintain_order=True).to_list()
    n_nights = dict(metrics.filter(metric="control_nights").select("subset", "value").iter_rows())
    cells = dict(zip(chosen.select("detector", "subset").iter_rows(), chosen["value"], strict=True))
    rows = (
        [detector, *(_format_number(cells.get((detector, name))) for name in names)]
        for detector in detectors
    )
    headings = [_format_heading(name, n_nights.get(name)) for name in names]
    return render_table(["detector", *headings], rows)


def _format_heading(name: str, n_nights: float | None) -> str:
    words = _replace_underscores(name)
    return words if n_nights is None else f"{words} ({n_nights:,.0f} nights)"


def _replace_underscores(name: str) -> str:
    return name.replace("_", " ")


def _format_cell(value: float, low: float | None, high: float | None, has_interval: bool) -> str:
    if not has_interval or low is None or high is None:
        return _format_number(value)
    return f"{_format_number(value)} ({_format_number(low)} to {_format_number(high)})"


def _format_number(value: float | None) -> str:
    # NaN is the one value that differs from itself.
    if value is None or value != value:
        return ""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
