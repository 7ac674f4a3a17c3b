"""The dirt of real deliveries: what is missing, repeated, corrupt or late in a block's readings."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml.schemas import HALF_HOURS
from ml.simulation.environment import Bools, FleetConfig, Floats, Ints

SENTINEL_KWH: Final = 4294967.295
LATE_START_SHARE: Final = 0.02
EARLY_STOPS_PER_YEAR: Final = 0.08
GAPS_PER_YEAR: Final = 0.3
MISSING_HALF_HOURS_PER_YEAR: Final = 1.2
FLEET_OUTAGES_PER_YEAR: Final = 8
OUTAGE_HOUSEHOLD_SHARE: Final = 0.15
NULL_HOUSEHOLD_SHARE: Final = 0.4
DAYS_BETWEEN_DUPLICATES: Final = 30
INVALID_READING_SHARE: Final = 2e-6
FLOAT_NOISE_SHARE: Final = 0.002
CORRECTED_HOUSEHOLD_SHARE: Final = 0.01

Random = np.random.Generator


@dataclass(frozen=True)
class DeliveredRows:
    """Delivered rows of a block: `slot` counts half-hours of the period, NaN kWh is a `Null`."""

    household_index: Ints
    half_hour_index: Ints
    off_grid_s: Ints
    kwh: NDArray[np.float64]

    def __getitem__(self, selection: Bools | Ints) -> "DeliveredRows":
        """The rows chosen, in the order chosen."""
        return DeliveredRows(
            self.household_index[selection],
            self.half_hour_index[selection],
            self.off_grid_s[selection],
            self.kwh[selection],
        )

    def __add__(self, other: "DeliveredRows") -> "DeliveredRows":
        """These rows, then `more`."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return DeliveredRows(*(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True)
class BlockDelivery:
    """What arrives of a block, and what is wrong with it, by the rule it breaks."""

    rows: DeliveredRows
    correction: DeliveredRows  # a later delivery, which is right
    defect_counts: dict[str, int]


def simulate_delivery(
    kwh: Floats, config: FleetConfig, gapless_households: Ints, random: Random
) -> BlockDelivery:
    """Deliver a block [n, D, 48] as meters and their collectors do; `spared` homes without gaps."""
    missing = _draw_missing(kwh.shape, config, gapless_households, random)
    sent = np.where(missing, np.nan, np.rint(kwh * np.float32(1000)).astype(np.float64) / 1000)
    correction = _replace_by_estimates(sent, random)
    noisy = (random.random(sent.shape, dtype=np.float32) < FLOAT_NOISE_SHARE) & (sent > 0)
    sent[noisy] -= 1e-7
    dirt = _insert_invalid_readings(sent, np.unique(correction.household_index), random)
    order = _draw_delivery_order(sent.shape, random)
    rows = _select_rows(sent, order[~np.isnan(sent.ravel()[order])])
    twice, nulls = _draw_duplicates(sent, random), _draw_null_rows(sent, config, random)
    dirt |= {"duplicate": len(twice.household_index), "null": len(nulls.household_index)}
    return BlockDelivery(
        rows + twice + nulls, correction, dirt | {"superseded": len(correction.household_index)}
    )


def _select_rows(sent_kwh: NDArray[np.float64], flat_indices: Ints) -> DeliveredRows:
    home, slot = np.divmod(flat_indices, sent_kwh[0].size)
    return DeliveredRows(home, slot, np.zeros_like(home), sent_kwh.ravel()[flat_indices])


