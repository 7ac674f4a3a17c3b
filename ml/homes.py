"""How simulated homes behave: habits drawn once a home, readings drawn from them.

The shares, rates and spreads below were fitted by hand to the statistics of 225 real London
households (tests/benchmarks/fleet_comparison.py shows both). All readings are kWh a half-hour.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.signal import lfilter

from ml.schemas import HALF_HOURS
from ml.surroundings import SUPPLY_KWH, WAKING_HOURS, Bools, Floats, World

# What a half-hour's worth of each appliance does in the half-hours after it was switched on.
COOKING: Final = (1.0, 0.4, 0.05)
WASHING: Final = (1.0, 0.8, 0.6, 0.2)
SHORT: Final = (1.0, 0.15)
# Answer of homes on the time-of-use tariff to the prices Low, Normal, High.
ANSWER: Final = np.array([1.09, 1.0, 0.92], dtype=np.float32)


@dataclass(frozen=True)
class Habits:
    """What sets n homes apart; all [n] but for the three daily shapes [n, 48]."""

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
    meals: Floats  # half-hourly chances of each group of appliances
    washes: Floats
    showers: Floats
    gadgets: Floats
    appliance_kwh: Floats
    trips: Floats  # absences a year
    restless: Floats  # scatter of the level from day to day
    heating: Floats  # direct electric heating, kWh a half-hour and degree
    storage: Floats  # storage heaters, kWh a half-hour while they charge
    water: Floats  # water heated at night, kWh a half-hour
    timer: Floats  # UTC half-hour at which the night timer switches on
    is_tou: Bools


def habits(is_tou: Bools, wealth: Floats, random: np.random.Generator) -> Habits:
    """Draw the habits of n homes; `wealth` shifts the log level by Acorn group."""
    n = len(is_tou)

    def normal(mean: float, spread: float) -> Floats:
        return np.asarray(mean + spread * random.standard_normal(n, dtype=np.float32))

    def some(share: float, low: float, high: float) -> Floats:
        has = random.random(n) < share
        return np.where(has, random.uniform(low, high, n), 0).astype(np.float32)

    size = normal(0, 1) + wealth
    barely_used = np.where(random.random(n) < 0.025, random.uniform(0.02, 0.3, n), 1)
    used = barely_used.astype(np.float32)
    standing = np.where(random.random(n) < 0.09, random.uniform(-0.1, 0.25, n), 1)
    wake, worker = normal(7.2, 1.0), random.random(n)
    sleep = np.clip(normal(24.8, 1.5), wake + 12, 28)
    busy = np.exp(normal(0, 0.45) + 0.25 * size)
    return Habits(
        baseload=used * standing * np.exp(normal(-2.74, 0.48) + 0.42 * size),
        fridge=np.clip(normal(0.32, 0.2), 0, 0.9),
        fridge_period=random.uniform(1.4, 4.5, n).astype(np.float32),
        plateau=used * np.exp(normal(-2.49, 0.4) + 0.47 * size),
        lighting=np.exp(normal(-0.3, 0.6)),
        winter=normal(0.14, 0.1),
        wake=wake,
        sleep=sleep,
        lie_in=np.clip(normal(1.1, 0.7), -0.5, 3),
        regularity=np.exp(normal(-0.25, 0.5)),
        goes_out=np.where(worker < 0.5, random.uniform(0.5, 1, n), 0.3).astype(np.float32),
        leaves=np.maximum(wake + 0.7, normal(8.6, 0.8)),
        returns=normal(17.6, 1.1),
        meals=busy[:, None] * _meals(wake, random),
        washes=busy[:, None] * _washes(random, n),
        showers=_bump(wake + 0.7, 0.6) * some(0.45, 0.3, 1.2)[:, None],
        gadgets=(busy * random.uniform(0.08, 0.35, n).astype(np.float32))[:, None]
        * np.ones(HALF_HOURS, dtype=np.float32),
        appliance_kwh=used * np.exp(normal(-1.5, 0.4) + 0.2 * size),
        trips=random.gamma(0.8, 4.5, n).astype(np.float32),
        restless=np.exp(normal(-2.3, 0.5)),
        heating=np.exp(normal(-3.4, 0.6)) * (random.random(n) < 0.12).astype(np.float32),
        storage=some(0.03, 0.8, 3.5),
        water=some(0.06, 0.4, 1.4),
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
    rates = random.gamma(2.0, [0.5, 0.7, 0.8], (n, 3)).astype(np.float32)
    return np.asarray(
        rates[:, :1] * breakfast + rates[:, 1:2] * lunch + rates[:, 2:] * dinner, dtype=np.float32
    )


def _washes(random: np.random.Generator, n: int) -> Floats:
    rate = random.gamma(1.5, 0.35, n).astype(np.float32)
    daytime = _bump(random.normal(13.0, 3.5, n).astype(np.float32), width=3.0)
    return np.asarray(rate[:, None] * daytime, dtype=np.float32)


def readings(habits: Habits, world: World, random: np.random.Generator) -> Floats:
    """Draw the readings of n homes, [n, D, 48], exact to 0.001 kWh as the meters are."""
    n, days = len(habits.baseload), world.days
    present = _presence(habits, world, random)
    level = _level(habits, world, random)
    lived = _plateau(habits, world, random) * present
    lived += _appliances(habits, present, world, random)
    lived *= np.exp(habits.winter[:, None] * world.winter)[:, :, None] * level[:, :, None]
    present, lived = (_utc(cube, world) for cube in (present, lived))
    lived *= np.where(habits.is_tou[:, None], ANSWER[world.price], np.float32(1))
    total = lived + _baseload(habits, world, random)
    _add_heating(total, habits, present, world, random)
    _add_night_timers(total, habits, world, random)
    total *= np.float32(1000)
    total += random.random(total.shape, dtype=np.float32) - np.float32(0.5)
    total = np.clip(np.rint(total), 0, SUPPLY_KWH * 1000) / np.float32(1000)
    return total.reshape(n, days, HALF_HOURS)


def _utc(cube: Floats, world: World) -> Floats:
    """The UTC half-hours of a cube of waking days, [n, D * 48]."""
    return np.take(cube.reshape(len(cube), -1), world.local, axis=1)


def _scatter(habits: Habits, days: int, random: np.random.Generator) -> Floats:
    noise = random.standard_normal((len(habits.wake), days), dtype=np.float32)
    return noise * habits.regularity[:, None]


def _ramp(hours: Floats) -> Floats:
    """Share of each half-hour of the waking day after the hour given, [n, D, 48]."""
    return np.clip(2 * (WAKING_HOURS + np.float32(0.5) - hours[:, :, None]), 0, 1)


def _presence(habits: Habits, world: World, random: np.random.Generator) -> Floats:
    """Share of each half-hour in which somebody is up and in, [n, D + 2, 48]."""
    days, free = len(world.is_weekend), world.is_weekend
    later = habits.lie_in[:, None] * free
    wake = habits.wake[:, None] + later + _scatter(habits, days, random)
    sleep = habits.sleep[:, None] + 0.5 * later + _scatter(habits, days, random)
    leaves = habits.leaves[:, None] + 2.5 * free + _scatter(habits, days, random)
    returns = habits.returns[:, None] + _scatter(habits, days, random) * np.float32(1.5)
    out = random.random(wake.shape) < np.where(free, 0.4, habits.goes_out[:, None])
    away = _ramp(leaves)
    away -= _ramp(np.maximum(returns, leaves))
    away *= np.where(out, np.float32(0.7), np.float32(0))[:, :, None]
    present = _ramp(wake)
    present -= _ramp(np.maximum(sleep, wake))
    present -= present * away
    present *= ~_absent(habits, days, random)[:, :, None]
    return present


def _absent(habits: Habits, days: int, random: np.random.Generator) -> Bools:
    """Days with nobody home: trips of a night or two, holidays, now and then months."""
    n = len(habits.trips)
    count = random.poisson(habits.trips * days / 365)
    home = np.repeat(np.arange(n), count)
    first = random.integers(-10, days, len(home))
    length = 1 + random.lognormal(0.7, 1.1, len(home)).astype(np.int64)
    change = np.zeros((n, days + 1), dtype=np.int64)
    np.add.at(change, (home, np.clip(first, 0, days)), 1)
    np.add.at(change, (home, np.clip(first + length, 0, days)), -1)
    return np.asarray(np.cumsum(change[:, :-1], axis=1) > 0)


def _level(habits: Habits, world: World, random: np.random.Generator) -> Floats:
    """How much a home does on each day, about 1: slow drift, sudden changes, the day itself."""
    shape = (len(habits.restless), len(world.is_weekend))
    drift = lfilter([np.float32(0.28)], [1, np.float32(-0.96)], random.standard_normal(shape))
    moved = random.random(shape) < 1.2 / 365
    drift = 0.23 * drift + np.cumsum(np.where(moved, random.normal(0, 0.3, shape), 0), axis=1)
    daily = habits.restless[:, None] * random.standard_normal(shape)
    free = np.where(world.is_weekend, 0.04, 0.0)
    return np.exp(drift + daily + free).astype(np.float32)


def _plateau(habits: Habits, world: World, random: np.random.Generator) -> Floats:
    """What lights, screens and standing heat take while somebody is in, [n, D + 2, 48]."""
    n, days = len(habits.plateau), len(world.is_weekend)
    noise = random.standard_normal((n, days * HALF_HOURS), dtype=np.float32)
    smooth = lfilter([np.float32(0.19)], np.array([1, -0.9], dtype=np.float32), noise)
    smooth += np.float32(0.2) * random.standard_normal(smooth.shape, dtype=np.float32)
    cube = np.exp(smooth, dtype=np.float32).reshape(n, days, HALF_HOURS)
    lit = 0.6 + habits.lighting[:, None, None] * world.darkness
    cube *= lit
    cube *= habits.plateau[:, None, None]
    return np.asarray(cube)


def _appliances(
    habits: Habits, activity: Floats, world: World, random: np.random.Generator
) -> Floats:
    """Appliances that are switched on at the home's usual times, [n, D + 2, 48]."""
    load = np.zeros_like(activity)
    more = np.where(world.is_weekend, np.float32(1.5), np.float32(0.85))[:, None]
    size = habits.appliance_kwh
    _switch_on(load, habits.meals[:, None] * activity, size, COOKING, random)
    _switch_on(load, habits.washes[:, None] * activity * more, 1.5 * size, WASHING, random)
    _switch_on(load, habits.showers[:, None] * activity, 1.0 * size, SHORT, random)
    _switch_on(load, habits.gadgets[:, None] * activity, 0.25 * size, SHORT, random)
    return load


