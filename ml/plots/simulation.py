"""The picture that compares a simulated fleet with a real one."""

from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ml.plots.style import ACTUAL_COLOUR, EXPECTED_COLOUR, label_panel
from ml.schemas import HALF_HOURS
from ml.simulation.environment import Bools, Floats

N_EXAMPLES: Final = 3
"""Households whose readings are drawn: of a low, a middle and a high level."""
FIRST_EXAMPLE_DAY: Final = 28
"""Places in the year of the ten days drawn: winter, after the holidays."""
TITLE_SIZE: Final = 10
ColouredFleets = dict[str, tuple[Floats, str]]
"""Readings `[H, D, 48]` and colour of each fleet, by its name."""


def draw_fleet_comparison(real_kwh: Floats, simulated_kwh: Floats, is_free_day: Bools) -> Figure:
    """Draw two fleets `[H, D, 48]` over the same D days; `is_free_day` `[D]`, NaN where missing."""
    fleets: ColouredFleets = {
        f"real, {len(real_kwh)} households": (real_kwh, ACTUAL_COLOUR),
        f"simulated, {len(simulated_kwh)} households": (simulated_kwh, EXPECTED_COLOUR),
    }
    figure = Figure(figsize=(12.5, 11.5), layout="constrained")
    grid = figure.add_gridspec(3 + N_EXAMPLES, 2, height_ratios=[*(3, 3, 3), *[1.25] * N_EXAMPLES])
    panels = [figure.add_subplot(grid[place // 2, place % 2]) for place in range(6)]
    _draw_mean_profiles(panels[0], fleets, is_free_day)
    _draw_reading_distribution(panels[1], fleets)
    _draw_level_distribution(panels[2], fleets)
    _draw_day_correlation(panels[3], fleets)
    _draw_seasons(panels[4], fleets)
    _draw_variability(panels[5], fleets)
    for column, (name, (kwh, colour)) in enumerate(fleets.items()):
        for row in range(N_EXAMPLES):
            panel = figure.add_subplot(grid[3 + row, column])
            _draw_example(panel, kwh, colour, (row + 0.5) / N_EXAMPLES)
            if row == N_EXAMPLES - 1:
                panel.set_xlabel("days", fontsize=8)
            if row == 0:
                panel.set_title(
                    f"Ten winter days of three households: {name}", fontsize=9, loc="left"
                )
    return figure


def correlate_consecutive_days(kwh: Floats) -> Floats:
    """Return the median correlation of each household's consecutive days, `[H]`."""
    days = kwh - kwh.mean(axis=2, keepdims=True)
    scale = np.sqrt((days**2).sum(axis=2))
    both = (days[:, 1:] * days[:, :-1]).sum(axis=2)
    product = scale[:, 1:] * scale[:, :-1]
    correlation = np.divide(both, product, out=np.full_like(both, np.nan), where=product > 0)
    return _median_per_household(correlation)


def _median_per_household(rows: Floats) -> Floats:
    return np.asarray(np.nanmedian(rows[~np.isnan(rows).all(axis=1)], axis=1), dtype=np.float32)


def _draw_mean_profiles(panel: Axes, fleets: ColouredFleets, is_free_day: Bools) -> None:
    hours = np.arange(HALF_HOURS) / 2
    for name, (kwh, colour) in fleets.items():
        for which, style, label in ((~is_free_day, "-", name), (is_free_day, "--", None)):
            panel.plot(hours, np.nanmean(kwh[:, which], axis=(0, 1)), style, c=colour, label=label)
    panel.set_ylim(bottom=0)
    panel.legend(fontsize=8, frameon=False, loc="upper left")
    label_panel(panel, "Mean day: working days (solid), free days (dashed)", "hour, UTC", "kWh")


def _draw_cumulative(panel: Axes, values: Floats, colour: str) -> None:
    share = np.linspace(0, 1, 1001)
    panel.plot(np.nanquantile(values, share), share, c=colour)


def _draw_reading_distribution(panel: Axes, fleets: ColouredFleets) -> None:
    for kwh, colour in fleets.values():
        _draw_cumulative(panel, np.maximum(kwh, 5e-4), colour)
    panel.set_xscale("log")
    label_panel(panel, "Half-hour readings (zeros at the left edge)", "kWh", "share below")


def _draw_level_distribution(panel: Axes, fleets: ColouredFleets) -> None:
    for kwh, colour in fleets.values():
        _draw_cumulative(panel, HALF_HOURS * np.nanmean(kwh, axis=(1, 2)), colour)
    panel.set_xscale("log")
    panel.set_xlim(0.5, 100)
    label_panel(panel, "Mean day of each household", "kWh a day", "share of households below")


def _draw_day_correlation(panel: Axes, fleets: ColouredFleets) -> None:
    for kwh, colour in fleets.values():
        _draw_histogram(panel, correlate_consecutive_days(kwh), np.linspace(-0.1, 1, 34), colour)
    label_panel(
        panel, "How alike consecutive days are", "median correlation", "density of households"
    )


def _draw_variability(panel: Axes, fleets: ColouredFleets) -> None:
    for kwh, colour in fleets.values():
        total = kwh.sum(axis=2)
        total = total[~np.isnan(total).all(axis=1)]
        spread = np.nanstd(total, axis=1) / np.nanmean(total, axis=1)
        _draw_histogram(panel, spread, np.linspace(0, 1.5, 34), colour)
    label_panel(
        panel, "How much a household's days differ", "std / mean of kWh", "density of households"
    )


def _draw_histogram(panel: Axes, values: Floats, edges: NDArray[np.float64], colour: str) -> None:
    panel.hist(values, bins=edges.tolist(), density=True, color=colour, alpha=0.18)
    panel.hist(values, bins=edges.tolist(), density=True, color=colour, histtype="step")


def _draw_seasons(panel: Axes, fleets: ColouredFleets) -> None:
    for kwh, colour in fleets.values():
        daily = np.nanmean(kwh.sum(axis=2), axis=0)
        panel.plot(daily, c=colour, alpha=0.25, lw=0.8)
        weeks = daily[: len(daily) // 7 * 7].reshape(-1, 7).mean(axis=1)
        panel.plot(np.arange(len(weeks)) * 7 + 3, weeks, c=colour)
    panel.set_ylim(bottom=0)
    label_panel(
        panel, "Season (each in its own weather): days, weeks", "day of the year", "kWh a day"
    )


def _draw_example(panel: Axes, kwh: Floats, colour: str, level_quantile: float) -> None:
    """Draw the complete household at a quantile of the level, so that nobody picks a pretty one."""
    days = slice(FIRST_EXAMPLE_DAY, FIRST_EXAMPLE_DAY + 10)
    complete = np.flatnonzero(~np.isnan(kwh[:, days]).any(axis=(1, 2)))
    by_level = complete[np.argsort(np.nanmean(kwh[complete], axis=(1, 2)))]
    h = by_level[int(level_quantile * len(by_level))]
    panel.plot(np.arange(10 * HALF_HOURS) / HALF_HOURS, kwh[h, days].ravel(), c=colour, lw=0.8)
    panel.set_ylim(bottom=0)
    panel.set_ylabel("kWh", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
