"""How simulated homes behave: half-hourly readings, drawn from habits and surroundings."""

from typing import Final

import numpy as np
from scipy.signal import lfilter

from ml.limits import SUPPLY_LIMIT_KWH
from ml.schemas import HALF_HOURS
from ml.simulation.behaviour import HouseholdBehaviour
from ml.simulation.environment import WAKING_DAY_HOURS, Bools, FleetEnvironment, Floats

# What a half-hour's worth of each appliance does in the half-hours after it was switched on.
COOKING_LOAD_SHAPE: Final = (1.0, 0.4, 0.05)
WASHING_LOAD_SHAPE: Final = (1.0, 0.8, 0.6, 0.2)
SHORT_LOAD_SHAPE: Final = (1.0, 0.15)
# Answer of homes on the time-of-use tariff to the prices Low, Normal, High.
PRICE_RESPONSE: Final = np.array([1.09, 1.0, 0.92], dtype=np.float32)


def simulate_readings(
    behaviour: HouseholdBehaviour, environment: FleetEnvironment, random: np.random.Generator
) -> Floats:
    """Draw the readings of n homes, [n, D, 48], exact to 0.001 kWh as the meters are."""
    n, days = len(behaviour.baseload_kwh), environment.n_days
    present = _simulate_presence(behaviour, environment, random)
    level = _draw_daily_level(behaviour, environment, random)
    lived = _simulate_occupied_load(behaviour, environment, random) * present
    lived += _simulate_appliances(behaviour, present, environment, random)
    lived *= (
        np.exp(behaviour.winter_log_change[:, None] * environment.winter_phase)[:, :, None]
        * level[:, :, None]
    )
    present, lived = (_map_to_utc(cube, environment) for cube in (present, lived))
    lived *= np.where(
        behaviour.is_tou[:, None], PRICE_RESPONSE[environment.price_index], np.float32(1)
    )
    total = lived + _simulate_baseload(behaviour, environment, random)
    _add_heating(total, behaviour, present, environment, random)
    _add_night_timers(total, behaviour, environment, random)
    total *= np.float32(1000)
    total += random.random(total.shape, dtype=np.float32) - np.float32(0.5)
    total = np.clip(np.rint(total), 0, SUPPLY_LIMIT_KWH * 1000) / np.float32(1000)
    return total.reshape(n, days, HALF_HOURS)


def _map_to_utc(waking_days: Floats, environment: FleetEnvironment) -> Floats:
    """The UTC half-hours of a cube of waking days, [n, D * 48]."""
    return np.take(waking_days.reshape(len(waking_days), -1), environment.waking_day_index, axis=1)


def _draw_schedule_scatter(
    behaviour: HouseholdBehaviour, n_days: int, random: np.random.Generator
) -> Floats:
    noise = random.standard_normal((len(behaviour.wake_hour), n_days), dtype=np.float32)
    return noise * behaviour.schedule_scatter_hours[:, None]


def _share_after_hour(hours: Floats) -> Floats:
    """Share of each half-hour of the waking day after the hour given, [n, D, 48]."""
    return np.clip(2 * (WAKING_DAY_HOURS + np.float32(0.5) - hours[:, :, None]), 0, 1)


def _simulate_presence(
    behaviour: HouseholdBehaviour, environment: FleetEnvironment, random: np.random.Generator
) -> Floats:
    """Share of each half-hour in which somebody is up and in, [n, D + 2, 48]."""
    days, free = len(environment.is_free_day), environment.is_free_day
    later = behaviour.lie_in_hours[:, None] * free
    wake = behaviour.wake_hour[:, None] + later + _draw_schedule_scatter(behaviour, days, random)
    sleep = (
        behaviour.sleep_hour[:, None]
        + 0.5 * later
        + _draw_schedule_scatter(behaviour, days, random)
    )
    leaves = (
        behaviour.leave_hour[:, None] + 2.5 * free + _draw_schedule_scatter(behaviour, days, random)
    )
    returns = behaviour.return_hour[:, None] + _draw_schedule_scatter(
        behaviour, days, random
    ) * np.float32(1.5)
    out = random.random(wake.shape) < np.where(free, 0.4, behaviour.going_out_share[:, None])
    away = _share_after_hour(leaves)
    away -= _share_after_hour(np.maximum(returns, leaves))
    away *= np.where(out, np.float32(0.7), np.float32(0))[:, :, None]
    present = _share_after_hour(wake)
    present -= _share_after_hour(np.maximum(sleep, wake))
    present -= present * away
    present *= ~_draw_absences(behaviour, days, random)[:, :, None]
    return present