def _switch_on(
    load: Floats,
    chance: Floats,
    kwh: Floats,
    course: tuple[float, ...],
    random: np.random.Generator,
) -> None:
    """Add to `load` an appliance that starts with the given chance in each half-hour."""
    draw = random.random(chance.shape, dtype=np.float32)
    started = np.flatnonzero(draw.ravel() < chance.ravel())
    home = started // chance[0].size
    energy = kwh[home] * random.gamma(3.0, 0.333, len(started)).astype(np.float32)
    flat = load.reshape(-1)
    for later, share in enumerate(course):
        place = np.minimum(started + later, flat.size - 1)
        flat[place] += np.float32(share) * energy


def _baseload(habits: Habits, world: World, random: np.random.Generator) -> Floats:
    """Standing load and fridge, on a clock of their own, [n, D * 48]."""
    n, days = len(habits.baseload), world.days
    slot = np.arange(HALF_HOURS, dtype=np.float32)
    speed = 1 / habits.fridge_period[:, None]
    drift = random.normal(0, 0.12, (n, days)) + HALF_HOURS * speed
    phase = (np.cumsum(drift, axis=1) % 1).astype(np.float32)
    turn = phase[:, :, None] + speed[:, :, None] * slot
    cube = np.cos(np.float32(2 * np.pi) * turn)
    cube *= habits.fridge[:, None, None]
    wander = lfilter([0.3], [1, -0.95], random.standard_normal((n, days)))
    cube += (1 + 0.05 * wander).astype(np.float32)[:, :, None]
    cube += np.float32(0.045) * random.standard_normal(cube.shape, dtype=np.float32)
    cube *= habits.baseload[:, None, None]
    return np.maximum(cube, 0).reshape(n, -1)


