"""Controls: nights that differ from others without being anomalous, on which alarms are counted."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from ml.arrays import BoolArray, FloatArray, IntArray, median_and_mad, rolling_windows
from ml.conditions import CONDITIONS
from ml.evaluation.metrics import METRICS_SCHEMA
from ml.fleet import LEVEL_NIGHTS, Fleet

COLD_SNAP_NIGHTS: Final = 3
"""Nights of the simulated cold snap. Chosen."""
COLD_SNAP_LOAD_FACTOR: Final = 1.3
"""Factor of everybody's readings during the cold snap. Chosen: within what a cold week does."""
COLD_SNAP_COOLING_C: Final = 8.0
"""Degrees by which the weather conditions fall with it. Chosen."""
ABSENCE_MAX_SHARE: Final = 0.4
"""An absence is a run of nights with less than this share of the household's usual kWh: fridge and
standing load. Chosen."""
ABSENCE_MIN_NIGHTS: Final = 3
"""Least nights of an absence: a single low night is no absence."""
PRICE_EVENT_MIN_SIGNAL: Final = 0.25
"""Least absolute mean price signal of a price event, of 1 for a whole day at the high price."""
NEW_METER_HISTORY_NIGHTS: Final = 7
"""Nights before the test that a new meter has: the least that rules work with."""
MISSING_HALF_HOURS: Final = (0, 2, 4, 8, 12)
"""Half-hours hidden from a night; 12 leave the 36 readings that a night needs to be scored."""


@dataclass(frozen=True)
class ControlFleet:
    """A fleet without injections, and the nights of each control that it holds."""

    fleet: Fleet
    nights_by_control: dict[str, BoolArray]
    """`[H, D]` by the name of the control."""


def build_control_fleets(
    fleet: Fleet, household_indices: IntArray, test_nights: slice, min_readings: int
) -> list[ControlFleet]:
    """Return four fleets of these households: as is, a cold snap, new meters, hidden half-hours.

    Controls hold nights of `test_nights` with `min_readings` or more.
    """
    is_tested = np.zeros(fleet.kwh[household_indices].shape[:2], dtype=np.bool_)
    is_tested[:, test_nights] = fleet.n_readings[household_indices, test_nights] >= min_readings
    real = _copy_fleet(fleet, household_indices, fleet.kwh[household_indices], fleet.conditions)
    return [
        ControlFleet(real, _mark_real_nights(real, is_tested, min_readings)),
        _simulate_cold_snap(real, is_tested, test_nights),
        _simulate_new_meters(real, is_tested, test_nights),
        _hide_half_hours(real, is_tested, min_readings),
    ]


def measure_control_alarms(
    scored_controls: list[tuple[ControlFleet, FloatArray]], threshold: float
) -> pl.DataFrame:
    """Return alarms in 1,000 nights of each control at a threshold, in `METRICS_SCHEMA`.

    `alarms_per_1000` and `control_nights`, the nights that there were; `subset` is the control.
    """
    rows = []
    for control, score in scored_controls:
        for name, is_control in control.nights_by_control.items():
            n_nights = int(is_control.sum())
            rate = float("nan")
            if n_nights:
                rate = 1000 * float((score[is_control] >= threshold).mean())
            rows.append(("alarms_per_1000", name, rate, None, None))
            rows.append(("control_nights", name, float(n_nights), None, None))
    return pl.DataFrame(rows, schema=METRICS_SCHEMA, orient="row")


def _mark_real_nights(
    fleet: Fleet, is_tested: BoolArray, min_readings: int
) -> dict[str, BoolArray]:
    """Return the controls that real nights hold, by the conditions of each night."""
    # Its first night differs from NaN, which is no change.
    is_clock_change = (
        np.diff(fleet.get_condition("is_summer_time"), axis=1, prepend=np.nan) ** 2 > 0
    )
    is_weekend = (fleet.get_condition("is_saturday") + fleet.get_condition("is_sunday")) > 0
    is_day_off = fleet.get_condition("is_day_off") > 0
    is_price_event = np.abs(fleet.get_condition("price_signal")) >= PRICE_EVENT_MIN_SIGNAL
    return {
        "ordinary": is_tested,
        "absence": is_tested & _find_absences(fleet, min_readings),
        "clock_change": is_tested & is_clock_change,
        "bank_holiday": is_tested & is_day_off & ~is_weekend,
        "price_event": is_tested & is_price_event,
    }


