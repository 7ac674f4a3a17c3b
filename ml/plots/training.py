"""Pictures of a training: losses, scores of the calibration set, latent plane, speed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ml.arrays import FloatArray
from ml.plots.style import (
    ACTUAL_COLOUR,
    EXPECTED_COLOUR,
    LABEL_SIZE,
    MUTED_COLOUR,
    THIRD_COLOUR,
    label_panel,
)
from ml.scoring.config import CalibrationConfig
from ml.scoring.tails import compute_p_values

if TYPE_CHECKING:
    from ml.training.latent_plane import LatentPlane

LABELLED_P_VALUES: Final = (0.1, 0.01, 1e-3, 1e-4, 1e-5)
"""P-values that the axis of scores is labelled with: a factor of ten apart."""
N_GRID_SCORES: Final = 20_000
"""Scores at which p-values are computed to find the score of a p-value: finer than a pixel."""
N_SCORE_BINS: Final = 80
ACORN_STYLES: Final = {
    1.0: ("affluent", ACTUAL_COLOUR),
    0.0: ("comfortable", THIRD_COLOUR),
    -1.0: ("adversity", EXPECTED_COLOUR),
}
"""Name and colour of the condition `affluence`."""
UNKNOWN_ACORN_STYLE: Final = ("unknown", "#c9ccd0")
SEASON_STYLES: Final = (
    ("winter", ACTUAL_COLOUR),
    ("spring", THIRD_COLOUR),
    ("summer", "#f2c14e"),
    ("autumn", "#b5532a"),
)
"""Name and colour of the seasons: December to February first."""
PRECISION_STYLES: Final = {
    "32-true": (ACTUAL_COLOUR, "full (float32)"),
    "bf16-mixed": (EXPECTED_COLOUR, "mixed (bfloat16)"),
    "16-mixed": (THIRD_COLOUR, "mixed (float16)"),
}
"""Colour and name of Lightning's precisions."""
OUTLIER_SHARE: Final = 0.002
"""Share of the points on either side that may lie outside a latent plane: a few far ones would
press all others into a spot. Chosen."""


def draw_loss_curve(epoch_metrics: Sequence[Mapping[str, float]], best_epoch: int) -> Figure:
    """Draw training and validation loss by epoch, the best marked, and the learning rate below.

    `epoch_metrics` has `epoch`, `train_loss`, `val_loss` and `learning_rate` of each epoch.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 1))
    loss = figure.add_subplot(grid[0])
    rate = figure.add_subplot(grid[1])
    epochs = [int(epoch["epoch"]) + 1 for epoch in epoch_metrics]
    style: dict[str, Any] = {"lw": 1.8, "marker": "."}
    for key, name, colour in (
        ("train_loss", "training households", MUTED_COLOUR),
        ("val_loss", "held-out households", ACTUAL_COLOUR),
    ):
        loss.plot(
            epochs, [epoch[key] for epoch in epoch_metrics], label=name, color=colour, **style
        )
    best = next(epoch for epoch in epoch_metrics if epoch["epoch"] == best_epoch)
    loss.plot(
        best_epoch + 1,
        best["val_loss"],
        "o",
        color=EXPECTED_COLOUR,
        label="weights of the detector",
    )
    loss.legend(frameon=False, fontsize=LABEL_SIZE)
    rates = [epoch["learning_rate"] for epoch in epoch_metrics]
    rate.plot(epochs, rates, color=MUTED_COLOUR, **style)
    rate.ticklabel_format(axis="y", scilimits=(0, 0))
    rate.set_ylim(bottom=0)
    label_panel(loss, "Loss of the network")
    label_panel(rate, "Learning rate", "epoch")
    for panel in (loss, rate):
        panel.set_xlim(0.5, max(epochs) + 0.5)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def draw_score_distribution(
    reference_scores: FloatArray,
    config: CalibrationConfig,
    alert_threshold: float | None,
    alert_budget: float,
) -> Figure:
    """Draw the scores of the calibration nights, their p-values, and the score that flags.

    `reference_scores` `[N]` is sorted. A night whose p-value is up to `alert_threshold` is flagged
    by itself; none is drawn where the calibration cannot tell what keeps to the budget.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    panel = figure.add_subplot()
    grid = np.linspace(reference_scores.min(), 2 * reference_scores.max() + 1, N_GRID_SCORES)
    surprisal = -np.log10(compute_p_values(reference_scores, grid, config))
    flagging_score = None
    if alert_threshold:
        flagging_score = float(np.interp(-np.log10(alert_threshold), surprisal, grid))
    end = max(float(np.quantile(reference_scores, 0.9999)), 1.2 * (flagging_score or 0.0))
    bins = np.linspace(reference_scores.min(), end, N_SCORE_BINS)
    panel.hist(np.minimum(reference_scores, end), bins=list(bins), color=ACTUAL_COLOUR, log=True)
    if flagging_score is not None:
        _mark_flagging_score(panel, flagging_score, alert_threshold, alert_budget)
    label_panel(
        panel,
        f"Scores of {len(reference_scores):,} household-nights of the calibration set",
        "score less base-rate penalty (last bar: all above)",
        "household-nights",
    )
    end_surprisal = np.interp(end, grid, surprisal)
    labelled = [p for p in LABELLED_P_VALUES if surprisal[0] <= -np.log10(p) <= end_surprisal]
    top = panel.secondary_xaxis("top")
    top.set_xticks(
        np.interp(-np.log10(labelled), surprisal, grid), [f"p = {p:g}" for p in labelled]
    )
    top.tick_params(labelsize=LABEL_SIZE)
    return figure


