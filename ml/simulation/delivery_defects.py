"""Defects of real deliveries: what is missing, repeated, corrupt or late in a block's readings.

Kinds follow the London trial's files as Kaggle and the Datastore publish them. Rates were chosen so
that a fleet of some hundred households has each kind.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml.schemas import HALF_HOURS
from ml.simulation.environment import Bools, FleetConfig, Floats, Ints

SENTINEL_KWH: Final = 4294967.295
"""What a meter reports in place of a reading it lacks: the highest 32-bit number, in Wh."""
LATE_START_SHARE: Final = 0.02
"""Share of the meters that begin within the first 40 % of the period."""
EARLY_STOPS_PER_YEAR: Final = 0.08
"""Share of the meters that stop within the last 40 % of the period, a year of its length."""
GAPS_PER_YEAR: Final = 0.3
"""Gaps of one or more whole days, a meter and year."""
MISSING_HALF_HOURS_PER_YEAR: Final = 1.2
"""Single half-hours that never arrive, a meter and year."""
FLEET_OUTAGES_PER_YEAR: Final = 8
"""Half-hours a year at which many meters of the whole fleet report nothing."""
OUTAGE_HOUSEHOLD_SHARE: Final = 0.15
"""Share of the meters that such a half-hour hits."""
NULL_HOUSEHOLD_SHARE: Final = 0.4
"""Share of the meters with a `Null` off the grid, all on one day, as in the trial's files."""
DAYS_BETWEEN_DUPLICATES: Final = 30
"""Days from one reading of 00:00 that is delivered twice to the next, as in the trial's files."""
INVALID_READING_SHARE: Final = 2e-6
"""Share of the readings that are a sentinel or negative; about as many of each. Chosen: rare, and
yet met in every fleet of some size."""
FLOAT_NOISE_SHARE: Final = 0.002
"""Share of the readings that are off a whole watt-hour by 1e-7, as floats that were summed."""
CORRECTED_HOUSEHOLD_SHARE: Final = 0.01
"""Share of the meters with a flat estimate on one afternoon, which a later delivery puts right."""

Random = np.random.Generator


