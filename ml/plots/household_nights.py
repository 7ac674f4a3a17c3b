"""Pictures of household-nights: the readings beside the expected profile."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from ml.arrays import BoolArray, FloatArray, IntArray
from ml.explain.config import ReasonConfig
from ml.explain.reasons import explain_anomalies, select_context_nights
from ml.fleet import Fleet
from ml.plots.style import (
    ACTUAL_COLOUR,
    EXPECTED_COLOUR,
    LABEL_SIZE,
    label_panel,
    replace_underscores,
)
from ml.schemas import HALF_HOURS
from ml.scoring.tables import FleetScores

N_EXAMPLES: Final = 12
"""Household-nights of a picture: three rows of four, which a page shows at a readable size."""
N_COLUMNS: Final = 4
MAX_FLAGGED_EXAMPLES: Final = 4
"""Households among the examples that are flagged, where there are so many: the last row."""
HALF_HOUR_EDGES: Final = np.arange(HALF_HOURS + 1) / 2
"""Hours at which half-hours begin, and the end of the last."""


@dataclass(frozen=True)
class ProfileExample:
    """One household-night, 48 half-hours in kWh, NaN where missing."""

    title: str
    actual_kwh: FloatArray
    expected_kwh: FloatArray
    deviating_hours: tuple[float, float] | None = None
    """The hours that deviate most, from and to."""


def select_examples(
    fleet: Fleet,
    fleet_scores: FleetScores,
    alert_p_value: FloatArray,
    is_flagged: BoolArray,
    *,
    min_readings: int,
    reason_config: ReasonConfig,
) -> list[ProfileExample]:
    """Return a dozen household-nights of a fleet: ordinary ones, then the most urgent flagged.

    `alert_p_value` and `is_flagged` are `[H, D]`; nights whose alert p-value is NaN are left out.
    Ordinary nights are spread evenly from the least to the most urgent. Of flagged households each
    has its most urgent night, with its reason and the hours that deviate.
    """
    flagged = _select_most_urgent(np.where(is_flagged, alert_p_value, np.nan))
    unflagged_p_value = np.where(is_flagged, np.nan, alert_p_value)
    ordinary = _select_evenly(unflagged_p_value, N_EXAMPLES - len(flagged))
    examples = [
        ProfileExample(
            title=f"{fleet.household_ids[h]}  {fleet.nights[d]}\n"
            f"p = {fleet_scores.p_value[h, d]:.2g}",
            actual_kwh=fleet.kwh[h, d],
            expected_kwh=fleet_scores.expected_kwh[h, d],
        )
        for h, d in ordinary
    ]
    h, d = flagged.T
    anomalies = explain_anomalies(
        _build_flagged_rows(fleet, fleet_scores, h, d),
        fleet.kwh[h, d],
        fleet_scores.expected_kwh[h, d],
        fleet_scores.half_hour_score[h, d],
        select_context_nights(fleet.kwh, h, d, reason_config),
        min_readings=min_readings,
        config=reason_config,
    )
    return examples + build_flagged_examples(anomalies)


def build_flagged_examples(anomalies: pl.DataFrame) -> list[ProfileExample]:
    """Return an example for each row of the table `anomalies`, with the hours that deviate."""
    midnight = pl.col("night").cast(pl.Datetime("us"))
    hours = anomalies.select((pl.col("start_utc", "end_utc") - midnight).dt.total_minutes() / 60)
    return [
        ProfileExample(
            title=f"{row['household_id']}  {row['night']}\n"
            f"{replace_underscores(row['reason'])}, p = {row['p_value']:.2g}",
            actual_kwh=np.array(row["actual_kwh"], dtype=float),
            expected_kwh=np.array(row["expected_kwh"], dtype=float),
            deviating_hours=span,
        )
        for row, span in zip(anomalies.iter_rows(named=True), hours.iter_rows(), strict=True)
    ]


def draw_profiles(examples: Sequence[ProfileExample], title: str) -> Figure:
    """Draw the readings of household-nights with what was expected, in the order given."""
    n_rows = max(1, -(-len(examples) // N_COLUMNS))
    figure = Figure(figsize=(3.2 * N_COLUMNS, 2.1 * n_rows + 0.5), layout="constrained")
    panels = figure.subplots(n_rows, N_COLUMNS, sharex=True, squeeze=False).ravel()
    for panel, example in zip(panels, examples, strict=False):
        for kwh, name, colour, width in (
            (example.actual_kwh, "metered", ACTUAL_COLOUR, 1.2),
            (example.expected_kwh, "expected", EXPECTED_COLOUR, 1.6),
        ):
            panel.stairs(kwh, HALF_HOUR_EDGES, baseline=None, label=name, color=colour, lw=width)
        if example.deviating_hours:
            panel.axvspan(*example.deviating_hours, color=EXPECTED_COLOUR, alpha=0.15, lw=0)
        panel.set_ylim(bottom=0)
        label_panel(panel, example.title)
    for panel in panels[len(examples) :]:
        panel.set_visible(False)
    for panel in panels[-N_COLUMNS:]:
        panel.set_xticks((0, 6, 12, 18, 24))
        panel.set_xlabel("hour (UTC)", fontsize=LABEL_SIZE)
    for panel in panels[::N_COLUMNS]:
        panel.set_ylabel("kWh per half-hour", fontsize=LABEL_SIZE)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _order_by_urgency(alert_p_value: FloatArray) -> IntArray:
    """Return places `[N, 2]` in `[H, D]`, the least urgent first; NaN is left out."""
    n_nights = np.isfinite(alert_p_value).sum()
    # NaN sorts last, so the first ones are those with a value.
    order = np.argsort(-alert_p_value, axis=None, kind="stable")[:n_nights]
    return np.stack(np.unravel_index(order, alert_p_value.shape), axis=1)


def _select_most_urgent(alert_p_value: FloatArray) -> IntArray:
    """Return the most urgent night of each of the most urgent households, the most urgent last."""
    places = _order_by_urgency(alert_p_value)[::-1]
    _, first = np.unique(places[:, 0], return_index=True)
    return places[np.sort(first)[:MAX_FLAGGED_EXAMPLES][::-1]]


def _select_evenly(alert_p_value: FloatArray, max_nights: int) -> IntArray:
    """Return at most `max_nights`, evenly from the least to the most urgent."""
    places = _order_by_urgency(alert_p_value)
    even = np.linspace(0, len(places) - 1, min(max_nights, len(places)))
    return places[even.round().astype(int)]


def _build_flagged_rows(
    fleet: Fleet, fleet_scores: FleetScores, h: IntArray, d: IntArray
) -> pl.DataFrame:
    """Return what `explain_anomalies` asks of household-nights at places `h, d`."""
    return pl.DataFrame(
        {
            "household_id": [fleet.household_ids[household] for household in h],
            "night": [fleet.nights[night] for night in d],
            "p_value": fleet_scores.p_value[h, d],
            "actual_kwh": fleet.kwh[h, d].sum(axis=1),
            "expected_kwh": fleet_scores.expected_kwh[h, d].sum(axis=1),
        },
        schema_overrides={"household_id": pl.String, "night": pl.Date},
    )
