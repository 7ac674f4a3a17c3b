"""Pictures of the benchmark: every detector in grey, the best ones in colour.

Thresholds are those of the headline budget, taken from the normal nights of held-out households.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.metrics import precision_recall_curve

from ml.arrays import FloatArray
from ml.evaluation.alarm_rates import TARGET_ALARM_RATES, measure_alarm_rates
from ml.evaluation.inject import KIND_NAMES
from ml.evaluation.injections import EPISODE_NIGHTS
from ml.evaluation.metrics import HEADLINE_BUDGET, DetectorScores, Doubles
from ml.evaluation.reason_confusion import CORRECT_REASONS
from ml.plots.style import BACKGROUND_COLOUR, TEXT_COLOUR, replace_underscores
from ml.schemas import ANOMALY_REASONS

HIGHLIGHT_COLOURS: Final = ("#1b5e7a", "#e07b39", "#4c8c4a", "#a2467f", "#c9a227", "#5b6bb5")
"""Colours of highlighted detectors by rank."""

LineData = tuple[Doubles | FloatArray, Doubles | FloatArray]
"""The x and y values of a line."""


def draw_precision_recall(
    detector_scores: Mapping[str, DetectorScores], highlighted: Sequence[str]
) -> Figure:
    """Draw precision over recall of held-out households, at the share of nights injected."""

    def compute_line(scores: DetectorScores) -> LineData:
        precision, recall, _ = precision_recall_curve(
            scores.is_injected, scores.tested_scores, drop_intermediate=True
        )
        return recall, precision

    figure, panel = _create_panel("Precision and recall of injected household-nights")
    _draw_lines(panel, detector_scores, highlighted, compute_line)
    panel.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    return figure


def draw_time_to_detection(
    detector_scores: Mapping[str, DetectorScores], highlighted: Sequence[str]
) -> Figure:
    """Draw the share of 14-night injections found by each of their nights, at the budget."""
    nights = np.arange(1, EPISODE_NIGHTS + 1, dtype=np.float64)

    def compute_line(scores: DetectorScores) -> LineData:
        threshold = scores.find_budget_threshold(HEADLINE_BUDGET, np.ones(scores.n_households))
        return nights, np.array(
            [scores.is_found_within(threshold, int(night)).mean() for night in nights]
        )

    figure, panel = _create_panel(
        f"Injected episodes found, at {HEADLINE_BUDGET} false episodes in 1,000 nights"
    )
    _draw_lines(panel, detector_scores, highlighted, compute_line)
    panel.set(xlabel="nights since it began", ylabel="share found", ylim=(0, None))
    panel.set_xticks((1, 3, 7, 14))
    return figure


def draw_calibration(
    detector_scores: Mapping[str, DetectorScores],
    highlighted: Sequence[str],
    pretest_nights: slice,
    monthly_ratios: pl.DataFrame,
) -> Figure:
    """Draw realised against target alarm rate, over all normal nights and by month.

    `monthly_ratios` has `detector`, `subset` (the month) and `value`.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    rates, by_month = figure.subplots(1, 2)
    _draw_lines(
        rates,
        detector_scores,
        highlighted,
        lambda one: (TARGET_ALARM_RATES, measure_alarm_rates(one.score, one.truth, pretest_nights)),
    )
    rates.plot(TARGET_ALARM_RATES, TARGET_ALARM_RATES, color=TEXT_COLOUR, lw=1, ls=":")
    rates.set(xscale="log", yscale="log", ylim=(3e-4, 0.5))
    rates.set(xlabel="target share of normal nights", ylabel="realised share")
    _set_title(rates, "Thresholds of the nights before the test")
    for name, rows in monthly_ratios.group_by("detector", maintain_order=True):
        colour, order = _line_style(str(name[0]), highlighted)
        by_month.plot(
            rows["subset"].to_list(),
            rows["value"].to_numpy(),
            "o-",
            color=colour,
            ms=4,
            zorder=order,
        )
    by_month.axhline(1, color=TEXT_COLOUR, lw=1, ls=":")
    by_month.set(yscale="symlog", ylabel="realised over target", ylim=(0, None))
    _set_title(by_month, f"By month, target {HEADLINE_BUDGET} alarms in 1,000 nights")
    return figure


def draw_alarms_per_household(
    detector_scores: Mapping[str, DetectorScores], highlighted: Sequence[str]
) -> Figure:
    """Draw the cumulative share of false alarms over households, most alarms first."""

    def compute_line(scores: DetectorScores) -> LineData:
        threshold = scores.find_budget_threshold(HEADLINE_BUDGET, np.ones(scores.n_households))
        alarms = np.sort(scores.count_false_alarms(threshold))[::-1]
        share = np.cumsum(alarms) / max(alarms.sum(), 1)
        household_share = np.arange(len(alarms) + 1) / len(alarms)
        return household_share, np.append(0, share)

    figure, panel = _create_panel("Who makes the false alarms")
    _draw_lines(panel, detector_scores, highlighted, compute_line)
    panel.plot((0, 1), (0, 1), color=TEXT_COLOUR, lw=1, ls=":")
    panel.set(xlabel="share of households, most alarms first", ylabel="share of false alarms")
    panel.set(xlim=(0, 1), ylim=(0, 1.02))
    return figure


