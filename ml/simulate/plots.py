"""The picture that sets a simulated fleet beside a real one."""

from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ml.schemas import HALF_HOURS
from ml.simulate.surroundings import Bools, Floats

REAL: Final = "#1b5e7a"
SIMULATED: Final = "#e07b39"
EXAMPLES: Final = 3
FIRST_EXAMPLE_DAY: Final = 28
Fleets = dict[str, tuple[Floats, str]]


def compare(real: Floats, simulated: Floats, is_free: Bools) -> Figure:
    """Draw two fleets [H, D, 48] over the same D days, NaN where missing; `is_free` is [D]."""
    fleets: Fleets = {
        f"real, {len(real)} households": (real, REAL),
        f"simulated, {len(simulated)} households": (simulated, SIMULATED),
    }
    figure = Figure(figsize=(12.5, 11.5), layout="constrained")
    grid = figure.add_gridspec(3 + EXAMPLES, 2, height_ratios=[*(3, 3, 3), *[1.25] * EXAMPLES])
    panels = [figure.add_subplot(grid[place // 2, place % 2]) for place in range(6)]
    _profiles(panels[0], fleets, is_free)
    _half_hours(panels[1], fleets)
    _households(panels[2], fleets)
    _repetition(panels[3], fleets)
    _seasons(panels[4], fleets)
    _variability(panels[5], fleets)
    for column, (name, (kwh, colour)) in enumerate(fleets.items()):
        for row in range(EXAMPLES):
            panel = figure.add_subplot(grid[3 + row, column])
            _example(panel, kwh, colour, (row + 0.5) / EXAMPLES)
            if row == EXAMPLES - 1:
                panel.set_xlabel("days", fontsize=8)
            if row == 0:
                panel.set_title(f"Ten winter days of three homes: {name}", fontsize=9, loc="left")
    return figure


def repetition(kwh: Floats) -> Floats:
    """Median correlation of each household's consecutive days, [H]."""
    days = kwh - kwh.mean(axis=2, keepdims=True)
    scale = np.sqrt((days**2).sum(axis=2))
    both = (days[:, 1:] * days[:, :-1]).sum(axis=2)
    product = scale[:, 1:] * scale[:, :-1]
    correlation = np.divide(both, product, out=np.full_like(both, np.nan), where=product > 0)
    return _finite_median(correlation)


def _finite_median(rows: Floats) -> Floats:
    return np.asarray(np.nanmedian(rows[~np.isnan(rows).all(axis=1)], axis=1), dtype=np.float32)


def _title(panel: Axes, title: str, x: str, y: str) -> None:
    panel.set_title(title, fontsize=10, loc="left")
    panel.set_xlabel(x, fontsize=8)
    panel.set_ylabel(y, fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _profiles(panel: Axes, fleets: Fleets, is_free: Bools) -> None:
    hours = np.arange(HALF_HOURS) / 2
    for name, (kwh, colour) in fleets.items():
        for which, style, label in ((~is_free, "-", name), (is_free, "--", None)):
            panel.plot(hours, np.nanmean(kwh[:, which], axis=(0, 1)), style, c=colour, label=label)
    panel.set_ylim(bottom=0)
    panel.legend(fontsize=8, frameon=False, loc="upper left")
    _title(panel, "Mean day: working days (solid), free days (dashed)", "hour, UTC", "kWh")


def _cumulative(panel: Axes, values: Floats, colour: str) -> None:
    share = np.linspace(0, 1, 1001)
    panel.plot(np.nanquantile(values, share), share, c=colour)


def _half_hours(panel: Axes, fleets: Fleets) -> None:
    for kwh, colour in fleets.values():
        _cumulative(panel, np.maximum(kwh, 5e-4), colour)
    panel.set_xscale("log")
    _title(panel, "Half-hour readings (zeros at the left edge)", "kWh", "share below")


def _households(panel: Axes, fleets: Fleets) -> None:
    for kwh, colour in fleets.values():
        _cumulative(panel, HALF_HOURS * np.nanmean(kwh, axis=(1, 2)), colour)
    panel.set_xscale("log")
    panel.set_xlim(0.5, 100)
    _title(panel, "Mean day of each household", "kWh a day", "share of households below")


def _repetition(panel: Axes, fleets: Fleets) -> None:
    for kwh, colour in fleets.values():
        _outline(panel, repetition(kwh), np.linspace(-0.1, 1, 34), colour)
    _title(panel, "How alike consecutive days are", "median correlation", "density of households")


def _variability(panel: Axes, fleets: Fleets) -> None:
    for kwh, colour in fleets.values():
        total = kwh.sum(axis=2)
        total = total[~np.isnan(total).all(axis=1)]
        spread = np.nanstd(total, axis=1) / np.nanmean(total, axis=1)
        _outline(panel, spread, np.linspace(0, 1.5, 34), colour)
    _title(
        panel, "How much a household's days differ", "std / mean of kWh", "density of households"
    )


def _outline(panel: Axes, values: Floats, edges: NDArray[np.float64], colour: str) -> None:
    panel.hist(values, bins=edges.tolist(), density=True, color=colour, alpha=0.18)
    panel.hist(values, bins=edges.tolist(), density=True, color=colour, histtype="step")


def _seasons(panel: Axes, fleets: Fleets) -> None:
    for kwh, colour in fleets.values():
        daily = np.nanmean(kwh.sum(axis=2), axis=0)
        panel.plot(daily, c=colour, alpha=0.25, lw=0.8)
        weeks = daily[: len(daily) // 7 * 7].reshape(-1, 7).mean(axis=1)
        panel.plot(np.arange(len(weeks)) * 7 + 3, weeks, c=colour)
    panel.set_ylim(bottom=0)
    _title(panel, "Season (each in its own weather): days, weeks", "day of the year", "kWh a day")


def _example(panel: Axes, kwh: Floats, colour: str, quantile: float) -> None:
    """Draw the complete household at a quantile of the level, so that nobody picks a pretty one."""
    days = slice(FIRST_EXAMPLE_DAY, FIRST_EXAMPLE_DAY + 10)
    homes = np.flatnonzero(~np.isnan(kwh[:, days]).any(axis=(1, 2)))
    order = homes[np.argsort(np.nanmean(kwh[homes], axis=(1, 2)))]
    home = order[int(quantile * len(order))]
    panel.plot(np.arange(10 * HALF_HOURS) / HALF_HOURS, kwh[home, days].ravel(), c=colour, lw=0.8)
    panel.set_ylim(bottom=0)
    panel.set_ylabel("kWh", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
