"""Half-hourly readings of simulated households, drawn from their behaviour and environment.

Rates and spreads were fitted by hand to 225 real London households, as those of `behaviour`. What
people do is laid out on waking days `[n, D + 2, 48]` in local time and mapped to UTC `[n, D * 48]`;
baseload and timers run by UTC. The order of the draws is part of the fleet.
"""

from typing import Final

import numpy as np
from scipy.signal import lfilter

from ml.limits import SUPPLY_LIMIT_KWH
from ml.schemas import HALF_HOURS
from ml.simulation.behaviour import HouseholdBehaviour
from ml.simulation.environment import WAKING_DAY_HOURS, Bools, FleetEnvironment, Floats

COOKING_LOAD_SHAPE: Final = (1.0, 0.4, 0.05)
"""Load of the half-hour in which an appliance is switched on, and of those after it."""
WASHING_LOAD_SHAPE: Final = (1.0, 0.8, 0.6, 0.2)
SHORT_LOAD_SHAPE: Final = (1.0, 0.15)
PRICE_RESPONSE: Final = np.array([1.09, 1.0, 0.92], dtype=np.float32)
"""Factor of what households on the time-of-use tariff do at a Low, Normal, High price. Chosen."""
HEATING_BASE_C: Final = 15.5
"""Outdoor temperature below which households heat: the base of British degree days."""


def simulate_readings(
    behaviour: HouseholdBehaviour, environment: FleetEnvironment, random: np.random.Generator
) -> Floats:
    """Return the readings of n households, `[n, D, 48]` kWh, in whole watt-hours."""
    n_households = len(behaviour.baseload_kwh)
    present = _simulate_presence(behaviour, environment, random)
    level = _draw_daily_level(behaviour, environment, random)
    active = _simulate_occupied_load(behaviour, environment, random) * present
    active += _simulate_appliances(behaviour, present, environment, random)
    season = np.exp(behaviour.winter_log_change[:, None] * environment.winter_phase)
    active *= season[:, :, None] * level[:, :, None]
    present = _map_to_utc(present, environment)
    active = _map_to_utc(active, environment)
    active *= np.where(
        behaviour.is_tou[:, None], PRICE_RESPONSE[environment.price_index], np.float32(1)
    )
    total = active + _simulate_baseload(behaviour, environment, random)
    _add_heating(total, behaviour, present, environment, random)
    _add_night_timers(total, behaviour, environment, random)
    # Dithered before rounding: a meter carries the rest of a watt-hour over, so that a steady load
    # of 10.4 Wh reads 10 or 11, and readings do not repeat.
    total *= np.float32(1000)
    total += random.random(total.shape, dtype=np.float32) - np.float32(0.5)
    total = np.clip(np.rint(total), 0, SUPPLY_LIMIT_KWH * 1000) / np.float32(1000)
    return total.reshape(n_households, environment.n_days, HALF_HOURS)


def _map_to_utc(waking_days: Floats, environment: FleetEnvironment) -> Floats:
    """Return the UTC half-hours `[n, D * 48]` of waking days `[n, D + 2, 48]`."""
    return np.take(waking_days.reshape(len(waking_days), -1), environment.waking_day_index, axis=1)


def _draw_schedule_scatter(
    behaviour: HouseholdBehaviour, n_days: int, random: np.random.Generator
) -> Floats:
    """Return by how many hours a time of day is missed on each day, `[n, D + 2]`."""
    noise = random.standard_normal((len(behaviour.wake_hour), n_days), dtype=np.float32)
    return noise * behaviour.schedule_scatter_hours[:, None]


def _share_after_hour(hours: Floats) -> Floats:
    """Return the share of each half-hour of the waking day that lies after `hours` `[n, D]`."""
    return np.clip(2 * (WAKING_DAY_HOURS + np.float32(0.5) - hours[:, :, None]), 0, 1)


