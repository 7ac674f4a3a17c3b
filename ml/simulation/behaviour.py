"""The behaviour of simulated households: what each has and does, drawn once a household.

The shares, rates and spreads here and in `readings` were fitted by hand to the statistics of 225
real London households (tests/benchmarks/fleet_comparison.py shows both). Loads are kWh per
half-hour. Most quantities are log-normal: the two numbers are mean and spread of the logarithm.
"""

from dataclasses import dataclass

import numpy as np

from ml.simulation.environment import WAKING_DAY_HOURS, Bools, Floats


@dataclass(frozen=True)
class HouseholdBehaviour:
    """Traits of n households; all `[n]` but for three daily shapes `[n, 48]`."""

    baseload_kwh: Floats
    fridge_share: Floats  # share of the baseload that comes and goes
    fridge_period_half_hours: Floats
    occupied_load_kwh: Floats  # while somebody is up and in
    lighting_factor: Floats
    winter_log_change: Floats  # log change of use from spring to mid-winter
    wake_hour: Floats  # local hour
    sleep_hour: Floats
    lie_in_hours: Floats  # hours later on free days
    schedule_scatter_hours: Floats  # hours of scatter of their times
    going_out_share: Floats  # share of working days
    leave_hour: Floats
    return_hour: Floats
    meal_rate: Floats  # chance in each half-hour of the waking day
    wash_rate: Floats
    shower_rate: Floats
    gadget_rate: Floats  # chance in any half-hour
    appliance_kwh: Floats
    trips_per_year: Floats  # absences of a night or more
    daily_level_scatter: Floats  # scatter of the level from day to day
    heating_kwh_per_degree: Floats  # direct electric heating, per half-hour and degree
    storage_heater_kwh: Floats  # per half-hour while they charge, 0 without
    water_heater_kwh: Floats  # heated at night, per half-hour, 0 without
    timer_half_hour: Floats  # UTC half-hour at which the night timer switches on
    is_tou: Bools


@dataclass(frozen=True)
class HouseholdSampler:
    """Draws a trait for n households at once."""

    n_households: int
    random: np.random.Generator

    def draw_normal(self, mean: float, spread: float) -> Floats:
        """Return normally distributed values, `[n]`."""
        return np.asarray(
            mean + spread * self.random.standard_normal(self.n_households, dtype=np.float32)
        )

    def draw_uniform(self, low: float, high: float) -> Floats:
        """Return values spread evenly between `low` and `high`, `[n]`."""
        return self.random.uniform(low, high, self.n_households).astype(np.float32)

    def draw_for_share(self, share: float, low: float, high: float, others: float = 0) -> Floats:
        """Return values between `low` and `high` for a share of the households, else `others`."""
        has_trait = self.random.random(self.n_households) < share
        return np.where(has_trait, self.draw_uniform(low, high), np.float32(others))


