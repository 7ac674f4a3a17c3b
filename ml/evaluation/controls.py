"""Nights on which a detector must stay quiet although they differ: what is not an anomaly."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from ml.arrays import BoolArray, FloatArray, IntArray, median_and_mad, rolling_windows
from ml.conditions import CONDITIONS
from ml.evaluation.metrics import METRICS_SCHEMA
from ml.fleet import LEVEL_NIGHTS, Fleet

COLD_SNAP_NIGHTS: Final = 3
COLD_SNAP_LOAD_FACTOR: Final = 1.3
COLD_SNAP_COOLING_C: Final = 8.0
# An absence is a run of nights that use less than this share of the household's usual kWh.
ABSENCE_MAX_SHARE: Final = 0.4
ABSENCE_MIN_NIGHTS: Final = 3
PRICE_EVENT_MIN_SIGNAL: Final = 0.25
NEW_METER_HISTORY_NIGHTS: Final = 7
MISSING_HALF_HOURS: Final = (0, 2, 4, 8, 12)


@dataclass(frozen=True)
class ControlFleet:
    """A fleet in which nothing was planted, and the nights of each control, `[H, D]`."""

    fleet: Fleet
    nights_by_control: dict[str, BoolArray]


def build_control_fleets(
    fleet: Fleet, household_indices: IntArray, test_nights: slice, min_readings: int
) -> list[ControlFleet]:
    """Real nights, a cold snap, new meters and missing half-hours, each a fleet of these rows."""
    tested = np.zeros(fleet.kwh[household_indices].shape[:2], dtype=np.bool_)
    tested[:, test_nights] = fleet.n_readings[household_indices, test_nights] >= min_readings
    real = _copy_fleet(fleet, household_indices, fleet.kwh[household_indices], fleet.conditions)
    return [
        ControlFleet(real, _mark_real_nights(real, tested, min_readings)),
        _simulate_cold_snap(real, tested, test_nights),
        _simulate_new_meters(real, tested, test_nights),
        _hide_half_hours(real, tested, min_readings),
    ]


def measure_control_alarms(
    scored_controls: list[tuple[ControlFleet, FloatArray]], threshold: float
) -> pl.DataFrame:
    """Alarms in 1,000 nights of each control at a threshold, and the nights that there were."""
    rows = []
    for control, score in scored_controls:
        for name, nights in control.nights_by_control.items():
            count = int(nights.sum())
            rate = 1000 * float((score[nights] >= threshold).mean()) if count else float("nan")
            rows += [("alarms_per_1000", name, rate), ("control_nights", name, float(count))]
    table = pl.DataFrame(rows, schema=["metric", "subset", "value"], orient="row")
    unknown = pl.lit(None, pl.Float64)
    return table.with_columns(low=unknown, high=unknown).cast(METRICS_SCHEMA)  # type: ignore[arg-type]


def _mark_real_nights(
    fleet: Fleet, is_tested: BoolArray, min_readings: int
) -> dict[str, BoolArray]:
    changes = np.diff(fleet.get_condition("is_summer_time"), axis=1, prepend=np.nan) ** 2 > 0
    weekend = (fleet.get_condition("is_saturday") + fleet.get_condition("is_sunday")) > 0
    return {
        "ordinary": is_tested,
        "absence": is_tested & _find_absences(fleet, min_readings),
        "clock_change": is_tested & changes,
        "bank_holiday": is_tested & (fleet.get_condition("is_day_off") > 0) & ~weekend,
        "price_event": is_tested
        & (np.abs(fleet.get_condition("price_signal")) >= PRICE_EVENT_MIN_SIGNAL),
    }


def _find_absences(fleet: Fleet, min_readings: int) -> BoolArray:
    """Nights within `ABSENT_NIGHTS` or more in a row of little use, `[H, D]`."""
    enough = fleet.n_readings >= min_readings
    daily = np.where(enough, np.nansum(fleet.kwh, axis=2), np.nan)
    usual, _ = median_and_mad(rolling_windows(daily, LEVEL_NIGHTS))
    low = np.asarray(daily < ABSENCE_MAX_SHARE * usual)
    absent = np.zeros_like(low)
    for first in range(low.shape[1] - ABSENCE_MIN_NIGHTS + 1):
        span = slice(first, first + ABSENCE_MIN_NIGHTS)
        absent[:, span] |= np.all(low[:, span], axis=1, keepdims=True)
    return absent


def _simulate_cold_snap(fleet: Fleet, is_tested: BoolArray, test_nights: slice) -> ControlFleet:
    """Everybody uses more on a few nights in the middle, and the weather says why."""
    middle = (test_nights.start + test_nights.stop) // 2
    span = slice(middle, middle + COLD_SNAP_NIGHTS)
    kwh, known = fleet.kwh.copy(), fleet.conditions.copy()
    kwh[:, span] *= np.float32(COLD_SNAP_LOAD_FACTOR)
    known[:, span, CONDITIONS.index("temperature_c")] -= np.float32(COLD_SNAP_COOLING_C)
    return ControlFleet(
        _copy_fleet(fleet, np.arange(len(kwh)), kwh, known),
        {"cold_snap": _restrict_to_span(is_tested, span)},
    )


def _simulate_new_meters(fleet: Fleet, is_tested: BoolArray, test_nights: slice) -> ControlFleet:
    """Every other meter begins a week before the test; the nights until it has a whole past."""
    kwh = fleet.kwh.copy()
    begin = max(test_nights.start - NEW_METER_HISTORY_NIGHTS, 0)
    kwh[::2, :begin] = np.nan
    new = _restrict_to_span(is_tested, slice(test_nights.start, begin + LEVEL_NIGHTS))
    new[1::2] = False
    return ControlFleet(
        _copy_fleet(fleet, np.arange(len(kwh)), kwh, fleet.conditions), {"new_meter": new}
    )


def _hide_half_hours(fleet: Fleet, is_tested: BoolArray, min_readings: int) -> ControlFleet:
    """Some half-hours of each night are hidden, on every other night those of one gap."""
    random = np.random.default_rng(0)
    hidden = random.choice(MISSING_HALF_HOURS, size=is_tested.shape)
    clock = np.arange(fleet.kwh.shape[2])
    gap = (clock - random.integers(0, len(clock), (*is_tested.shape, 1))) % len(clock)
    order = random.random(fleet.kwh.shape).argsort(axis=2)
    order[:, ::2] = gap[:, ::2]
    kwh = np.where(is_tested[:, :, None] & (order < hidden[:, :, None]), np.nan, fleet.kwh)
    enough = is_tested & (np.isfinite(kwh).sum(axis=2) >= min_readings)
    nights = {f"{count}_missing": enough & (hidden == count) for count in MISSING_HALF_HOURS}
    return ControlFleet(_copy_fleet(fleet, np.arange(len(kwh)), kwh, fleet.conditions), nights)


def _restrict_to_span(is_tested: BoolArray, span: slice) -> BoolArray:
    kept = np.zeros_like(is_tested)
    kept[:, span] = is_tested[:, span]
    return kept


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