def _simulate_presence(
    behaviour: HouseholdBehaviour, environment: FleetEnvironment, random: np.random.Generator
) -> Floats:
    """Return the share of each half-hour in which somebody is up and in, `[n, D + 2, 48]`."""
    is_free = environment.is_free_day
    n_days = len(is_free)
    lie_in = behaviour.lie_in_hours[:, None] * is_free
    wake = behaviour.wake_hour[:, None] + lie_in + _draw_schedule_scatter(behaviour, n_days, random)
    sleep = (
        behaviour.sleep_hour[:, None]
        + 0.5 * lie_in
        + _draw_schedule_scatter(behaviour, n_days, random)
    )
    leaves = (
        behaviour.leave_hour[:, None]
        + 2.5 * is_free
        + _draw_schedule_scatter(behaviour, n_days, random)
    )
    returns = behaviour.return_hour[:, None] + _draw_schedule_scatter(
        behaviour, n_days, random
    ) * np.float32(1.5)
    goes_out = random.random(wake.shape) < np.where(
        is_free, 0.4, behaviour.going_out_share[:, None]
    )
    away = _share_after_hour(leaves)
    away -= _share_after_hour(np.maximum(returns, leaves))
    # Not everybody leaves: 30 % of the presence stays.
    away *= np.where(goes_out, np.float32(0.7), np.float32(0))[:, :, None]
    present = _share_after_hour(wake)
    present -= _share_after_hour(np.maximum(sleep, wake))
    present -= present * away
    present *= ~_draw_absences(behaviour, n_days, random)[:, :, None]
    return present


def _draw_absences(
    behaviour: HouseholdBehaviour, n_days: int, random: np.random.Generator
) -> Bools:
    """Return the days `[n, D + 2]` with nobody in: trips of a night or two, holidays, months."""
    n = len(behaviour.trips_per_year)
    count = random.poisson(behaviour.trips_per_year * n_days / 365)
    household = np.repeat(np.arange(n), count)
    # From 10 days before the period on, so that it may begin with an absence.
    first = random.integers(-10, n_days, len(household))
    length = 1 + random.lognormal(0.7, 1.1, len(household)).astype(np.int64)
    # +1 where an absence begins and -1 where it ends: their running sum counts those under way.
    change = np.zeros((n, n_days + 1), dtype=np.int64)
    np.add.at(change, (household, np.clip(first, 0, n_days)), 1)
    np.add.at(change, (household, np.clip(first + length, 0, n_days)), -1)
    return np.asarray(np.cumsum(change[:, :-1], axis=1) > 0)


def _draw_daily_level(
    behaviour: HouseholdBehaviour, environment: FleetEnvironment, random: np.random.Generator
) -> Floats:
    """Return the factor of what a household does on each day, `[n, D + 2]`, about 1.

    Slow drift, sudden changes (1.2 a year), and the scatter of the day itself.
    """
    shape = (len(behaviour.daily_level_scatter), len(environment.is_free_day))
    noise = random.standard_normal(shape)
    # 0.22 is sqrt(1 - 0.975^2): the drift has unit variance from the first day on.
    noise[:, 0] /= 0.22
    drift = lfilter([0.22], [1, -0.975], noise)
    is_change = random.random(shape) < 1.2 / 365
    drift = 0.22 * drift + np.cumsum(np.where(is_change, random.normal(0, 0.3, shape), 0), axis=1)
    daily = behaviour.daily_level_scatter[:, None] * random.standard_normal(shape)
    free_day = np.where(environment.is_free_day, 0.04, 0.0)
    return np.exp(drift + daily + free_day).astype(np.float32)


def _simulate_occupied_load(
    behaviour: HouseholdBehaviour, environment: FleetEnvironment, random: np.random.Generator
) -> Floats:
    """Return what lights, screens and the like take while somebody is in, `[n, D + 2, 48]`."""
    n_households = len(behaviour.occupied_load_kwh)
    n_days = len(environment.is_free_day)
    noise = random.standard_normal((n_households, n_days * HALF_HOURS), dtype=np.float32)
    smooth = lfilter([np.float32(0.19)], np.array([1, -0.9], dtype=np.float32), noise)
    smooth += np.float32(0.2) * random.standard_normal(smooth.shape, dtype=np.float32)
    load = np.exp(smooth, dtype=np.float32).reshape(n_households, n_days, HALF_HOURS)
    lighting = 0.6 + behaviour.lighting_factor[:, None, None] * environment.darkness
    load *= lighting
    load *= behaviour.occupied_load_kwh[:, None, None]
    return np.asarray(load)


def _simulate_appliances(
    behaviour: HouseholdBehaviour,
    present: Floats,
    environment: FleetEnvironment,
    random: np.random.Generator,
) -> Floats:
    """Return the load of appliances switched on at usual times, `[n, D + 2, 48]`."""
    load = np.zeros_like(present)
    free_day_factor = np.where(environment.is_free_day, np.float32(1.5), np.float32(0.85))[:, None]
    mean_kwh = behaviour.appliance_kwh
    _add_appliance(
        load, behaviour.meal_rate[:, None] * present, mean_kwh, COOKING_LOAD_SHAPE, random
    )
    _add_appliance(
        load,
        behaviour.wash_rate[:, None] * present * free_day_factor,
        1.5 * mean_kwh,
        WASHING_LOAD_SHAPE,
        random,
    )
    _add_appliance(
        load, behaviour.shower_rate[:, None] * present, 1.0 * mean_kwh, SHORT_LOAD_SHAPE, random
    )
    _add_appliance(
        load,
        behaviour.gadget_rate[:, None, None] * present,
        0.25 * mean_kwh,
        SHORT_LOAD_SHAPE,
        random,
    )
    return load


