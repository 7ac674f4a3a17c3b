"""Pictures of a training and of nights: curves, days beside what was expected, scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ml.detector import Detector
from ml.features import Fleet, Floats
from ml.schemas import HALF_HOURS
from ml.score import judge

OBSERVED: Final = "#1b5e7a"
EXPECTED: Final = "#e07b39"
QUIET: Final = "#8a8f94"
EXAMPLES: Final = 12
COLUMNS: Final = 4
HOURS: Final = np.arange(HALF_HOURS) / 2


@dataclass(frozen=True)
class Example:
    """One household-night, 48 half-hours in kWh, NaN where missing."""

    title: str
    actual_kwh: Floats
    expected_kwh: Floats
    flagged: tuple[float, float] | None = None
    """The hours that deviate most, from and to."""


def examples(detector: Detector, fleet: Fleet, nights: slice, min_readings: int) -> list[Example]:
    """A dozen household-nights, evenly from the least to the most anomalous score."""
    judged = judge(detector, fleet, min_readings)
    score = np.where(np.isfinite(judged.score), judged.score, np.nan)
    score[:, : nights.start] = np.nan
    scored = np.flatnonzero(np.isfinite(score))
    order = scored[np.argsort(score.ravel()[scored], kind="stable")]
    places = np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(int)
    return [
        Example(
            title=f"{fleet.household_ids[h]}  {fleet.nights[d]}  p = {judged.p_value[h, d]:.2g}",
            actual_kwh=fleet.kwh[h, d],
            expected_kwh=judged.expected_kwh[h, d],
        )
        for h, d in (np.unravel_index(place, score.shape) for place in order[places])
    ]


def loss_curve(history: Sequence[Mapping[str, float]], best_epoch: int) -> Figure:
    """Training and validation loss by epoch, the best marked, the learning rate below."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 1))
    loss, rate = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    epochs = [int(epoch["epoch"]) + 1 for epoch in history]
    for key, name, colour in (
        ("train_loss", "households learned from", QUIET),
        ("val_loss", "households held out", OBSERVED),
    ):
        loss.plot(epochs, [epoch[key] for epoch in history], label=name, color=colour, lw=1.8)
    best = next(epoch for epoch in history if epoch["epoch"] == best_epoch)
    loss.plot(best_epoch + 1, best["val_loss"], "o", color=EXPECTED, label="weights kept")
    loss.legend(frameon=False, fontsize=8)
    rate.plot(epochs, [epoch["learning_rate"] for epoch in history], color=QUIET, lw=1.8)
    rate.set_yscale("log")
    _label(loss, "Loss of the network", "", "")
    _label(rate, "Learning rate", "epoch", "")
    for panel in (loss, rate):
        panel.set_xlim(0.5, max(epochs) + 0.5)
    return figure


def profiles(days: Sequence[Example], title: str) -> Figure:
    """Real days with what was expected, small multiples in the order given."""
    rows = -(-len(days) // COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 2.1 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, sharex=True, squeeze=False).ravel()
    for panel, day in zip(panels, days, strict=False):
        panel.step(HOURS, day.actual_kwh, where="post", color=OBSERVED, lw=1.2, label="observed")
        panel.step(HOURS, day.expected_kwh, where="post", color=EXPECTED, lw=1.6, label="expected")
        if day.flagged:
            panel.axvspan(*day.flagged, color=EXPECTED, alpha=0.15, lw=0)
        panel.set_ylim(bottom=0)
        _label(panel, day.title, "", "")
    for panel in panels[len(days) :]:
        panel.set_visible(False)
    for panel in panels[-COLUMNS:]:
        panel.set_xticks((0, 6, 12, 18, 24))
        panel.set_xlabel("hour (UTC)", fontsize=8)
    for panel in panels[::COLUMNS]:
        panel.set_ylabel("kWh per half-hour", fontsize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def flagged(anomalies: pl.DataFrame) -> list[Example]:
    """Rows of the `anomalies` table, with the hours that deviate."""
    midnight = pl.col("night").cast(pl.Datetime("us"))
    hours = anomalies.select((pl.col("start_utc", "end_utc") - midnight).dt.total_minutes() / 60)
    return [
        Example(
            title="{household_id}  {night}\n{reason}, p = {p_value:.2g}".format(**row),
            actual_kwh=np.array(row["actual_kwh"], dtype=float),
            expected_kwh=np.array(row["expected_kwh"], dtype=float),
            flagged=span,
        )
        for row, span in zip(anomalies.iter_rows(named=True), hours.iter_rows(), strict=True)
    ]


def score_distribution(scores: Floats, alert_budget: float) -> Figure:
    """Scores of the calibration nights, and the threshold that the alert budget sets."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    panel = figure.add_subplot()
    threshold = float(np.quantile(scores, 1 - alert_budget / 1000))
    end = max(float(np.quantile(scores, 0.9999)), 1.2 * threshold)
    bins = np.linspace(0, end, 80)
    panel.hist(np.minimum(scores, end), bins=list(bins), color=OBSERVED, log=True)
    panel.axvline(threshold, color=EXPECTED, lw=1.8)
    panel.annotate(
        f"{threshold:.1f}: {alert_budget:g} in 1,000 lie beyond",
        (threshold, panel.get_ylim()[1]),
        xytext=(6, -12),
        textcoords="offset points",
        color=EXPECTED,
        fontsize=9,
    )
    title = f"Scores of {len(scores):,} calibration household-nights"
    _label(panel, title, "score (the last bar holds all beyond)", "household-nights")
    return figure


def _label(panel: Axes, title: str, x: str, y: str) -> None:
    panel.set_title(title, fontsize=9, loc="left")
    panel.set_xlabel(x, fontsize=8)
    panel.set_ylabel(y, fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
