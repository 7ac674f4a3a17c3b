"""How simulated homes behave: half-hourly readings, drawn from habits and surroundings."""

from typing import Final

import numpy as np
from scipy.signal import lfilter

from ml.kinds import SUPPLY_KWH
from ml.schemas import HALF_HOURS
from ml.simulate.habits import HouseholdBehaviour
from ml.simulate.surroundings import WAKING_HOURS, Bools, Floats, World

# What a half-hour's worth of each appliance does in the half-hours after it was switched on.
COOKING: Final = (1.0, 0.4, 0.05)
WASHING: Final = (1.0, 0.8, 0.6, 0.2)
SHORT: Final = (1.0, 0.15)
# Answer of homes on the time-of-use tariff to the prices Low, Normal, High.
ANSWER: Final = np.array([1.09, 1.0, 0.92], dtype=np.float32)


def readings(habits: HouseholdBehaviour, world: World, random: np.random.Generator) -> Floats:
    """Draw the readings of n homes, [n, D, 48], exact to 0.001 kWh as the meters are."""
    n, days = len(habits.baseload_kwh), world.days
    present = _presence(habits, world, random)
    level = _level(habits, world, random)
    lived = _plateau(habits, world, random) * present
    lived += _appliances(habits, present, world, random)
    lived *= (
        np.exp(habits.winter_log_change[:, None] * world.winter)[:, :, None] * level[:, :, None]
    )
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


def _scatter(habits: HouseholdBehaviour, days: int, random: np.random.Generator) -> Floats:
    noise = random.standard_normal((len(habits.wake_hour), days), dtype=np.float32)
    return noise * habits.schedule_scatter_hours[:, None]


def _ramp(hours: Floats) -> Floats:
    """Share of each half-hour of the waking day after the hour given, [n, D, 48]."""
    return np.clip(2 * (WAKING_HOURS + np.float32(0.5) - hours[:, :, None]), 0, 1)


def _presence(habits: HouseholdBehaviour, world: World, random: np.random.Generator) -> Floats:
    """Share of each half-hour in which somebody is up and in, [n, D + 2, 48]."""
    days, free = len(world.is_weekend), world.is_weekend
    later = habits.lie_in_hours[:, None] * free
    wake = habits.wake_hour[:, None] + later + _scatter(habits, days, random)
    sleep = habits.sleep_hour[:, None] + 0.5 * later + _scatter(habits, days, random)
    leaves = habits.leave_hour[:, None] + 2.5 * free + _scatter(habits, days, random)
    returns = habits.return_hour[:, None] + _scatter(habits, days, random) * np.float32(1.5)
    out = random.random(wake.shape) < np.where(free, 0.4, habits.going_out_share[:, None])
    away = _ramp(leaves)
    away -= _ramp(np.maximum(returns, leaves))
    away *= np.where(out, np.float32(0.7), np.float32(0))[:, :, None]
    present = _ramp(wake)
    present -= _ramp(np.maximum(sleep, wake))
    present -= present * away
    present *= ~_absent(habits, days, random)[:, :, None]
    return present


def _absent(habits: HouseholdBehaviour, days: int, random: np.random.Generator) -> Bools:
    """Days with nobody home: trips of a night or two, holidays, now and then months."""
    n = len(habits.trips_per_year)
    count = random.poisson(habits.trips_per_year * days / 365)
    home = np.repeat(np.arange(n), count)
    first = random.integers(-10, days, len(home))
    length = 1 + random.lognormal(0.7, 1.1, len(home)).astype(np.int64)
    change = np.zeros((n, days + 1), dtype=np.int64)
    np.add.at(change, (home, np.clip(first, 0, days)), 1)
    np.add.at(change, (home, np.clip(first + length, 0, days)), -1)
    return np.asarray(np.cumsum(change[:, :-1], axis=1) > 0)


def _level(habits: HouseholdBehaviour, world: World, random: np.random.Generator) -> Floats:
    """How much a home does on each day, about 1: slow drift, sudden changes, the day itself."""
    shape = (len(habits.daily_level_scatter), len(world.is_weekend))
    noise = random.standard_normal(shape)
    noise[:, 0] /= 0.22  # the drift's own spread, so that it is stationary from the first day
    drift = lfilter([0.22], [1, -0.975], noise)
    moved = random.random(shape) < 1.2 / 365
    drift = 0.22 * drift + np.cumsum(np.where(moved, random.normal(0, 0.3, shape), 0), axis=1)
    daily = habits.daily_level_scatter[:, None] * random.standard_normal(shape)
    free = np.where(world.is_weekend, 0.04, 0.0)
    return np.exp(drift + daily + free).astype(np.float32)