def _add_heating(
    total: Floats, habits: Habits, present: Floats, world: World, random: np.random.Generator
) -> None:
    """Add direct electric heating, by cold and presence, in thermostat bursts."""
    homes = np.flatnonzero(habits.heating)
    cold = np.maximum(15.5 - world.temperature_c, 0)
    burst = random.gamma(3.0, 0.333, (len(homes), total.shape[1])).astype(np.float32)
    share = np.float32(0.15) + np.float32(0.85) * present[homes]
    total[homes] += habits.heating[homes, None] * cold * share * burst


def _add_night_timers(
    total: Floats, habits: Habits, world: World, random: np.random.Generator
) -> None:
    """Add storage heaters and night water, on timers that know no summer time."""
    homes = np.flatnonzero(habits.storage + habits.water)
    cold = np.maximum(15.5 - world.temperature_c.reshape(-1, HALF_HOURS).mean(axis=1), 0)
    since = np.arange(HALF_HOURS) - habits.timer[homes, None, None]
    charge = np.clip(cold * 1.3, 0, 14)[:, None] - since
    storage = habits.storage[homes, None, None] * np.clip(charge, 0, 1) * np.exp(-0.05 * since)
    draw = random.gamma(4.0, 0.75, (len(homes), world.days, 1))
    water = habits.water[homes, None, None] * np.clip(draw - since, 0, 1)
    timed = np.where(since >= 0, storage + water, 0).astype(np.float32)
    timed *= 1 + np.float32(0.03) * random.standard_normal(timed.shape, dtype=np.float32)
    total[homes] += timed.reshape(len(homes), -1)
