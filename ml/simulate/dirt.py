"""The dirt of real deliveries: what is missing, repeated, corrupt or late in a block's readings."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml.schemas import HALF_HOURS
from ml.simulate.surroundings import Bools, FleetConfig, Floats, Ints

SENTINEL_KWH: Final = 4294967.295
STARTS_LATE: Final = 0.02
STOPS_EARLY_A_YEAR: Final = 0.08
GAPS_A_YEAR: Final = 0.3
SINGLES_A_YEAR: Final = 1.2
OUTAGES_A_YEAR: Final = 8
SHARE_OF_OUTAGE: Final = 0.15
SHARE_OF_NULL: Final = 0.4
DAYS_BETWEEN_DUPLICATES: Final = 30
CORRUPT: Final = 2e-6
NOISY: Final = 0.002
CORRECTED_HOMES: Final = 0.01

Random = np.random.Generator


@dataclass(frozen=True)
class Rows:
    """Delivered rows of a block: `slot` counts half-hours of the period, NaN kWh is a `Null`."""

    home: Ints
    slot: Ints
    off_grid_s: Ints
    kwh: NDArray[np.float64]

    def __getitem__(self, which: Bools | Ints) -> "Rows":
        """The rows chosen, in the order chosen."""
        return Rows(self.home[which], self.slot[which], self.off_grid_s[which], self.kwh[which])

    def __add__(self, more: "Rows") -> "Rows":
        """These rows, then `more`."""
        pairs = zip(vars(self).values(), vars(more).values(), strict=True)
        return Rows(*(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True)
class Delivery:
    """What arrives of a block, and what is wrong with it, by the rule it breaks."""

    rows: Rows
    correction: Rows  # a later delivery, which is right
    dirt: dict[str, int]


def deliver(kwh: Floats, config: FleetConfig, spared: Ints, random: Random) -> Delivery:
    """Deliver a block [n, D, 48] as meters and their collectors do; `spared` homes without gaps."""
    missing = _missing(kwh.shape, config, spared, random)
    sent = np.where(missing, np.nan, np.rint(kwh * np.float32(1000)).astype(np.float64) / 1000)
    correction = _correct(sent, random)
    noisy = (random.random(sent.shape, dtype=np.float32) < NOISY) & (sent > 0)
    sent[noisy] -= 1e-7
    dirt = _corrupt(sent, np.unique(correction.home), random)
    order = _order(sent.shape, random)
    rows = _rows(sent, order[~np.isnan(sent.ravel()[order])])
    twice, nulls = _duplicates(sent, random), _nulls(sent, config, random)
    dirt |= {"duplicate": len(twice.home), "null": len(nulls.home)}
    return Delivery(rows + twice + nulls, correction, dirt | {"superseded": len(correction.home)})


def _rows(sent: NDArray[np.float64], place: Ints) -> Rows:
    home, slot = np.divmod(place, sent[0].size)
    return Rows(home, slot, np.zeros_like(home), sent.ravel()[place])


def _missing(shape: tuple[int, ...], config: FleetConfig, spared: Ints, random: Random) -> Bools:
    """Half-hours that never arrive, [n, D, 48]; every home keeps some."""
    n, days, years = shape[0], shape[1], shape[1] / 365
    missing = random.random(shape, dtype=np.float32) < SINGLES_A_YEAR / (365 * HALF_HOURS)
    for slot in _outages(config):
        missing.reshape(n, -1)[:, slot] |= random.random(n) < SHARE_OF_OUTAGE
    first, last = np.zeros(n), np.full(n, days)
    late = random.random(n) < STARTS_LATE
    first[late] = random.uniform(0, 0.4 * days, late.sum())
    early = random.random(n) < STOPS_EARLY_A_YEAR * years
    last[early] = days - random.uniform(0, 0.4 * days, early.sum())
    gap = np.where(random.random(n) < GAPS_A_YEAR * years, random.geometric(0.3, n), 0)
    gap = np.minimum(gap, days // 6)
    start = random.integers(0, days, n)
    first[spared], last[spared], gap[spared] = 0, days, 0
    day = np.arange(days)
    lost = (day < first[:, None].astype(int)) | (day >= last[:, None])
    lost |= (day >= start[:, None]) & (day < (start + gap)[:, None])
    return np.asarray(missing | lost[:, :, None])


def _outages(config: FleetConfig) -> Ints:
    """Half-hours at which many meters of the whole fleet report nothing."""
    random = config.generator(2)
    count = random.poisson(OUTAGES_A_YEAR * config.days / 365)
    return random.integers(0, config.days * HALF_HOURS, count)


def _correct(sent: NDArray[np.float64], random: Random) -> Rows:
    """Replace some afternoons by a flat estimate, in place; the rows that put them right."""
    homes = np.flatnonzero(random.random(len(sent)) < CORRECTED_HOMES)
    days = random.integers(0, sent.shape[1], len(homes))
    place = (homes * sent.shape[1] + days)[:, None] * HALF_HOURS + np.arange(24, 36)
    true = _rows(sent, place.ravel())
    mean = np.nanmean(sent[homes], axis=(1, 2)) if len(homes) else np.zeros(0)
    estimate = np.repeat(np.round(mean, 3), place.shape[1])
    wrong = ~np.isnan(true.kwh) & (true.kwh != estimate)
    sent.reshape(-1)[place.ravel()[wrong]] = estimate[wrong]
    return true[wrong]


def _corrupt(sent: NDArray[np.float64], but: Ints, random: Random) -> dict[str, int]:
    """Put sentinels and negatives in place of a few readings; how many of each."""
    count = random.poisson(CORRUPT * sent.size, 2)
    place = random.choice(sent.size, count.sum(), replace=False)
    # Never at 00:00, where readings are repeated, nor at homes that are corrected.
    place = np.sort(place[place % HALF_HOURS != 0])
    place = place[~np.isin(place // sent[0].size, but) & ~np.isnan(sent.ravel()[place])]
    negative = random.random(len(place)) < 0.5
    sent.reshape(-1)[place] = np.where(negative, -0.001 - random.random(len(place)), SENTINEL_KWH)
    return {"negative": int(negative.sum()), "sentinel": int((~negative).sum())}


def _order(shape: tuple[int, ...], random: Random) -> Ints:
    """The places of a block's readings in the order of delivery.

    Homes come in any order, one in twenty backwards in time.
    """
    n, slots = shape[0], shape[1] * shape[2]
    slot = np.broadcast_to(np.arange(slots), (n, slots))
    slot = np.where(random.random((n, 1)) < 0.05, slot[:, ::-1], slot)
    return (random.permutation(n)[:, None] * slots + slot).ravel()


def _duplicates(sent: NDArray[np.float64], random: Random) -> Rows:
    """Readings of 00:00 that arrive twice, about once a month and home."""
    phase = random.integers(0, DAYS_BETWEEN_DUPLICATES, len(sent))
    day = np.arange(sent.shape[1])
    twice = np.zeros(sent.shape, dtype=bool)
    twice[:, :, 0] = (day + phase[:, None]) % DAYS_BETWEEN_DUPLICATES == 0
    return _rows(sent, np.flatnonzero(twice & ~np.isnan(sent)))


def _nulls(sent: NDArray[np.float64], config: FleetConfig, random: Random) -> Rows:
    """A `Null` between two half-hours, at many homes of the fleet on one day."""
    day = int(config.generator(3).integers(0, config.days))
    present = ~np.isnan(sent[:, day]).all(axis=1)
    home = np.flatnonzero(present & (random.random(len(sent)) < SHARE_OF_NULL))
    slot = day * HALF_HOURS + random.integers(24, 36, len(home))
    seconds = random.integers(1, 1800, len(home))
    return Rows(home, slot, seconds, np.full(len(home), np.nan))