@dataclass(frozen=True)
class DeliveredRows:
    """Delivered rows `[N]` of a block."""

    household_index: Ints
    """Place of the household in the block."""
    half_hour_index: Ints
    """Half-hours since the beginning of the period."""
    off_grid_s: Ints
    """Seconds by which the stamp lies behind the half-hour; 0 for a reading."""
    kwh: NDArray[np.float64]
    """NaN is delivered as `Null`."""

    def __getitem__(self, selection: Bools | Ints) -> "DeliveredRows":
        """Return the rows chosen by a mask or by places, in that order."""
        return DeliveredRows(
            self.household_index[selection],
            self.half_hour_index[selection],
            self.off_grid_s[selection],
            self.kwh[selection],
        )

    def __add__(self, other: "DeliveredRows") -> "DeliveredRows":
        """Return these rows followed by `other`."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return DeliveredRows(*(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True)
class BlockDelivery:
    """What arrives of a block."""

    rows: DeliveredRows
    correction: DeliveredRows
    """A later delivery, which is right."""
    defect_counts: dict[str, int]
    """Rows that the ingest has to set aside, by the rule that they break."""


def simulate_delivery(
    kwh: Floats, config: FleetConfig, gapless_households: Ints, random: Random
) -> BlockDelivery:
    """Return the delivery of a block `[n, D, 48]`, with defects.

    `gapless_households`, places in the block, begin and end with the period and have no gap of
    days: they carry anomalies, whose nights have to arrive. The order of the draws is part of the
    fleet.
    """
    is_missing = _draw_missing(kwh.shape, config, gapless_households, random)
    # In double, so that a reading of whole watt-hours is written with three digits.
    metered = np.rint(kwh * np.float32(1000)).astype(np.float64) / 1000
    sent = np.where(is_missing, np.nan, metered)
    correction = _replace_by_estimates(sent, random)
    is_noisy = (random.random(sent.shape, dtype=np.float32) < FLOAT_NOISE_SHARE) & (sent > 0)
    sent[is_noisy] -= 1e-7
    defect_counts = _insert_invalid_readings(sent, np.unique(correction.household_index), random)
    order = _draw_delivery_order(sent.shape, random)
    rows = _select_rows(sent, order[~np.isnan(sent.ravel()[order])])
    duplicates = _draw_duplicates(sent, random)
    null_rows = _draw_null_rows(sent, config, random)
    defect_counts["duplicate"] = len(duplicates.household_index)
    defect_counts["null"] = len(null_rows.household_index)
    defect_counts["superseded"] = len(correction.household_index)
    return BlockDelivery(rows + duplicates + null_rows, correction, defect_counts)


def _select_rows(sent_kwh: NDArray[np.float64], flat_indices: Ints) -> DeliveredRows:
    """Return the rows `[N]` of readings whose places `[N]` count through a block `[H, T]`."""
    household, half_hour = np.divmod(flat_indices, sent_kwh[0].size)
    on_grid = np.zeros_like(household)
    return DeliveredRows(household, half_hour, on_grid, sent_kwh.ravel()[flat_indices])


def _draw_missing(
    shape: tuple[int, ...], config: FleetConfig, gapless_households: Ints, random: Random
) -> Bools:
    """Return which half-hours never arrive, `[n, D, 48]`; every household keeps some."""
    n, n_days = shape[0], shape[1]
    years = n_days / 365
    single_rate = MISSING_HALF_HOURS_PER_YEAR / (365 * HALF_HOURS)
    is_missing = random.random(shape, dtype=np.float32) < single_rate
    for half_hour in _draw_fleet_outages(config):
        is_missing.reshape(n, -1)[:, half_hour] |= random.random(n) < OUTAGE_HOUSEHOLD_SHARE
    first_day = np.zeros(n)
    end_day = np.full(n, n_days)
    starts_late = random.random(n) < LATE_START_SHARE
    first_day[starts_late] = random.uniform(0, 0.4 * n_days, starts_late.sum())
    stops_early = random.random(n) < EARLY_STOPS_PER_YEAR * years
    end_day[stops_early] = n_days - random.uniform(0, 0.4 * n_days, stops_early.sum())
    gap_days = np.where(random.random(n) < GAPS_PER_YEAR * years, random.geometric(0.3, n), 0)
    # 40 % of the days at either end and a sixth in between leave some.
    gap_days = np.minimum(gap_days, n_days // 6)
    gap_start = random.integers(0, n_days, n)
    first_day[gapless_households] = 0
    end_day[gapless_households] = n_days
    gap_days[gapless_households] = 0
    day = np.arange(n_days)
    is_lost = (day < first_day[:, None].astype(int)) | (day >= end_day[:, None])
    is_lost |= (day >= gap_start[:, None]) & (day < (gap_start + gap_days)[:, None])
    return np.asarray(is_missing | is_lost[:, :, None])


def _draw_fleet_outages(config: FleetConfig) -> Ints:
    """Return the half-hours of the period at which many meters of the fleet report nothing."""
    random = config.create_generator(2)
    count = random.poisson(FLEET_OUTAGES_PER_YEAR * config.days / 365)
    return random.integers(0, config.days * HALF_HOURS, count)


def _replace_by_estimates(sent_kwh: NDArray[np.float64], random: Random) -> DeliveredRows:
    """Replace some afternoons by a flat estimate, in place; return the rows that put them right."""
    households = np.flatnonzero(random.random(len(sent_kwh)) < CORRECTED_HOUSEHOLD_SHARE)
    days = random.integers(0, sent_kwh.shape[1], len(households))
    afternoon = np.arange(24, 36)  # 12:00 to 18:00
    places = (households * sent_kwh.shape[1] + days)[:, None] * HALF_HOURS + afternoon
    correct_rows = _select_rows(sent_kwh, places.ravel())
    mean = np.nanmean(sent_kwh[households], axis=(1, 2)) if len(households) else np.zeros(0)
    estimate = np.repeat(np.round(mean, 3), places.shape[1])
    # A correction that agrees with the estimate would supersede nothing.
    is_wrong = ~np.isnan(correct_rows.kwh) & (correct_rows.kwh != estimate)
    sent_kwh.reshape(-1)[places.ravel()[is_wrong]] = estimate[is_wrong]
    return correct_rows[is_wrong]


def _insert_invalid_readings(
    sent_kwh: NDArray[np.float64], excluded_households: Ints, random: Random
) -> dict[str, int]:
    """Put sentinels and negatives in place of a few readings; return how many of each."""
    count = random.poisson(INVALID_READING_SHARE * sent_kwh.size, 2)
    places = random.choice(sent_kwh.size, count.sum(), replace=False)
    # Neither at 00:00, where readings are repeated, nor in households that are corrected: a row
    # would break two rules, and the counts would not say which one.
    places = np.sort(places[places % HALF_HOURS != 0])
    is_excluded = np.isin(places // sent_kwh[0].size, excluded_households)
    places = places[~is_excluded & ~np.isnan(sent_kwh.ravel()[places])]
    is_negative = random.random(len(places)) < 0.5
    negative_kwh = -0.001 - random.random(len(places))
    sent_kwh.reshape(-1)[places] = np.where(is_negative, negative_kwh, SENTINEL_KWH)
    return {"negative": int(is_negative.sum()), "sentinel": int((~is_negative).sum())}


def _draw_delivery_order(shape: tuple[int, ...], random: Random) -> Ints:
    """Return the flat places of a block's readings in the order of delivery.

    Households come in any order, one in twenty backwards in time.
    """
    n_households = shape[0]
    n_half_hours = shape[1] * shape[2]
    forwards = np.broadcast_to(np.arange(n_half_hours), (n_households, n_half_hours))
    is_backwards = random.random((n_households, 1)) < 0.05
    half_hour = np.where(is_backwards, forwards[:, ::-1], forwards)
    household = random.permutation(n_households)[:, None]
    return (household * n_half_hours + half_hour).ravel()


def _draw_duplicates(sent_kwh: NDArray[np.float64], random: Random) -> DeliveredRows:
    """Return readings of 00:00 that arrive twice, about once a month and household."""
    phase = random.integers(0, DAYS_BETWEEN_DUPLICATES, len(sent_kwh))
    day = np.arange(sent_kwh.shape[1])
    is_repeated = np.zeros(sent_kwh.shape, dtype=bool)
    is_repeated[:, :, 0] = (day + phase[:, None]) % DAYS_BETWEEN_DUPLICATES == 0
    return _select_rows(sent_kwh, np.flatnonzero(is_repeated & ~np.isnan(sent_kwh)))


def _draw_null_rows(
    sent_kwh: NDArray[np.float64], config: FleetConfig, random: Random
) -> DeliveredRows:
    """Return a `Null` between two half-hours, for many households of the fleet on one day."""
    day = int(config.create_generator(3).integers(0, config.days))
    has_readings = ~np.isnan(sent_kwh[:, day]).all(axis=1)
    is_drawn = random.random(len(sent_kwh)) < NULL_HOUSEHOLD_SHARE
    household = np.flatnonzero(has_readings & is_drawn)
    half_hour = day * HALF_HOURS + random.integers(24, 36, len(household))
    off_grid_s = random.integers(1, 1800, len(household))
    return DeliveredRows(household, half_hour, off_grid_s, np.full(len(household), np.nan))