def draw_recall_per_kind(metrics: pl.DataFrame, detectors: Sequence[str]) -> Figure:
    """Draw recall at the budget as a table: a row a detector in this order, a column a kind."""
    kinds = metrics.filter(metric=f"recall_{HEADLINE_BUDGET}_episodes").filter(
        pl.col("subset").is_not_null()
    )
    wide = kinds.pivot("subset", index="detector", values="value")
    recall = np.array(
        [wide.filter(detector=name).select(KIND_NAMES).to_numpy()[0] for name in detectors],
        dtype=float,
    )
    figure = Figure(figsize=(12, 1.6 + 0.32 * len(detectors)), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(recall, vmin=0, vmax=1, cmap="YlGnBu", aspect="auto")
    for row, column in np.ndindex(recall.shape):
        value = recall[row, column]
        if np.isfinite(value):
            shade = "white" if value > 0.6 else TEXT_COLOUR
            panel.text(
                column, row, f"{value:.2f}"[-4:], ha="center", va="center", color=shade, fontsize=7
            )
    panel.set_xticks(
        range(len(KIND_NAMES)), [replace_underscores(name) for name in KIND_NAMES], fontsize=8
    )
    panel.tick_params(axis="x", rotation=35)
    for tick in panel.get_xticklabels():
        tick.set_horizontalalignment("right")
    panel.set_yticks(
        range(len(detectors)), [replace_underscores(name) for name in detectors], fontsize=8
    )
    panel.set_title(
        f"Recall at {HEADLINE_BUDGET} false episodes in 1,000 nights", loc="left", fontsize=11
    )
    figure.colorbar(image, ax=panel, fraction=0.02, pad=0.01)
    return figure


def draw_reasons(reason_table: pl.DataFrame, detector: str) -> Figure:
    """Draw what a detector found: a row a kind and a column a reason, right reasons framed.

    `reason_table` is that of `tabulate_reasons`: `kind`, and a column of counts for each reason.
    """
    counts = reason_table.select(ANOMALY_REASONS).to_numpy().astype(float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7.5, 1.6 + 0.32 * len(counts)), layout="constrained")
    panel = figure.subplots()
    panel.imshow(share, vmin=0, vmax=1, cmap="YlGnBu", aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        shade = "white" if share[row, column] > 0.6 else TEXT_COLOUR
        panel.text(column, row, f"{count:.0f}", ha="center", va="center", color=shade, fontsize=7)
        if ANOMALY_REASONS[column] in CORRECT_REASONS.get(reason_table["kind"][row], ()):
            corner = (column - 0.46, row - 0.44)
            panel.add_patch(
                Rectangle(corner, 0.92, 0.88, fill=False, ec=HIGHLIGHT_COLOURS[1], lw=1.4)
            )
    panel.set_xticks(
        range(len(ANOMALY_REASONS)),
        [replace_underscores(reason) for reason in ANOMALY_REASONS],
        fontsize=8,
    )
    panel.set_yticks(
        range(len(counts)),
        [replace_underscores(kind) for kind in reason_table["kind"]],
        fontsize=8,
    )
    panel.set_title(
        f"Reasons of what {replace_underscores(detector)} found, right ones framed", loc="left"
    )
    return figure


def _create_panel(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    panel = figure.subplots()
    _set_title(panel, title)
    return figure, panel


def _draw_lines(
    panel: Axes,
    detector_scores: Mapping[str, DetectorScores],
    highlighted: Sequence[str],
    compute_line: Callable[[DetectorScores], LineData],
) -> None:
    for name in (*(name for name in detector_scores if name not in highlighted), *highlighted):
        colour, order = _line_style(name, highlighted)
        label = replace_underscores(name) if name in highlighted else None
        width = 1.8 if name in highlighted else 1
        panel.plot(
            *compute_line(detector_scores[name]), color=colour, lw=width, label=label, zorder=order
        )
    panel.figure.legend(loc="outside right upper", frameon=False, fontsize=8)


def _line_style(detector: str, highlighted: Sequence[str]) -> tuple[str, int]:
    """Return colour and drawing order: highlighted lines lie above the others."""
    return (
        (HIGHLIGHT_COLOURS[list(highlighted).index(detector)], 3)
        if detector in highlighted
        else (BACKGROUND_COLOUR, 2)
    )


def _set_title(panel: Axes, title: str) -> None:
    panel.set_title(title, loc="left", fontsize=11)
    panel.spines[["top", "right"]].set_visible(False)
