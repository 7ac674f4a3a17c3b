"""Pictures of the benchmark: every detector in grey, the best ones in colour."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.metrics import precision_recall_curve

from ml.benchmark.calibration import TARGET_ALARM_RATES, measure_alarm_rates
from ml.benchmark.figures import HEADLINE_BUDGET, DetectorScores, Doubles
from ml.benchmark.plant import KIND_NAMES
from ml.benchmark.reasons import EXPLAINS
from ml.features import Floats
from ml.kinds import LASTING_NIGHTS
from ml.schemas import REASONS

COLOURS: Final = ("#1b5e7a", "#e07b39", "#4c8c4a", "#a2467f", "#c9a227", "#5b6bb5")
QUIET: Final = "#c3c7ca"
INK: Final = "#33383c"

Line = tuple[Doubles | Floats, Doubles | Floats]


def precision_recall(scored: Mapping[str, DetectorScores], best: Sequence[str]) -> Figure:
    """Precision over recall, where as many nights are anomalous as were planted."""

    def line(one: DetectorScores) -> Line:
        precision, recall, _ = precision_recall_curve(
            one.is_injected, one.tested_scores, drop_intermediate=True
        )
        return recall, precision

    figure, panel = _figure("Precision and recall of planted household-nights")
    _lines(panel, scored, best, line)
    panel.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    return figure


def time_to_detection(scored: Mapping[str, DetectorScores], best: Sequence[str]) -> Figure:
    """Share of lasting anomalies found by each of their nights, at the budget."""
    nights = np.arange(1, LASTING_NIGHTS + 1, dtype=np.float64)

    def line(one: DetectorScores) -> Line:
        limit = one.find_budget_threshold(HEADLINE_BUDGET, np.ones(one.n_households))
        return nights, np.array([one.is_found_within(limit, int(night)).mean() for night in nights])

    figure, panel = _figure(
        f"Lasting anomalies found, at {HEADLINE_BUDGET} false episodes in 1,000 nights"
    )
    _lines(panel, scored, best, line)
    panel.set(xlabel="nights since it began", ylabel="share found", ylim=(0, None))
    panel.set_xticks((1, 3, 7, 14))
    return figure


def calibration(
    scored: Mapping[str, DetectorScores], best: Sequence[str], ordinary: slice, months: pl.DataFrame
) -> Figure:
    """Realised against target alarm rate, over all nights and by month.

    `months`: detector, of (the month), value.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    rates, by_month = figure.subplots(1, 2)
    _lines(
        rates,
        scored,
        best,
        lambda one: (TARGET_ALARM_RATES, measure_alarm_rates(one.score, one.truth, ordinary)),
    )
    rates.plot(TARGET_ALARM_RATES, TARGET_ALARM_RATES, color=INK, lw=1, ls=":")
    rates.set(xscale="log", yscale="log", ylim=(3e-4, 0.5))
    rates.set(xlabel="target share of clean nights", ylabel="realised share")
    _label(rates, "Thresholds of the nights before the test")
    for name, rows in months.group_by("detector", maintain_order=True):
        colour, order = _style(str(name[0]), best)
        by_month.plot(
            rows["of"].to_list(), rows["value"].to_numpy(), "o-", color=colour, ms=4, zorder=order
        )
    by_month.axhline(1, color=INK, lw=1, ls=":")
    by_month.set(yscale="symlog", ylabel="realised over target", ylim=(0, None))
    _label(by_month, f"By month, target {HEADLINE_BUDGET} alarms in 1,000 nights")
    return figure


def alarms_per_home(scored: Mapping[str, DetectorScores], best: Sequence[str]) -> Figure:
    """False alarms of each home at the budget, most first."""

    def line(one: DetectorScores) -> Line:
        limit = one.find_budget_threshold(HEADLINE_BUDGET, np.ones(one.n_households))
        alarms = np.sort(one.count_false_alarms(limit))[::-1]
        share = np.cumsum(alarms) / max(alarms.sum(), 1)
        homes = np.arange(len(alarms) + 1) / len(alarms)
        return homes, np.append(0, share)

    figure, panel = _figure("Who makes the false alarms")
    _lines(panel, scored, best, line)
    panel.plot((0, 1), (0, 1), color=INK, lw=1, ls=":")
    panel.set(xlabel="share of homes, most alarms first", ylabel="share of false alarms")
    panel.set(xlim=(0, 1), ylim=(0, 1.02))
    return figure


