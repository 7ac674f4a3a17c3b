"""What sets simulated homes apart: habits, drawn once a home.

The shares, rates and spreads here and in `homes` were fitted by hand to the statistics of 225 real
London households (tests/benchmarks/fleet_comparison.py shows both). Loads are kWh a half-hour.
"""

from dataclasses import dataclass

import numpy as np

from ml.simulate.surroundings import WAKING_HOURS, Bools, Floats


@dataclass(frozen=True)
class Habits:
    """What sets n homes apart; all [n] but for three daily shapes [n, 48]."""

    baseload: Floats
    fridge: Floats  # share of the baseload that comes and goes
    fridge_period: Floats  # half-hours
    plateau: Floats  # while somebody is up and in
    lighting: Floats
    winter: Floats  # log change of use from spring to mid-winter
    wake: Floats  # local hour
    sleep: Floats
    lie_in: Floats  # hours later on free days
    regularity: Floats  # hours of scatter of their times
    goes_out: Floats  # share of working days
    leaves: Floats
    returns: Floats
    meals: Floats  # chance in each half-hour of the waking day
    washes: Floats
    showers: Floats
    gadgets: Floats  # chance in any half-hour
    appliance_kwh: Floats
    trips: Floats  # absences a year
    restless: Floats  # scatter of the level from day to day
    heating: Floats  # direct electric heating, kWh a half-hour and degree
    storage: Floats  # storage heaters, kWh a half-hour while they charge
    water: Floats  # water heated at night, kWh a half-hour
    timer: Floats  # UTC half-hour at which the night timer switches on
    is_tou: Bools


@dataclass(frozen=True)
class Draw:
    """Draws for n homes at once."""

    n: int
    random: np.random.Generator

    def normal(self, mean: float, spread: float) -> Floats:
        """A bell over the homes."""
        return np.asarray(mean + spread * self.random.standard_normal(self.n, dtype=np.float32))

    def uniform(self, low: float, high: float) -> Floats:
        """Anything between `low` and `high`."""
        return self.random.uniform(low, high, self.n).astype(np.float32)

    def some(self, share: float, low: float, high: float, others: float = 0) -> Floats:
        """Anything between `low` and `high` for a share of the homes."""
        has = self.random.random(self.n) < share
        return np.where(has, self.uniform(low, high), np.float32(others))


def habits(is_tou: Bools, wealth: Floats, random: np.random.Generator) -> Habits:
    """Draw the habits of n homes; `wealth` shifts the log level by Acorn group."""
    n = len(is_tou)
    draw = Draw(n, random)
    size = draw.normal(0, 1) + wealth
    used = draw.some(0.02, 0.02, 0.3, others=1) * draw.some(0.005, 0.003, 0.003, others=1)
    standing = draw.some(0.08, -0.1, 0.25, others=1)
    wake, goes_out = draw.normal(7.2, 1.0), draw.some(0.45, 0.5, 1, others=0.3)
    sleep = np.clip(draw.normal(24.8, 1.5), wake + 12, 28)
    busy = np.exp(draw.normal(-0.05, 0.45) + 0.25 * size)
    return Habits(
        baseload=used * standing * np.exp(draw.normal(-2.79, 0.48) + 0.42 * size),
        fridge=np.clip(draw.normal(0.32, 0.2), 0, 0.9),
        fridge_period=draw.uniform(1.4, 4.5),
        plateau=used * np.exp(draw.normal(-2.59, 0.42) + 0.47 * size),
        lighting=np.exp(draw.normal(-0.3, 0.6)),
        winter=draw.normal(0.14, 0.1),
        wake=wake,
        sleep=sleep,
        lie_in=np.clip(draw.normal(1.1, 0.7), -0.5, 3),
        regularity=np.exp(draw.normal(-0.25, 0.5)),
        goes_out=goes_out,
        leaves=np.maximum(wake + 0.7, draw.normal(8.6, 0.8)),
        returns=draw.normal(17.6, 1.1),
        meals=busy[:, None] * _meals(wake, random),
        washes=busy[:, None] * _washes(random, n),
        showers=_bump(wake + 0.7, 0.6) * draw.some(0.45, 0.3, 1.2)[:, None],
        gadgets=busy * draw.uniform(0.08, 0.35),
        appliance_kwh=used * np.exp(draw.normal(-1.37, 0.38) + 0.2 * size),
        trips=random.gamma(0.8, 4.5, n).astype(np.float32),
        restless=np.exp(draw.normal(-2.6, 0.5)),
        heating=np.exp(draw.normal(-3.4, 0.6)) * draw.some(0.12, 1, 1),
        storage=draw.some(0.03, 0.8, 3.5),
        water=draw.some(0.045, 0.4, 1.4),
        timer=random.integers(0, 9, n).astype(np.float32),
        is_tou=is_tou,
    )


def _bump(hour: Floats, width: float) -> Floats:
    """A bell of unit sum over the waking day around each home's hour, [n, 48]."""
    bell = np.exp(-0.5 * ((WAKING_HOURS - hour[:, None]) / width) ** 2)
    return np.asarray(bell / bell.sum(axis=1, keepdims=True), dtype=np.float32)


def _meals(wake: Floats, random: np.random.Generator) -> Floats:
    n = len(wake)
    breakfast = _bump(wake + random.normal(0.9, 0.4, n).astype(np.float32), width=0.7)
    lunch = _bump(random.normal(13.0, 1.0, n).astype(np.float32), width=1.3)
    dinner = _bump(random.normal(19.0, 1.2, n).astype(np.float32), width=1.4)
    rates = random.gamma(2.0, [0.42, 0.7, 0.8], (n, 3)).astype(np.float32)
    return np.asarray(
        rates[:, :1] * breakfast + rates[:, 1:2] * lunch + rates[:, 2:] * dinner, dtype=np.float32
    )


def _washes(random: np.random.Generator, n: int) -> Floats:
    rate = random.gamma(1.5, 0.35, n).astype(np.float32)
    daytime = _bump(random.normal(13.0, 3.5, n).astype(np.float32), width=3.0)
    return np.asarray(rate[:, None] * daytime, dtype=np.float32)