def _add_appliance(
    load_kwh: Floats,
    start_probability: Floats,
    mean_kwh: Floats,
    load_shape: tuple[float, ...],
    random: np.random.Generator,
) -> None:
    """Add to `load_kwh` an appliance that starts with the given chance in each half-hour.

    Its load runs on into the half-hours after, also across midnight, as `load_shape` says.
    """
    draw = random.random(start_probability.shape, dtype=np.float32)
    started = np.flatnonzero(draw.ravel() < start_probability.ravel())
    household = started // start_probability[0].size
    energy = mean_kwh[household] * random.gamma(4.0, 0.25, len(started)).astype(np.float32)
    flat = load_kwh.reshape(-1)
    for delay, share in enumerate(load_shape):
        # Places are unique but for the clipped last one, where `+=` counts one start.
        place = np.minimum(started + delay, flat.size - 1)
        flat[place] += np.float32(share) * energy


def _simulate_baseload(
    behaviour: HouseholdBehaviour, environment: FleetEnvironment, random: np.random.Generator
) -> Floats:
    """Return standing load and fridge, which follow no clock, `[n, D * 48]`."""
    n_households = len(behaviour.baseload_kwh)
    n_days = environment.n_days
    half_hour = np.arange(HALF_HOURS, dtype=np.float32)
    speed = 1 / behaviour.fridge_period_half_hours[:, None]
    drift = random.normal(0, 0.12, (n_households, n_days)) + HALF_HOURS * speed
    phase = (np.cumsum(drift, axis=1) % 1).astype(np.float32)
    cycles = phase[:, :, None] + speed[:, :, None] * half_hour
    load = np.cos(np.float32(2 * np.pi) * cycles)
    load *= behaviour.fridge_share[:, None, None]
    wander = lfilter([0.3], [1, -0.95], random.standard_normal((n_households, n_days)))
    load += (1 + 0.05 * wander).astype(np.float32)[:, :, None]
    load += np.float32(0.045) * random.standard_normal(load.shape, dtype=np.float32)
    load *= behaviour.baseload_kwh[:, None, None]
    return np.maximum(load, 0).reshape(n_households, -1)


def _add_heating(
    total_kwh: Floats,
    behaviour: HouseholdBehaviour,
    present: Floats,
    environment: FleetEnvironment,
    random: np.random.Generator,
) -> None:
    """Add direct electric heating, by cold and presence, in thermostat bursts."""
    heated = np.flatnonzero(behaviour.heating_kwh_per_degree)
    cold = np.maximum(HEATING_BASE_C - environment.temperature_c, 0)
    burst = random.gamma(3.0, 0.333, (len(heated), total_kwh.shape[1])).astype(np.float32)
    share = np.float32(0.15) + np.float32(0.85) * present[heated]
    total_kwh[heated] += behaviour.heating_kwh_per_degree[heated, None] * cold * share * burst


def _add_night_timers(
    total_kwh: Floats,
    behaviour: HouseholdBehaviour,
    environment: FleetEnvironment,
    random: np.random.Generator,
) -> None:
    """Add storage heaters and water heated at night, on timers that know no summer time."""
    timed = np.flatnonzero(behaviour.storage_heater_kwh + behaviour.water_heater_kwh)
    daily_c = environment.temperature_c.reshape(-1, HALF_HOURS).mean(axis=1)
    cold = np.maximum(HEATING_BASE_C - daily_c, 0)
    # Half-hours since the timer switched on; heaters charge the longer the colder it is.
    since = np.arange(HALF_HOURS) - behaviour.timer_half_hour[timed, None, None]
    charge = np.clip(cold * 1.3, 0, 14)[:, None] - since
    storage = (
        behaviour.storage_heater_kwh[timed, None, None]
        * np.clip(charge, 0, 1)
        * np.exp(-0.05 * since)
    )
    draw = random.gamma(4.0, 0.75, (len(timed), environment.n_days, 1))
    water = behaviour.water_heater_kwh[timed, None, None] * np.clip(draw - since, 0, 1)
    load = np.where(since >= 0, storage + water, 0).astype(np.float32)
    load *= 1 + np.float32(0.03) * random.standard_normal(load.shape, dtype=np.float32)
    total_kwh[timed] += load.reshape(len(timed), total_kwh.shape[1])