def _find_absences(fleet: Fleet, min_readings: int) -> BoolArray:
    """Return the nights `[H, D]` within three or more in a row of little consumption."""
    is_usable = fleet.n_readings >= min_readings
    daily_kwh = np.where(is_usable, np.nansum(fleet.kwh, axis=2), np.nan)
    usual_kwh, _ = median_and_mad(rolling_windows(daily_kwh, LEVEL_NIGHTS))
    is_low = np.asarray(daily_kwh < ABSENCE_MAX_SHARE * usual_kwh)
    is_absent = np.zeros_like(is_low)
    for first in range(is_low.shape[1] - ABSENCE_MIN_NIGHTS + 1):
        span = slice(first, first + ABSENCE_MIN_NIGHTS)
        is_absent[:, span] |= np.all(is_low[:, span], axis=1, keepdims=True)
    return is_absent


def _simulate_cold_snap(fleet: Fleet, is_tested: BoolArray, test_nights: slice) -> ControlFleet:
    """Raise everybody's readings on a few nights in the middle of the test, with colder weather."""
    middle = (test_nights.start + test_nights.stop) // 2
    span = slice(middle, middle + COLD_SNAP_NIGHTS)
    kwh = fleet.kwh.copy()
    conditions = fleet.conditions.copy()
    kwh[:, span] *= np.float32(COLD_SNAP_LOAD_FACTOR)
    conditions[:, span, CONDITIONS.index("temperature_c")] -= np.float32(COLD_SNAP_COOLING_C)
    return ControlFleet(
        _copy_fleet(fleet, np.arange(len(kwh)), kwh, conditions),
        {"cold_snap": _restrict_to_span(is_tested, span)},
    )


def _simulate_new_meters(fleet: Fleet, is_tested: BoolArray, test_nights: slice) -> ControlFleet:
    """Let every other meter begin a week before the test; its nights until it has 28 before it."""
    kwh = fleet.kwh.copy()
    first_night = max(test_nights.start - NEW_METER_HISTORY_NIGHTS, 0)
    kwh[::2, :first_night] = np.nan
    span = slice(test_nights.start, first_night + LEVEL_NIGHTS)
    is_new = _restrict_to_span(is_tested, span)
    is_new[1::2] = False
    return ControlFleet(
        _copy_fleet(fleet, np.arange(len(kwh)), kwh, fleet.conditions), {"new_meter": is_new}
    )


def _hide_half_hours(fleet: Fleet, is_tested: BoolArray, min_readings: int) -> ControlFleet:
    """Hide 0 to 12 half-hours of each night: on every other night in one gap, else scattered."""
    random = np.random.default_rng(0)
    n_hidden = random.choice(MISSING_HALF_HOURS, size=is_tested.shape)
    half_hour = np.arange(fleet.kwh.shape[2])
    gap_start = random.integers(0, len(half_hour), (*is_tested.shape, 1))
    # The half-hours in the order in which they are hidden: shuffled, or from the gap's start on.
    order = random.random(fleet.kwh.shape).argsort(axis=2)
    in_a_gap = (half_hour - gap_start) % len(half_hour)
    order[:, ::2] = in_a_gap[:, ::2]
    is_hidden = is_tested[:, :, None] & (order < n_hidden[:, :, None])
    kwh = np.where(is_hidden, np.nan, fleet.kwh)
    is_usable = is_tested & (np.isfinite(kwh).sum(axis=2) >= min_readings)
    nights = {f"{count}_missing": is_usable & (n_hidden == count) for count in MISSING_HALF_HOURS}
    return ControlFleet(_copy_fleet(fleet, np.arange(len(kwh)), kwh, fleet.conditions), nights)


def _restrict_to_span(is_tested: BoolArray, span: slice) -> BoolArray:
    is_within = np.zeros_like(is_tested)
    is_within[:, span] = is_tested[:, span]
    return is_within


def _copy_fleet(
    fleet: Fleet, household_indices: IntArray, kwh: FloatArray, conditions: FloatArray
) -> Fleet:
    ids = [fleet.household_ids[row] for row in household_indices]
    return Fleet(
        ids,
        fleet.nights,
        kwh.astype(np.float32),
        fleet.condition_group[household_indices],
        conditions,
    )
