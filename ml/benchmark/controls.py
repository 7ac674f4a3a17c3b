"""Nights on which a detector must stay quiet although they differ: what is not an anomaly."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from ml.benchmark.figures import SCHEMA
from ml.benchmark.plant import Bools, Ints
from ml.features import CONDITIONS, LEVEL_NIGHTS, Fleet, Floats, median_and_mad, trailing

SNAP_NIGHTS: Final = 3
SNAP_FACTOR: Final = 1.3
SNAP_COOLING_C: Final = 8.0
# An absence is a run of nights that use less than this share of the household's usual kWh.
ABSENT_SHARE: Final = 0.4
ABSENT_NIGHTS: Final = 3
EVENT_SIGNAL: Final = 0.25
NEW_METER_NIGHTS: Final = 7
MISSING: Final = (0, 2, 4, 8, 12)


@dataclass(frozen=True)
class Controls:
    """A fleet in which nothing was planted, and the nights of each control, `[H, D]`."""

    fleet: Fleet
    nights: dict[str, Bools]


def controls(fleet: Fleet, rows: Ints, nights: slice, min_readings: int) -> list[Controls]:
    """Real nights, a cold snap, new meters and missing half-hours, each a fleet of these rows."""
    tested = np.zeros(fleet.kwh[rows].shape[:2], dtype=np.bool_)
    tested[:, nights] = fleet.n_readings[rows, nights] >= min_readings
    real = _of(fleet, rows, fleet.kwh[rows], fleet.conditions)
    return [
        Controls(real, _real_nights(real, tested, min_readings)),
        _cold_snap(real, tested, nights),
        _new_meters(real, tested, nights),
        _missing(real, tested, min_readings),
    ]


def alarms(found: list[tuple[Controls, Floats]], limit: float) -> pl.DataFrame:
    """Alarms in 1,000 nights of each control at a threshold, and the nights that there were."""
    rows = []
    for control, score in found:
        for name, nights in control.nights.items():
            count = int(nights.sum())
            rate = 1000 * float((score[nights] >= limit).mean()) if count else float("nan")
            rows += [("alarms_per_1000", name, rate), ("control_nights", name, float(count))]
    table = pl.DataFrame(rows, schema=["figure", "of", "value"], orient="row")
    unknown = pl.lit(None, pl.Float64)
    return table.with_columns(low=unknown, high=unknown).cast(SCHEMA)  # type: ignore[arg-type]


def _real_nights(fleet: Fleet, tested: Bools, min_readings: int) -> dict[str, Bools]:
    changes = np.diff(fleet.condition("is_summer_time"), axis=1, prepend=np.nan) ** 2 > 0
    weekend = (fleet.condition("is_saturday") + fleet.condition("is_sunday")) > 0
    return {
        "ordinary": tested,
        "absence": tested & _absent(fleet, min_readings),
        "clock_change": tested & changes,
        "bank_holiday": tested & (fleet.condition("is_day_off") > 0) & ~weekend,
        "price_event": tested & (np.abs(fleet.condition("price_signal")) >= EVENT_SIGNAL),
    }


def _absent(fleet: Fleet, min_readings: int) -> Bools:
    """Nights within `ABSENT_NIGHTS` or more in a row of little use, `[H, D]`."""
    enough = fleet.n_readings >= min_readings
    daily = np.where(enough, np.nansum(fleet.kwh, axis=2), np.nan)
    usual, _ = median_and_mad(trailing(daily, LEVEL_NIGHTS))
    low = np.asarray(daily < ABSENT_SHARE * usual)
    absent = np.zeros_like(low)
    for first in range(low.shape[1] - ABSENT_NIGHTS + 1):
        span = slice(first, first + ABSENT_NIGHTS)
        absent[:, span] |= np.all(low[:, span], axis=1, keepdims=True)
    return absent


def _cold_snap(fleet: Fleet, tested: Bools, nights: slice) -> Controls:
    """Everybody uses more on a few nights in the middle, and the weather says why."""
    middle = (nights.start + nights.stop) // 2
    span = slice(middle, middle + SNAP_NIGHTS)
    kwh, known = fleet.kwh.copy(), fleet.conditions.copy()
    kwh[:, span] *= np.float32(SNAP_FACTOR)
    known[:, span, CONDITIONS.index("temperature_c")] -= np.float32(SNAP_COOLING_C)
    return Controls(_of(fleet, np.arange(len(kwh)), kwh, known), {"cold_snap": _only(tested, span)})


def _new_meters(fleet: Fleet, tested: Bools, nights: slice) -> Controls:
    """Every other meter begins a week before the test; the nights until it has a whole past."""
    kwh = fleet.kwh.copy()
    begin = max(nights.start - NEW_METER_NIGHTS, 0)
    kwh[::2, :begin] = np.nan
    new = _only(tested, slice(nights.start, begin + LEVEL_NIGHTS))
    new[1::2] = False
    return Controls(_of(fleet, np.arange(len(kwh)), kwh, fleet.conditions), {"new_meter": new})


def _missing(fleet: Fleet, tested: Bools, min_readings: int) -> Controls:
    """Some half-hours of each night are hidden, on every other night those of one gap."""
    random = np.random.default_rng(0)
    hidden = random.choice(MISSING, size=tested.shape)
    clock = np.arange(fleet.kwh.shape[2])
    gap = (clock - random.integers(0, len(clock), (*tested.shape, 1))) % len(clock)
    order = random.random(fleet.kwh.shape).argsort(axis=2)
    order[:, ::2] = gap[:, ::2]
    kwh = np.where(tested[:, :, None] & (order < hidden[:, :, None]), np.nan, fleet.kwh)
    enough = tested & (np.isfinite(kwh).sum(axis=2) >= min_readings)
    nights = {f"{count}_missing": enough & (hidden == count) for count in MISSING}
    return Controls(_of(fleet, np.arange(len(kwh)), kwh, fleet.conditions), nights)


def _only(tested: Bools, span: slice) -> Bools:
    kept = np.zeros_like(tested)
    kept[:, span] = tested[:, span]
    return kept


def _of(fleet: Fleet, rows: Ints, kwh: Floats, conditions: Floats) -> Fleet:
    ids = [fleet.household_ids[row] for row in rows]
    return Fleet(ids, fleet.nights, kwh.astype(np.float32), fleet.group[rows], conditions)
