"""The benchmark's table as a person reads it, in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Final

import polars as pl

from ml.benchmark.figures import ALERT_BUDGETS, HEADLINE_BUDGET
from ml.benchmark.plant import KIND_NAMES

HEADLINE: Final = f"recall_{HEADLINE_BUDGET}_episodes"
ORDER: Final = "average_precision_8pct"
MAIN: Final = {
    ORDER: "AP at 8 %",
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
DETAIL: Final = {
    **{
        f"found_within_{n}_nights_{HEADLINE_BUDGET}_episodes": f"found in {n}"
        for n in (1, 3, 7, 14)
    },
    "precision_top_10": "precision top 10",
    "precision_top_50": "precision top 50",
    "worst_homes_share": "false alarms of the worst 1 % of homes",
}
WITH_INTERVAL: Final = (ORDER, HEADLINE)


def markdown(table: pl.DataFrame, about: Sequence[str]) -> str:
    """The figures of every detector: `detector`, `homes`, `figure`, `of`, `value`, `low`, `high`.

    `homes` is "unseen" for households that no network learned from, "seen" for the others.
    """
    order = ranking(table)
    unseen = table.filter(homes="unseen")
    of_all = pl.col("of").is_null()
    sections = [
        ("Households that no network learned from", _pivot(unseen.filter(of_all), order, MAIN)),
        (f"At {HEADLINE_BUDGET} false episodes in 1,000 nights", _pivot(unseen, order, DETAIL)),
        (
            "Households that were learned from",
            _pivot(table.filter(of_all, homes="seen"), order, MAIN),
        ),
        (
            f"Recall by kind at {HEADLINE_BUDGET} false episodes in 1,000 nights",
            _by(unseen.filter(~of_all), order, HEADLINE, KIND_NAMES),
        ),
        ("AUC by kind", _by(unseen.filter(~of_all), order, "auc", KIND_NAMES)),
        (
            f"Alarms in 1,000 nights that must not alert, at the threshold of {HEADLINE_BUDGET} episodes",
            _by(unseen, order, "alarms_per_1000"),
        ),
        (
            f"Realised over target alarm rate by month, {HEADLINE_BUDGET} in 1,000 nights",
            _by(unseen, order, "alarms_over_target"),
        ),
    ]
    lines = ["# Detection benchmark", "", *(f"- {line}" for line in about), ""]
    for title, rows in sections:
        lines += [f"## {title}", "", *rows, ""]
    return "\n".join(lines)


def reasons_of(nights: pl.DataFrame, about: str) -> str:
    """What was found by kind and reason: `kind`, a column of counts a reason, `right`, a share."""
    header = [_words(name) for name in nights.columns]
    rows = [
        [_words(kind), *(str(count) for count in counts), _number(right)]
        for kind, *counts, right in nights.iter_rows()
    ]
    return "\n".join(["", "## Reasons", "", about, "", *_ruled(header, rows), ""])


def summary(table: pl.DataFrame) -> str:
    """The first section alone."""
    unseen = table.filter(pl.col("of").is_null(), homes="unseen")
    return "\n".join(_pivot(unseen, ranking(table), MAIN))


def ranking(table: pl.DataFrame) -> list[str]:
    """The detectors, best average precision on unseen households first."""
    chosen = table.filter(homes="unseen", figure=ORDER)
    names: list[str] = chosen.sort("value", descending=True, nulls_last=True)["detector"].to_list()
    return names


def _pivot(table: pl.DataFrame, order: Sequence[str], columns: dict[str, str]) -> list[str]:
    cells = {
        (detector, figure): _cell(value, low, high, figure in WITH_INTERVAL)
        for detector, figure, value, low, high in table.select(
            "detector", "figure", "value", "low", "high"
        ).iter_rows()
    }
    rows = ([name, *(cells.get((name, figure), "") for figure in columns)] for name in order)
    return _ruled(["detector", *columns.values()], rows)


def _by(
    table: pl.DataFrame, order: Sequence[str], figure: str, columns: Sequence[str] | None = None
) -> list[str]:
    chosen = table.filter(figure=figure)
    names = columns or chosen["of"].unique(maintain_order=True).to_list()
    nights = dict(table.filter(figure="control_nights").select("of", "value").iter_rows())
    cells = dict(zip(chosen.select("detector", "of").iter_rows(), chosen["value"], strict=True))
    rows = ([name, *(_number(cells.get((name, of))) for of in names)] for name in order)
    return _ruled(["detector", *(_heading(name, nights.get(name)) for name in names)], rows)


def _heading(name: str, nights: float | None) -> str:
    words = _words(name)
    return words if nights is None else f"{words} ({nights:,.0f} nights)"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cell(value: float, low: float | None, high: float | None, interval: bool) -> str:
    if not interval or low is None or high is None:
        return _number(value)
    return f"{_number(value)} ({_number(low)} to {_number(high)})"


def _number(value: float | None) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _ruled(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    ruler = ["---", *("---:" for _ in header[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (header, ruler, *rows)]
