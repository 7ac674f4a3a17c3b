"""Pictures of a training and of nights: curves, days beside what was expected, scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from ml.arrays import FloatArray
from ml.errors import UserError
from ml.explain.reasons import explain_anomalies, select_context_nights
from ml.fleet import Fleet
from ml.schemas import HALF_HOURS
from ml.scoring.detector import Detector
from ml.scoring.tables import FleetScores, score_fleet
from ml.scoring.tails import compute_p_values

if TYPE_CHECKING:
    from ml.training.latent_plane import LatentPlane

ACTUAL_COLOUR: Final = "#1b5e7a"
EXPECTED_COLOUR: Final = "#e07b39"
MUTED_COLOUR: Final = "#8a8f94"
N_EXAMPLES: Final = 12
N_COLUMNS: Final = 4
MAX_FLAGGED_EXAMPLES: Final = 4
"""Homes among the examples that are flagged, where there are so many."""
LABELLED_P_VALUES: Final = (0.1, 0.01, 1e-3, 1e-4, 1e-5)
ACORN_STYLES: Final = {
    1.0: ("affluent", ACTUAL_COLOUR),
    0.0: ("comfortable", "#7fb069"),
    -1.0: ("adversity", EXPECTED_COLOUR),
}
UNKNOWN_ACORN_STYLE: Final = ("unknown", "#c9ccd0")
SEASON_STYLES: Final = (
    ("winter", ACTUAL_COLOUR),
    ("spring", "#7fb069"),
    ("summer", "#f2c14e"),
    ("autumn", "#b5532a"),
)
PRECISION_STYLES: Final = {
    "32-true": (ACTUAL_COLOUR, "full (float32)"),
    "bf16-mixed": (EXPECTED_COLOUR, "mixed (bfloat16)"),
    "16-mixed": ("#7fb069", "mixed (float16)"),
}
HouseholdNightIndices = NDArray[np.int_]

HALF_HOUR_EDGES: Final = np.arange(HALF_HOURS + 1) / 2


@dataclass(frozen=True)
class ProfileExample:
    """One household-night, 48 half-hours in kWh, NaN where missing."""

    title: str
    actual_kwh: FloatArray
    expected_kwh: FloatArray
    deviating_hours: tuple[float, float] | None = None
    """The hours that deviate most, from and to."""


def select_examples(
    detector: Detector, fleet: Fleet, nights: slice, min_readings: int, alert_budget: float
) -> list[ProfileExample]:
    """A dozen household-nights: evenly from the least anomalous on, and the most urgent flagged."""
    judged = score_fleet(detector, fleet, min_readings)
    urgent = detector.calibration.alert_p_values(judged.p_value, judged.evidence)
    urgent[:, : nights.start] = np.nan
    is_flagged = urgent <= _find_alert_threshold(detector, alert_budget)
    worst = _select_most_urgent(np.where(is_flagged, urgent, np.nan))
    ordinary = _select_evenly(np.where(is_flagged, np.nan, urgent), N_EXAMPLES - len(worst))
    shown = [
        ProfileExample(
            title=f"{fleet.household_ids[h]}  {fleet.nights[d]}\np = {judged.p_value[h, d]:.2g}",
            actual_kwh=fleet.kwh[h, d],
            expected_kwh=judged.expected_kwh[h, d],
        )
        for h, d in ordinary
    ]
    return shown + _explain_flagged(fleet, judged, worst)


def _order_by_alert_p_value(alert_p_value: FloatArray) -> HouseholdNightIndices:
    """Places `[N, 2]` in `[H, D]`, the least urgent first; NaN left out."""
    order = np.argsort(-alert_p_value, axis=None, kind="stable")[: np.isfinite(alert_p_value).sum()]
    return np.stack(np.unravel_index(order, alert_p_value.shape), axis=1)


def _select_most_urgent(alert_p_value: FloatArray) -> HouseholdNightIndices:
    """The most urgent night of each of the most urgent homes, the least urgent of them first."""
    places = _order_by_alert_p_value(alert_p_value)[::-1]
    _, first = np.unique(places[:, 0], return_index=True)
    return places[np.sort(first)[:MAX_FLAGGED_EXAMPLES][::-1]]


def _select_evenly(alert_p_value: FloatArray, n_nights: int) -> HouseholdNightIndices:
    """At most so many nights, evenly from the least to the most urgent."""
    places = _order_by_alert_p_value(alert_p_value)
    even = np.linspace(0, len(places) - 1, min(n_nights, len(places)))
    return places[even.round().astype(int)]


def _explain_flagged(
    fleet: Fleet, fleet_scores: FleetScores, household_nights: HouseholdNightIndices
) -> list[ProfileExample]:
    """Flagged nights `[N, 2]` with their reasons and the hours that show them."""
    h, d = household_nights.T
    actual, expected = fleet.kwh[h, d], fleet_scores.expected_kwh[h, d]
    rows = pl.DataFrame(
        {
            "household_id": [fleet.household_ids[household] for household in h],
            "night": [fleet.nights[night] for night in d],
            "p_value": fleet_scores.p_value[h, d],
            "actual_kwh": actual.sum(axis=1),
            "expected_kwh": expected.sum(axis=1),
        },
        schema_overrides={"household_id": pl.String, "night": pl.Date},
    )
    past = select_context_nights(fleet.kwh, h, d)
    return build_flagged_examples(
        explain_anomalies(rows, actual, expected, fleet_scores.half_hour_score[h, d], past)
    )


def draw_loss_curve(epoch_metrics: Sequence[Mapping[str, float]], best_epoch: int) -> Figure:
    """Training and validation loss by epoch, the best marked, the learning rate below."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 1))
    loss, rate = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
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
    loss.plot(best_epoch + 1, best["val_loss"], "o", color=EXPECTED_COLOUR, label="weights kept")
    loss.legend(frameon=False, fontsize=8)
    rates = [epoch["learning_rate"] for epoch in epoch_metrics]
    rate.plot(epochs, rates, color=MUTED_COLOUR, **style)
    rate.ticklabel_format(axis="y", scilimits=(0, 0))
    rate.set_ylim(bottom=0)
    _label_panel(loss, "Loss of the network", "", "")
    _label_panel(rate, "Learning rate", "epoch", "")
    for panel in (loss, rate):
        panel.set_xlim(0.5, max(epochs) + 0.5)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def draw_profiles(profile_examples: Sequence[ProfileExample], title: str) -> Figure:
    """Real days with what was expected, small multiples in the order given."""
    rows = max(1, -(-len(profile_examples) // N_COLUMNS))
    figure = Figure(figsize=(3.2 * N_COLUMNS, 2.1 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, N_COLUMNS, sharex=True, squeeze=False).ravel()
    for panel, day in zip(panels, profile_examples, strict=False):
        for kwh, name, colour, width in (
            (day.actual_kwh, "observed", ACTUAL_COLOUR, 1.2),
            (day.expected_kwh, "expected", EXPECTED_COLOUR, 1.6),
        ):
            panel.stairs(kwh, HALF_HOUR_EDGES, baseline=None, label=name, color=colour, lw=width)
        if day.deviating_hours:
            panel.axvspan(*day.deviating_hours, color=EXPECTED_COLOUR, alpha=0.15, lw=0)
        panel.set_ylim(bottom=0)
        _label_panel(panel, day.title, "", "")
    for panel in panels[len(profile_examples) :]:
        panel.set_visible(False)
    for panel in panels[-N_COLUMNS:]:
        panel.set_xticks((0, 6, 12, 18, 24))
        panel.set_xlabel("hour (UTC)", fontsize=8)
    for panel in panels[::N_COLUMNS]:
        panel.set_ylabel("kWh per half-hour", fontsize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def build_flagged_examples(anomalies: pl.DataFrame) -> list[ProfileExample]:
    """Rows of the `anomalies` table, with the hours that deviate."""
    midnight = pl.col("night").cast(pl.Datetime("us"))
    hours = anomalies.select((pl.col("start_utc", "end_utc") - midnight).dt.total_minutes() / 60)
    return [
        ProfileExample(
            title="{household_id}  {night}\n{reason}, p = {p_value:.2g}".format(**row),
            actual_kwh=np.array(row["actual_kwh"], dtype=float),
            expected_kwh=np.array(row["expected_kwh"], dtype=float),
            deviating_hours=span,
        )
        for row, span in zip(anomalies.iter_rows(named=True), hours.iter_rows(), strict=True)
    ]


def draw_score_distribution(detector: Detector, alert_budget: float) -> Figure:
    """Scores of the calibration nights, their p-values, and the one that flags a night by itself.

    No threshold where the calibration cannot tell what keeps to the budget.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    panel = figure.add_subplot()
    scores, limit = (
        detector.calibration.reference_scores.numpy(),
        _find_alert_threshold(detector, alert_budget),
    )
    grid = np.linspace(scores.min(), 2 * scores.max() + 1, 20_000)
    falling = -np.log10(compute_p_values(scores, grid, detector.config.scoring.calibration))
    threshold = float(np.interp(-np.log10(limit), falling, grid)) if limit else None
    end = max(float(np.quantile(scores, 0.9999)), 1.2 * (threshold or 0.0))
    bins = np.linspace(scores.min(), end, 80)
    panel.hist(np.minimum(scores, end), bins=list(bins), color=ACTUAL_COLOUR, log=True)
    if threshold is not None:
        panel.axvline(threshold, color=EXPECTED_COLOUR, lw=1.8)
        panel.annotate(
            f"flagged from here on: p up to {limit:.2g},\n"
            f"{alert_budget:g} false episodes in 1,000 nights",
            (threshold, panel.get_ylim()[1]),
            xytext=(6, -22),
            textcoords="offset points",
            color=EXPECTED_COLOUR,
            fontsize=8,
        )
    shown = [
        p for p in LABELLED_P_VALUES if falling[0] <= -np.log10(p) <= np.interp(end, grid, falling)
    ]
    top = panel.secondary_xaxis("top")
    top.set_xticks(np.interp(-np.log10(shown), falling, grid), [f"p = {p:g}" for p in shown])
    top.tick_params(labelsize=8)
    title = f"Scores of {len(scores):,} household-nights of the calibration set"
    _label_panel(
        panel,
        title,
        "score against the household's own nights (last bar: all above)",
        "household-nights",
    )
    return figure


def draw_latent_plane(plane: "LatentPlane") -> Figure:
    """Household-nights in a network's latent plane, by season and by Acorn group."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    season, acorn = figure.subplots(1, 2, sharex=True, sharey=True)
    order = np.random.default_rng(0).permutation(len(plane.nights))  # no group lies on top
    x, y = plane.points[order].T
    seasons = [SEASON_STYLES[night.month % 12 // 3] for night in plane.nights]
    acorns = [ACORN_STYLES.get(float(value), UNKNOWN_ACORN_STYLE) for value in plane.affluence]
    for panel, groups, known in (
        (season, seasons, SEASON_STYLES),
        (acorn, acorns, (*ACORN_STYLES.values(), UNKNOWN_ACORN_STYLE)),
    ):
        panel.scatter(x, y, c=[groups[place][1] for place in order], s=7, lw=0, alpha=0.7)
        for name, colour in known:
            if (name, colour) in groups:
                panel.scatter([], [], c=colour, s=30, lw=0, label=name)
        panel.legend(loc="upper left", bbox_to_anchor=(0, -0.1), ncols=4, frameon=False, fontsize=8)
    title = f"{len(x):,} household-nights of held-out households"
    _label_panel(season, f"{title}, by season", *plane.axis_labels)
    _label_panel(acorn, "The same, by Acorn group", plane.axis_labels[0], "")
    for axis, values in ((season.set_xlim, x), (season.set_ylim, y)):
        low, high = np.quantile(values, (0.002, 0.998))
        axis(low - 0.05 * (high - low), high + 0.05 * (high - low))
    return figure


def draw_training_speed(measurements: pl.DataFrame, device: str) -> Figure:
    """What `measure_training_speed` measured: household-nights a second and memory, by batch size and precision."""
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
    speed.legend(frameon=False, fontsize=8)
    kind = "most that a step allocates" if on_gpu else "tensors kept for the backward pass"
    _label_panel(speed, f"Training steps on {device}", "batch size", "household-nights a second")
    _label_panel(memory, f"Memory of a step: {kind}", "batch size", "MB")
    return figure


def _find_alert_threshold(detector: Detector, alert_budget: float) -> float:
    """The urgency that flags; 0 where the calibration cannot tell."""
    try:
        return detector.calibration.alert_threshold(alert_budget)
    except UserError:
        return 0.0


def _label_panel(panel: Axes, title: str, x_label: str, y_label: str) -> None:
    panel.set_title(title, fontsize=9, loc="left")
    panel.set_xlabel(x_label, fontsize=8)
    panel.set_ylabel(y_label, fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