def _plateau(habits: HouseholdBehaviour, world: World, random: np.random.Generator) -> Floats:
    """What lights, screens and standing heat take while somebody is in, [n, D + 2, 48]."""
    n, days = len(habits.occupied_load_kwh), len(world.is_weekend)
    noise = random.standard_normal((n, days * HALF_HOURS), dtype=np.float32)
    smooth = lfilter([np.float32(0.19)], np.array([1, -0.9], dtype=np.float32), noise)
    smooth += np.float32(0.2) * random.standard_normal(smooth.shape, dtype=np.float32)
    cube = np.exp(smooth, dtype=np.float32).reshape(n, days, HALF_HOURS)
    lit = 0.6 + habits.lighting_factor[:, None, None] * world.darkness
    cube *= lit
    cube *= habits.occupied_load_kwh[:, None, None]
    return np.asarray(cube)


def _appliances(
    habits: HouseholdBehaviour, activity: Floats, world: World, random: np.random.Generator
) -> Floats:
    """Appliances that are switched on at the home's usual times, [n, D + 2, 48]."""
    load = np.zeros_like(activity)
    more = np.where(world.is_weekend, np.float32(1.5), np.float32(0.85))[:, None]
    size = habits.appliance_kwh
    _switch_on(load, habits.meal_rate[:, None] * activity, size, COOKING, random)
    _switch_on(load, habits.wash_rate[:, None] * activity * more, 1.5 * size, WASHING, random)
    _switch_on(load, habits.shower_rate[:, None] * activity, 1.0 * size, SHORT, random)
    _switch_on(load, habits.gadget_rate[:, None, None] * activity, 0.25 * size, SHORT, random)
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
    energy = kwh[home] * random.gamma(4.0, 0.25, len(started)).astype(np.float32)
    flat = load.reshape(-1)
    for later, share in enumerate(course):
        place = np.minimum(started + later, flat.size - 1)
        flat[place] += np.float32(share) * energy


def _baseload(habits: HouseholdBehaviour, world: World, random: np.random.Generator) -> Floats:
    """Standing load and fridge, on a clock of their own, [n, D * 48]."""
    n, days = len(habits.baseload_kwh), world.days
    slot = np.arange(HALF_HOURS, dtype=np.float32)
    speed = 1 / habits.fridge_period_half_hours[:, None]
    drift = random.normal(0, 0.12, (n, days)) + HALF_HOURS * speed
    phase = (np.cumsum(drift, axis=1) % 1).astype(np.float32)
    turn = phase[:, :, None] + speed[:, :, None] * slot
    cube = np.cos(np.float32(2 * np.pi) * turn)
    cube *= habits.fridge_share[:, None, None]
    wander = lfilter([0.3], [1, -0.95], random.standard_normal((n, days)))
    cube += (1 + 0.05 * wander).astype(np.float32)[:, :, None]
    cube += np.float32(0.045) * random.standard_normal(cube.shape, dtype=np.float32)
    cube *= habits.baseload_kwh[:, None, None]
    return np.maximum(cube, 0).reshape(n, -1)


def _add_heating(
    total: Floats,
    habits: HouseholdBehaviour,
    present: Floats,
    world: World,
    random: np.random.Generator,
) -> None:
    """Add direct electric heating, by cold and presence, in thermostat bursts."""
    homes = np.flatnonzero(habits.heating_kwh_per_degree)
    cold = np.maximum(15.5 - world.temperature_c, 0)
    burst = random.gamma(3.0, 0.333, (len(homes), total.shape[1])).astype(np.float32)
    share = np.float32(0.15) + np.float32(0.85) * present[homes]
    total[homes] += habits.heating_kwh_per_degree[homes, None] * cold * share * burst


def _add_night_timers(
    total: Floats, habits: HouseholdBehaviour, world: World, random: np.random.Generator
) -> None:
    """Add storage heaters and night water, on timers that know no summer time."""
    homes = np.flatnonzero(habits.storage_heater_kwh + habits.water_heater_kwh)
    cold = np.maximum(15.5 - world.temperature_c.reshape(-1, HALF_HOURS).mean(axis=1), 0)
    since = np.arange(HALF_HOURS) - habits.timer_half_hour[homes, None, None]
    charge = np.clip(cold * 1.3, 0, 14)[:, None] - since
    storage = (
        habits.storage_heater_kwh[homes, None, None] * np.clip(charge, 0, 1) * np.exp(-0.05 * since)
    )
    draw = random.gamma(4.0, 0.75, (len(homes), world.days, 1))
    water = habits.water_heater_kwh[homes, None, None] * np.clip(draw - since, 0, 1)
    timed = np.where(since >= 0, storage + water, 0).astype(np.float32)
    timed *= 1 + np.float32(0.03) * random.standard_normal(timed.shape, dtype=np.float32)
    total[homes] += timed.reshape(len(homes), total.shape[1])