def recall_per_kind(table: pl.DataFrame, order: Sequence[str]) -> Figure:
    """Recall of each kind at the budget: a row a detector in this order, a column a kind."""
    kinds = table.filter(figure=f"recall_{HEADLINE_BUDGET}_episodes").filter(
        pl.col("of").is_not_null()
    )
    wide = kinds.pivot("of", index="detector", values="value")
    recall = np.array(
        [wide.filter(detector=name).select(KIND_NAMES).to_numpy()[0] for name in order], dtype=float
    )
    figure = Figure(figsize=(12, 1.6 + 0.32 * len(order)), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(recall, vmin=0, vmax=1, cmap="YlGnBu", aspect="auto")
    for row, column in np.ndindex(recall.shape):
        value = recall[row, column]
        if np.isfinite(value):
            shade = "white" if value > 0.6 else INK
            panel.text(
                column, row, f"{value:.2f}"[-4:], ha="center", va="center", color=shade, fontsize=7
            )
    panel.set_xticks(range(len(KIND_NAMES)), [_words(name) for name in KIND_NAMES], fontsize=8)
    panel.tick_params(axis="x", rotation=35)
    for tick in panel.get_xticklabels():
        tick.set_horizontalalignment("right")
    panel.set_yticks(range(len(order)), [_words(name) for name in order], fontsize=8)
    panel.set_title(
        f"Recall at {HEADLINE_BUDGET} false episodes in 1,000 nights", loc="left", fontsize=11
    )
    figure.colorbar(image, ax=panel, fraction=0.02, pad=0.01)
    return figure


def reasons(nights: pl.DataFrame, name: str) -> Figure:
    """What a detector found, a row a kind and a column a reason; right reasons are framed.

    `nights`: kind, and a column of counts for each of `REASONS`.
    """
    counts = nights.select(REASONS).to_numpy().astype(float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7.5, 1.6 + 0.32 * len(counts)), layout="constrained")
    panel = figure.subplots()
    panel.imshow(share, vmin=0, vmax=1, cmap="YlGnBu", aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        shade = "white" if share[row, column] > 0.6 else INK
        panel.text(column, row, f"{count:.0f}", ha="center", va="center", color=shade, fontsize=7)
        if REASONS[column] in EXPLAINS.get(nights["kind"][row], ()):
            corner = (column - 0.46, row - 0.44)
            panel.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, ec=COLOURS[1], lw=1.4))
    panel.set_xticks(range(len(REASONS)), [_words(reason) for reason in REASONS], fontsize=8)
    panel.set_yticks(range(len(counts)), [_words(kind) for kind in nights["kind"]], fontsize=8)
    panel.set_title(f"Reasons of what {_words(name)} found, right ones framed", loc="left")
    return figure


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    panel = figure.subplots()
    _label(panel, title)
    return figure, panel


def _lines(
    panel: Axes,
    scored: Mapping[str, DetectorScores],
    best: Sequence[str],
    line: Callable[[DetectorScores], Line],
) -> None:
    for name in (*(name for name in scored if name not in best), *best):
        colour, order = _style(name, best)
        label, width = (_words(name), 1.8) if name in best else (None, 1)
        panel.plot(*line(scored[name]), color=colour, lw=width, label=label, zorder=order)
    panel.figure.legend(loc="outside right upper", frameon=False, fontsize=8)


def _style(name: str, best: Sequence[str]) -> tuple[str, int]:
    return (COLOURS[list(best).index(name)], 3) if name in best else (QUIET, 2)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _label(panel: Axes, title: str) -> None:
    panel.set_title(title, loc="left", fontsize=11)
    panel.spines[["top", "right"]].set_visible(False)