def _mark_flagging_score(
    panel: Axes, flagging_score: float, alert_threshold: float | None, alert_budget: float
) -> None:
    panel.axvline(flagging_score, color=EXPECTED_COLOUR, lw=1.8)
    panel.annotate(
        f"flagged from here on: p up to {alert_threshold:.2g},\n"
        f"{alert_budget:g} false episodes in 1,000 nights",
        (flagging_score, panel.get_ylim()[1]),
        xytext=(6, -22),
        textcoords="offset points",
        color=EXPECTED_COLOUR,
        fontsize=LABEL_SIZE,
    )


def draw_latent_plane(plane: "LatentPlane") -> Figure:
    """Draw household-nights in a network's latent plane, by season and by Acorn group."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    season, acorn = figure.subplots(1, 2, sharex=True, sharey=True)
    # In a random order, so that no group lies on top of the others.
    order = np.random.default_rng(0).permutation(len(plane.nights))
    x, y = plane.points[order].T
    seasons = [SEASON_STYLES[night.month % 12 // 3] for night in plane.nights]
    acorns = [ACORN_STYLES.get(float(value), UNKNOWN_ACORN_STYLE) for value in plane.affluence]
    for panel, groups, styles in (
        (season, seasons, SEASON_STYLES),
        (acorn, acorns, (*ACORN_STYLES.values(), UNKNOWN_ACORN_STYLE)),
    ):
        panel.scatter(x, y, c=[groups[place][1] for place in order], s=7, lw=0, alpha=0.7)
        for name, colour in styles:
            if (name, colour) in groups:
                panel.scatter([], [], c=colour, s=30, lw=0, label=name)
        panel.legend(
            loc="upper left", bbox_to_anchor=(0, -0.1), ncols=4, frameon=False, fontsize=LABEL_SIZE
        )
    title = f"{len(x):,} household-nights of held-out households"
    label_panel(season, f"{title}, by season", *plane.axis_labels)
    label_panel(acorn, "The same, by Acorn group", plane.axis_labels[0])
    for set_limits, values in ((season.set_xlim, x), (season.set_ylim, y)):
        low, high = np.quantile(values, (OUTLIER_SHARE, 1 - OUTLIER_SHARE))
        set_limits(low - 0.05 * (high - low), high + 0.05 * (high - low))
    return figure


def draw_training_speed(measurements: pl.DataFrame, device: str) -> Figure:
    """Draw speed and memory of training steps by batch size and precision.

    `measurements` is the table of `measure_training_speed`.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    on_gpu = measurements["peak_mb"].is_not_null().any()
    for panel, column in (
        (speed, "nights_per_second"),
        (memory, "peak_mb" if on_gpu else "saved_tensors_mb"),
    ):
        for (precision,), rows in measurements.group_by("precision", maintain_order=True):
            colour, name = PRECISION_STYLES[str(precision)]
            panel.plot(rows["batch_size"], rows[column], "o-", color=colour, lw=1.6, label=name)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(measurements["batch_size"].unique(), [])
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:,g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3)
    speed.legend(frameon=False, fontsize=LABEL_SIZE)
    kind = "most that a step allocates" if on_gpu else "tensors kept for the backward pass"
    label_panel(speed, f"Training steps on {device}", "batch size", "household-nights a second")
    label_panel(memory, f"Memory of a step: {kind}", "batch size", "MB")
    return figure