def _draw_missing(
    shape: tuple[int, ...], config: FleetConfig, gapless_households: Ints, random: Random
) -> Bools:
    """Half-hours that never arrive, [n, D, 48]; every home keeps some."""
    n, days, years = shape[0], shape[1], shape[1] / 365
    missing = random.random(shape, dtype=np.float32) < MISSING_HALF_HOURS_PER_YEAR / (
        365 * HALF_HOURS
    )
    for slot in _draw_fleet_outages(config):
        missing.reshape(n, -1)[:, slot] |= random.random(n) < OUTAGE_HOUSEHOLD_SHARE
    first, last = np.zeros(n), np.full(n, days)
    late = random.random(n) < LATE_START_SHARE
    first[late] = random.uniform(0, 0.4 * days, late.sum())
    early = random.random(n) < EARLY_STOPS_PER_YEAR * years
    last[early] = days - random.uniform(0, 0.4 * days, early.sum())
    gap = np.where(random.random(n) < GAPS_PER_YEAR * years, random.geometric(0.3, n), 0)
    gap = np.minimum(gap, days // 6)
    start = random.integers(0, days, n)
    first[gapless_households], last[gapless_households], gap[gapless_households] = 0, days, 0
    day = np.arange(days)
    lost = (day < first[:, None].astype(int)) | (day >= last[:, None])
    lost |= (day >= start[:, None]) & (day < (start + gap)[:, None])
    return np.asarray(missing | lost[:, :, None])


def _draw_fleet_outages(config: FleetConfig) -> Ints:
    """Half-hours at which many meters of the whole fleet report nothing."""
    random = config.create_generator(2)
    count = random.poisson(FLEET_OUTAGES_PER_YEAR * config.days / 365)
    return random.integers(0, config.days * HALF_HOURS, count)


def _replace_by_estimates(sent_kwh: NDArray[np.float64], random: Random) -> DeliveredRows:
    """Replace some afternoons by a flat estimate, in place; the rows that put them right."""
    homes = np.flatnonzero(random.random(len(sent_kwh)) < CORRECTED_HOUSEHOLD_SHARE)
    days = random.integers(0, sent_kwh.shape[1], len(homes))
    place = (homes * sent_kwh.shape[1] + days)[:, None] * HALF_HOURS + np.arange(24, 36)
    true = _select_rows(sent_kwh, place.ravel())
    mean = np.nanmean(sent_kwh[homes], axis=(1, 2)) if len(homes) else np.zeros(0)
    estimate = np.repeat(np.round(mean, 3), place.shape[1])
    wrong = ~np.isnan(true.kwh) & (true.kwh != estimate)
    sent_kwh.reshape(-1)[place.ravel()[wrong]] = estimate[wrong]
    return true[wrong]


def _insert_invalid_readings(
    sent_kwh: NDArray[np.float64], excluded_households: Ints, random: Random
) -> dict[str, int]:
    """Put sentinels and negatives in place of a few readings; how many of each."""
    count = random.poisson(INVALID_READING_SHARE * sent_kwh.size, 2)
    place = random.choice(sent_kwh.size, count.sum(), replace=False)
    # Never at 00:00, where readings are repeated, nor at homes that are corrected.
    place = np.sort(place[place % HALF_HOURS != 0])
    place = place[
        ~np.isin(place // sent_kwh[0].size, excluded_households)
        & ~np.isnan(sent_kwh.ravel()[place])
    ]
    negative = random.random(len(place)) < 0.5
    sent_kwh.reshape(-1)[place] = np.where(
        negative, -0.001 - random.random(len(place)), SENTINEL_KWH
    )
    return {"negative": int(negative.sum()), "sentinel": int((~negative).sum())}


def _draw_delivery_order(shape: tuple[int, ...], random: Random) -> Ints:
    """The places of a block's readings in the order of delivery.

    Homes come in any order, one in twenty backwards in time.
    """
    n, slots = shape[0], shape[1] * shape[2]
    slot = np.broadcast_to(np.arange(slots), (n, slots))
    slot = np.where(random.random((n, 1)) < 0.05, slot[:, ::-1], slot)
    return (random.permutation(n)[:, None] * slots + slot).ravel()


def _draw_duplicates(sent_kwh: NDArray[np.float64], random: Random) -> DeliveredRows:
    """Readings of 00:00 that arrive twice, about once a month and home."""
    phase = random.integers(0, DAYS_BETWEEN_DUPLICATES, len(sent_kwh))
    day = np.arange(sent_kwh.shape[1])
    twice = np.zeros(sent_kwh.shape, dtype=bool)
    twice[:, :, 0] = (day + phase[:, None]) % DAYS_BETWEEN_DUPLICATES == 0
    return _select_rows(sent_kwh, np.flatnonzero(twice & ~np.isnan(sent_kwh)))


def _draw_null_rows(
    sent_kwh: NDArray[np.float64], config: FleetConfig, random: Random
) -> DeliveredRows:
    """A `Null` between two half-hours, at many homes of the fleet on one day."""
    day = int(config.create_generator(3).integers(0, config.days))
    present = ~np.isnan(sent_kwh[:, day]).all(axis=1)
    home = np.flatnonzero(present & (random.random(len(sent_kwh)) < NULL_HOUSEHOLD_SHARE))
    slot = day * HALF_HOURS + random.integers(24, 36, len(home))
    seconds = random.integers(1, 1800, len(home))
    return DeliveredRows(home, slot, seconds, np.full(len(home), np.nan))
