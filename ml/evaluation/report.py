"""The benchmark's table as a person reads it, in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Final

import polars as pl

from ml.evaluation.inject import KIND_NAMES
from ml.evaluation.metrics import ALERT_BUDGETS, HEADLINE_BUDGET

HEADLINE_METRIC: Final = f"recall_{HEADLINE_BUDGET}_episodes"
RANKING_METRIC: Final = "average_precision_8pct"
MAIN_COLUMNS: Final = {
    RANKING_METRIC: "AP at 8 %",
    "average_precision_2pct": "AP at 2 %",
    "average_precision_0.5pct": "AP at 0.5 %",
    "auc": "AUC",
    "recall_1pct": "R@1%",
    "recall_0.1pct": "R@.1%",
    **{f"recall_{budget}_episodes": f"recall at {budget}" for budget in ALERT_BUDGETS},
    **{
        f"found_within_7_nights_{budget}_episodes": f"14-night in 7 at {budget}"
        for budget in ALERT_BUDGETS
    },
}
DETAIL_COLUMNS: Final = {
    **{
        f"found_within_{n}_nights_{HEADLINE_BUDGET}_episodes": f"found in {n}"
        for n in (1, 3, 7, 14)
    },
    "precision_top_10": "precision top 10",
    "precision_top_50": "precision top 50",
    "worst_households_share": "false alarms of the worst 1 % of households",
}
METRICS_WITH_INTERVAL: Final = (RANKING_METRIC, HEADLINE_METRIC)


def render_benchmark(metrics: pl.DataFrame, description_lines: Sequence[str]) -> str:
    """The figures of every detector: `detector`, `homes`, `figure`, `of`, `value`, `low`, `high`.

    `homes` is "unseen" for households that no network learned from, "seen" for the others.
    """
    order = rank_detectors(metrics)
    unseen = metrics.filter(households="held_out")
    of_all = pl.col("subset").is_null()
    sections = [
        (
            "Households that no network learned from",
            _render_metrics(unseen.filter(of_all), order, MAIN_COLUMNS),
        ),
        (
            f"At {HEADLINE_BUDGET} false episodes in 1,000 nights",
            _render_metrics(unseen, order, DETAIL_COLUMNS),
        ),
        (
            "Households that were learned from",
            _render_metrics(metrics.filter(of_all, households="training"), order, MAIN_COLUMNS),
        ),
        (
            f"Recall by kind at {HEADLINE_BUDGET} false episodes in 1,000 nights",
            _render_subsets(unseen.filter(~of_all), order, HEADLINE_METRIC, KIND_NAMES),
        ),
        ("AUC by kind", _render_subsets(unseen.filter(~of_all), order, "auc", KIND_NAMES)),
        (
            f"Alarms in 1,000 nights that must not alert, at the threshold of {HEADLINE_BUDGET} episodes",
            _render_subsets(unseen, order, "alarms_per_1000"),
        ),
        (
            f"Realised over target alarm rate by month, {HEADLINE_BUDGET} in 1,000 nights",
            _render_subsets(unseen, order, "alarms_over_target"),
        ),
    ]
    lines = ["# Detection benchmark", "", *(f"- {line}" for line in description_lines), ""]
    for title, rows in sections:
        lines += [f"## {title}", "", *rows, ""]
    return "\n".join(lines)


def render_reasons(reason_table: pl.DataFrame, description: str) -> str:
    """What was found by kind and reason: `kind`, a column of counts a reason, `right`, a share."""
    header = [_replace_underscores(name) for name in reason_table.columns]
    rows = [
        [_replace_underscores(kind), *(str(count) for count in counts), _format_number(right)]
        for kind, *counts, right in reason_table.iter_rows()
    ]
    return "\n".join(
        ["", "## Reasons", "", description, "", *_render_markdown_table(header, rows), ""]
    )


def render_summary(metrics: pl.DataFrame) -> str:
    """The first section alone."""
    unseen = metrics.filter(pl.col("subset").is_null(), households="held_out")
    return "\n".join(_render_metrics(unseen, rank_detectors(metrics), MAIN_COLUMNS))


def rank_detectors(metrics: pl.DataFrame) -> list[str]:
    """The detectors, best average precision on unseen households first."""
    chosen = metrics.filter(households="held_out", metric=RANKING_METRIC)
    names: list[str] = chosen.sort("value", descending=True, nulls_last=True)["detector"].to_list()
    return names


def _render_metrics(
    metrics: pl.DataFrame, detectors: Sequence[str], columns: dict[str, str]
) -> list[str]:
    cells = {
        (detector, figure): _format_cell(value, low, high, figure in METRICS_WITH_INTERVAL)
        for detector, figure, value, low, high in metrics.select(
            "detector", "metric", "value", "low", "high"
        ).iter_rows()
    }
    rows = ([name, *(cells.get((name, figure), "") for figure in columns)] for name in detectors)
    return _render_markdown_table(["detector", *columns.values()], rows)


def _render_subsets(
    metrics: pl.DataFrame,
    detectors: Sequence[str],
    metric: str,
    subsets: Sequence[str] | None = None,
) -> list[str]:
    chosen = metrics.filter(metric=metric)
    names = subsets or chosen["subset"].unique(maintain_order=True).to_list()
    nights = dict(metrics.filter(metric="control_nights").select("subset", "value").iter_rows())
    cells = dict(zip(chosen.select("detector", "subset").iter_rows(), chosen["value"], strict=True))
    rows = ([name, *(_format_number(cells.get((name, of))) for of in names)] for name in detectors)
    return _render_markdown_table(
        ["detector", *(_format_heading(name, nights.get(name)) for name in names)], rows
    )


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
    if value is None or value != value:
        return ""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _render_markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    ruler = ["---", *("---:" for _ in header[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (header, ruler, *rows)]