def _draw_absences(
    behaviour: HouseholdBehaviour, n_days: int, random: np.random.Generator
) -> Bools:
    """Days with nobody home: trips of a night or two, holidays, now and then months."""
    n = len(behaviour.trips_per_year)
    count = random.poisson(behaviour.trips_per_year * n_days / 365)
    home = np.repeat(np.arange(n), count)
    first = random.integers(-10, n_days, len(home))
    length = 1 + random.lognormal(0.7, 1.1, len(home)).astype(np.int64)
    change = np.zeros((n, n_days + 1), dtype=np.int64)
    np.add.at(change, (home, np.clip(first, 0, n_days)), 1)
    np.add.at(change, (home, np.clip(first + length, 0, n_days)), -1)
    return np.asarray(np.cumsum(change[:, :-1], axis=1) > 0)


def _draw_daily_level(
    behaviour: HouseholdBehaviour, environment: FleetEnvironment, random: np.random.Generator
) -> Floats:
    """How much a home does on each day, about 1: slow drift, sudden changes, the day itself."""
    shape = (len(behaviour.daily_level_scatter), len(environment.is_free_day))
    noise = random.standard_normal(shape)
    noise[:, 0] /= 0.22  # the drift's own spread, so that it is stationary from the first day
    drift = lfilter([0.22], [1, -0.975], noise)
    moved = random.random(shape) < 1.2 / 365
    drift = 0.22 * drift + np.cumsum(np.where(moved, random.normal(0, 0.3, shape), 0), axis=1)
    daily = behaviour.daily_level_scatter[:, None] * random.standard_normal(shape)
    free = np.where(environment.is_free_day, 0.04, 0.0)
    return np.exp(drift + daily + free).astype(np.float32)


def _simulate_occupied_load(
    behaviour: HouseholdBehaviour, environment: FleetEnvironment, random: np.random.Generator
) -> Floats:
    """What lights, screens and standing heat take while somebody is in, [n, D + 2, 48]."""
    n, days = len(behaviour.occupied_load_kwh), len(environment.is_free_day)
    noise = random.standard_normal((n, days * HALF_HOURS), dtype=np.float32)
    smooth = lfilter([np.float32(0.19)], np.array([1, -0.9], dtype=np.float32), noise)
    smooth += np.float32(0.2) * random.standard_normal(smooth.shape, dtype=np.float32)
    cube = np.exp(smooth, dtype=np.float32).reshape(n, days, HALF_HOURS)
    lit = 0.6 + behaviour.lighting_factor[:, None, None] * environment.darkness
    cube *= lit
    cube *= behaviour.occupied_load_kwh[:, None, None]
    return np.asarray(cube)


def _simulate_appliances(
    behaviour: HouseholdBehaviour,
    present: Floats,
    environment: FleetEnvironment,
    random: np.random.Generator,
) -> Floats:
    """Appliances that are switched on at the home's usual times, [n, D + 2, 48]."""
    load = np.zeros_like(present)
    more = np.where(environment.is_free_day, np.float32(1.5), np.float32(0.85))[:, None]
    size = behaviour.appliance_kwh
    _add_appliance(load, behaviour.meal_rate[:, None] * present, size, COOKING_LOAD_SHAPE, random)
    _add_appliance(
        load, behaviour.wash_rate[:, None] * present * more, 1.5 * size, WASHING_LOAD_SHAPE, random
    )
    _add_appliance(
        load, behaviour.shower_rate[:, None] * present, 1.0 * size, SHORT_LOAD_SHAPE, random
    )
    _add_appliance(
        load, behaviour.gadget_rate[:, None, None] * present, 0.25 * size, SHORT_LOAD_SHAPE, random
    )
    return load