def draw_behaviour(
    is_tou: Bools, log_level_shift: Floats, random: np.random.Generator
) -> HouseholdBehaviour:
    """Draw the traits of n households.

    `log_level_shift` `[n]` is added to the standardised log size, by Acorn group. The order of the
    draws is part of the fleet: another order is another fleet for the same seed.
    """
    n = len(is_tou)
    draw = HouseholdSampler(n, random)
    # Standardised log size: larger households have more of everything.
    size = draw.draw_normal(0, 1) + log_level_shift
    # 2 % of the households use little, 0.5 % next to nothing.
    little_used = draw.draw_for_share(0.02, 0.02, 0.3, others=1)
    empty = draw.draw_for_share(0.005, 0.003, 0.003, others=1)
    usage_factor = little_used * empty
    # 8 % have next to no baseload; below zero it is cut off, so their readings hold zeros.
    baseload_factor = draw.draw_for_share(0.08, -0.1, 0.25, others=1)
    wake = draw.draw_normal(7.2, 1.0)
    going_out_share = draw.draw_for_share(0.45, 0.5, 1, others=0.3)
    sleep = np.clip(draw.draw_normal(24.8, 1.5), wake + 12, 28)
    activity = np.exp(draw.draw_normal(-0.05, 0.45) + 0.25 * size)
    return HouseholdBehaviour(
        baseload_kwh=usage_factor
        * baseload_factor
        * np.exp(draw.draw_normal(-2.79, 0.48) + 0.42 * size),
        fridge_share=np.clip(draw.draw_normal(0.32, 0.2), 0, 0.9),
        fridge_period_half_hours=draw.draw_uniform(1.4, 4.5),
        occupied_load_kwh=usage_factor * np.exp(draw.draw_normal(-2.59, 0.42) + 0.47 * size),
        lighting_factor=np.exp(draw.draw_normal(-0.3, 0.6)),
        winter_log_change=draw.draw_normal(0.14, 0.1),
        wake_hour=wake,
        sleep_hour=sleep,
        lie_in_hours=np.clip(draw.draw_normal(1.1, 0.7), -0.5, 3),
        schedule_scatter_hours=np.exp(draw.draw_normal(-0.25, 0.5)),
        going_out_share=going_out_share,
        leave_hour=np.maximum(wake + 0.7, draw.draw_normal(8.6, 0.8)),
        return_hour=draw.draw_normal(17.6, 1.1),
        meal_rate=activity[:, None] * _draw_meal_rates(wake, random),
        wash_rate=activity[:, None] * _draw_wash_rates(random, n),
        shower_rate=_daily_bell(wake + 0.7, 0.6) * draw.draw_for_share(0.45, 0.3, 1.2)[:, None],
        gadget_rate=activity * draw.draw_uniform(0.08, 0.35),
        appliance_kwh=usage_factor * np.exp(draw.draw_normal(-1.37, 0.38) + 0.2 * size),
        trips_per_year=random.gamma(0.8, 4.5, n).astype(np.float32),
        daily_level_scatter=np.exp(draw.draw_normal(-2.6, 0.5)),
        heating_kwh_per_degree=np.exp(draw.draw_normal(-3.4, 0.6))
        * draw.draw_for_share(0.12, 1, 1),
        storage_heater_kwh=draw.draw_for_share(0.03, 0.8, 3.5),
        water_heater_kwh=draw.draw_for_share(0.045, 0.4, 1.4),
        timer_half_hour=random.integers(0, 9, n).astype(np.float32),
        is_tou=is_tou,
    )


def _daily_bell(peak_hour: Floats, width_hours: float) -> Floats:
    """Return a bell of unit sum over the waking day around each household's hour, `[n, 48]`."""
    bell = np.exp(-0.5 * ((WAKING_DAY_HOURS - peak_hour[:, None]) / width_hours) ** 2)
    return np.asarray(bell / bell.sum(axis=1, keepdims=True), dtype=np.float32)


def _draw_meal_rates(wake_hour: Floats, random: np.random.Generator) -> Floats:
    """Return the chance of a meal in each half-hour of the waking day, `[n, 48]`."""
    n = len(wake_hour)
    breakfast = _daily_bell(
        wake_hour + random.normal(0.9, 0.4, n).astype(np.float32), width_hours=0.7
    )
    lunch = _daily_bell(random.normal(13.0, 1.0, n).astype(np.float32), width_hours=1.3)
    dinner = _daily_bell(random.normal(19.0, 1.2, n).astype(np.float32), width_hours=1.4)
    rates = random.gamma(2.0, [0.42, 0.7, 0.8], (n, 3)).astype(np.float32)
    return np.asarray(
        rates[:, :1] * breakfast + rates[:, 1:2] * lunch + rates[:, 2:] * dinner, dtype=np.float32
    )


def _draw_wash_rates(random: np.random.Generator, n_households: int) -> Floats:
    """Return the chance of a wash in each half-hour of the waking day, `[n, 48]`."""
    rate = random.gamma(1.5, 0.35, n_households).astype(np.float32)
    daytime = _daily_bell(
        random.normal(13.0, 3.5, n_households).astype(np.float32), width_hours=3.0
    )
    return np.asarray(rate[:, None] * daytime, dtype=np.float32)