def _add_appliance(
    load_kwh: Floats,
    start_probability: Floats,
    mean_kwh: Floats,
    load_shape: tuple[float, ...],
    random: np.random.Generator,
) -> None:
    """Add to `load` an appliance that starts with the given chance in each half-hour."""
    draw = random.random(start_probability.shape, dtype=np.float32)
    started = np.flatnonzero(draw.ravel() < start_probability.ravel())
    home = started // start_probability[0].size
    energy = mean_kwh[home] * random.gamma(4.0, 0.25, len(started)).astype(np.float32)
    flat = load_kwh.reshape(-1)
    for later, share in enumerate(load_shape):
        place = np.minimum(started + later, flat.size - 1)
        flat[place] += np.float32(share) * energy


def _simulate_baseload(
    behaviour: HouseholdBehaviour, environment: FleetEnvironment, random: np.random.Generator
) -> Floats:
    """Standing load and fridge, on a clock of their own, [n, D * 48]."""
    n, days = len(behaviour.baseload_kwh), environment.n_days
    slot = np.arange(HALF_HOURS, dtype=np.float32)
    speed = 1 / behaviour.fridge_period_half_hours[:, None]
    drift = random.normal(0, 0.12, (n, days)) + HALF_HOURS * speed
    phase = (np.cumsum(drift, axis=1) % 1).astype(np.float32)
    turn = phase[:, :, None] + speed[:, :, None] * slot
    cube = np.cos(np.float32(2 * np.pi) * turn)
    cube *= behaviour.fridge_share[:, None, None]
    wander = lfilter([0.3], [1, -0.95], random.standard_normal((n, days)))
    cube += (1 + 0.05 * wander).astype(np.float32)[:, :, None]
    cube += np.float32(0.045) * random.standard_normal(cube.shape, dtype=np.float32)
    cube *= behaviour.baseload_kwh[:, None, None]
    return np.maximum(cube, 0).reshape(n, -1)


def _add_heating(
    total_kwh: Floats,
    behaviour: HouseholdBehaviour,
    present: Floats,
    environment: FleetEnvironment,
    random: np.random.Generator,
) -> None:
    """Add direct electric heating, by cold and presence, in thermostat bursts."""
    homes = np.flatnonzero(behaviour.heating_kwh_per_degree)
    cold = np.maximum(15.5 - environment.temperature_c, 0)
    burst = random.gamma(3.0, 0.333, (len(homes), total_kwh.shape[1])).astype(np.float32)
    share = np.float32(0.15) + np.float32(0.85) * present[homes]
    total_kwh[homes] += behaviour.heating_kwh_per_degree[homes, None] * cold * share * burst


def _add_night_timers(
    total_kwh: Floats,
    behaviour: HouseholdBehaviour,
    environment: FleetEnvironment,
    random: np.random.Generator,
) -> None:
    """Add storage heaters and night water, on timers that know no summer time."""
    homes = np.flatnonzero(behaviour.storage_heater_kwh + behaviour.water_heater_kwh)
    cold = np.maximum(15.5 - environment.temperature_c.reshape(-1, HALF_HOURS).mean(axis=1), 0)
    since = np.arange(HALF_HOURS) - behaviour.timer_half_hour[homes, None, None]
    charge = np.clip(cold * 1.3, 0, 14)[:, None] - since
    storage = (
        behaviour.storage_heater_kwh[homes, None, None]
        * np.clip(charge, 0, 1)
        * np.exp(-0.05 * since)
    )
    draw = random.gamma(4.0, 0.75, (len(homes), environment.n_days, 1))
    water = behaviour.water_heater_kwh[homes, None, None] * np.clip(draw - since, 0, 1)
    timed = np.where(since >= 0, storage + water, 0).astype(np.float32)
    timed *= 1 + np.float32(0.03) * random.standard_normal(timed.shape, dtype=np.float32)
    total_kwh[homes] += timed.reshape(len(homes), total_kwh.shape[1])
