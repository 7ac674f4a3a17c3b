"""The environment of a simulated fleet: calendar, local clock, weather, price signal.

People live by the clock of Europe/London, stamps are UTC. What people do is therefore laid out on
a grid of its own, the *waking day*: 48 half-hours from 04:00 local time, so that an evening that
ends after midnight is one piece. `FleetEnvironment.waking_day_index` maps each UTC half-hour to its
place on that grid.

Levels and spreads of the weather were chosen near London's of 2012 to 2014 (mean temperatures of
January and July 6.2 and 18.9 degrees).
"""

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import holidays
import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.signal import lfilter

from ml.schemas import HALF_HOURS, TARIFF_PRICES

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

LOCAL_TIME_ZONE: Final = ZoneInfo("Europe/London")
WAKING_DAY_START_HOUR: Final = 4
"""Local hour at which a waking day begins: when the fewest people are up."""
WAKING_DAY_HOURS: Final = (WAKING_DAY_START_HOUR + np.arange(HALF_HOURS) / 2).astype(np.float32)
"""Local hours of the waking day's half-hours: 4.0, 4.5, ... 27.5."""
LONDON_LATITUDE_RAD: Final = np.deg2rad(51.5)
MAX_DECLINATION_RAD: Final = np.deg2rad(23.4)
"""The sun's declination at midsummer: the tilt of the earth's axis."""


class FleetConfig(BaseModel):
    """Which fleet to simulate; the same configuration gives the same fleet, to the last bit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    households: int = Field(5567, ge=1, le=999_999, description="how many households")
    days: int = Field(100, ge=1, le=3660, description="how many days")
    start: date = Field(
        date(2013, 9, 23), ge=date(1970, 1, 2), le=date(2100, 1, 1), description="the first day"
    )
    seed: int = Field(
        0, ge=0, le=2**63 - 1, description="the same seed and sizes give the same fleet"
    )

    @property
    def nights(self) -> list[date]:
        """Every night of the period."""
        return [self.start + timedelta(days=day) for day in range(self.days)]

    def create_generator(self, *key: int) -> np.random.Generator:
        """Return a generator for one part of the fleet, independent of every other part's.

        Keys in use: 0 environment, 1 register, 2 fleet outages, 3 null rows, and by block 4
        readings, 5 anomalies and delivery. A block is the same in whatever order blocks are drawn.
        """
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))


@dataclass(frozen=True)
class FleetEnvironment:
    """What all households share, over D days; waking days have one more at both ends."""

    waking_day_index: Ints
    """`[D * 48]` place of each UTC half-hour on the flat grid of waking days."""
    temperature_c: Floats
    """`[D * 48]`"""
    humidity: Floats
    """`[D * 48]` relative, 0.25 to 1."""
    price_index: Ints
    """`[D * 48]` place in `TARIFF_PRICES`."""
    darkness: Floats
    """`[D + 2, 48]` of the waking days, 0 by day to 1 by night."""
    winter_phase: Floats
    """`[D + 2]` of the waking days, 1 in mid-winter to -1 in mid-summer."""
    is_free_day: Bools
    """`[D + 2]` which waking days are weekends or bank holidays."""

    @property
    def n_days(self) -> int:
        """UTC days of the period."""
        return len(self.waking_day_index) // HALF_HOURS


def build_environment(config: FleetConfig) -> FleetEnvironment:
    """Return calendar, weather and prices of a configuration's period."""
    random = config.create_generator(0)
    waking_days = _list_waking_days(config)
    temperature_c, humidity = _simulate_weather(config, random)
    return FleetEnvironment(
        waking_day_index=_map_to_waking_days(config),
        temperature_c=temperature_c,
        humidity=humidity,
        price_index=_simulate_prices(config.days, random),
        darkness=_compute_darkness(waking_days),
        winter_phase=np.cos(_year_angle(waking_days, coldest_day=10)).astype(np.float32),
        is_free_day=_find_free_days(waking_days),
    )


def list_half_hours_utc(config: FleetConfig) -> pl.Series:
    """Return the start of every half-hour of the period, UTC and naive."""
    start = datetime.combine(config.start, datetime.min.time())
    end = start + timedelta(days=config.days)
    return pl.datetime_range(start, end, interval="30m", closed="left", eager=True)


def list_bank_holidays(config: FleetConfig) -> dict[date, str]:
    """Return England's bank holidays by day, of the years that the waking days touch."""
    days = _list_waking_days(config)
    years = range(days[0].year, days[-1].year + 1)
    found = holidays.country_holidays("GB", subdiv="ENG", years=years)
    return {day: str(name) for day, name in sorted(found.items())}


def _list_waking_days(config: FleetConfig) -> list[date]:
    day_before = config.start - timedelta(days=1)
    day_after = config.start + timedelta(days=config.days)
    return [day_before, *config.nights, day_after]


def _map_to_waking_days(config: FleetConfig) -> Ints:
    """Return the place of each UTC half-hour on the flat grid of waking days."""
    local = (
        list_half_hours_utc(config)
        .dt.replace_time_zone("UTC")
        .dt.convert_time_zone(LOCAL_TIME_ZONE.key)
    )
    summer_time = local.dt.dst_offset().dt.total_minutes().to_numpy() // 30
    # The first waking day begins 20 hours before the first UTC half-hour.
    return np.arange(len(local)) + HALF_HOURS - 2 * WAKING_DAY_START_HOUR + summer_time


def _find_free_days(days: list[date]) -> Bools:
    years = range(days[0].year, days[-1].year + 1)
    free = holidays.country_holidays("GB", subdiv="ENG", years=years)
    return np.array([day.weekday() >= 5 or day in free for day in days])


def _year_angle(days: list[date], coldest_day: float) -> NDArray[np.float64]:
    """Return the angle of each day in the year, 0 on its `coldest_day`-th."""
    ordinal = np.array([day.timetuple().tm_yday for day in days])
    return 2 * np.pi * (ordinal - coldest_day) / 365.25


def _compute_darkness(days: list[date]) -> Floats:
    """Return how dark it is in each half-hour of the waking days, `[D, 48]`, 0 to 1.

    From the sine of the sun's elevation, by the textbook formula with the declination as a cosine
    of the year (Cooper 1969) and noon at 12:00 GMT. It leaves out the equation of time, at most 16
    minutes, which is less than people differ; pvlib would be a dependency for three lines.
    """
    declination = -MAX_DECLINATION_RAD * np.cos(_year_angle(days, coldest_day=-10))
    solar_noon = 12.0 + np.array([_summer_time_offset_hours(day) for day in days])[:, None]
    hour_angle = 2 * np.pi * (WAKING_DAY_HOURS - solar_noon) / 24
    elevation = np.sin(LONDON_LATITUDE_RAD) * np.sin(declination)[:, None]
    elevation = elevation + np.cos(LONDON_LATITUDE_RAD) * np.cos(declination)[:, None] * np.cos(
        hour_angle
    )
    # Lights go on from 7 degrees above the horizon to 7 below.
    return np.clip(0.5 - 4 * elevation, 0, 1).astype(np.float32)


def _summer_time_offset_hours(day: date) -> float:
    """Return the hours of summer time at noon of a day, local time: 0 or 1."""
    noon = datetime.combine(day, time(12), LOCAL_TIME_ZONE)
    offset = noon.dst()
    assert offset is not None
    return offset.total_seconds() / 3600


def _filter_autoregressive(
    noise: NDArray[np.float64], autocorrelation: float
) -> NDArray[np.float64]:
    """Return noise of unit variance with this correlation from one step to the next."""
    noise = noise.copy()
    # Undone by the filter's gain: the first value has the variance of all others.
    noise[0] /= np.sqrt(1 - autocorrelation**2)
    return np.asarray(lfilter([np.sqrt(1 - autocorrelation**2)], [1, -autocorrelation], noise))


def _simulate_weather(config: FleetConfig, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Return temperature in degrees and relative humidity, `[D * 48]`, hourly as delivered.

    Temperature is a year, spells of some days, the course of a day that is wider in summer, and
    noise; humidity falls when a day warms up.
    """
    n_days = config.days
    hour = np.arange(n_days * 24)
    angle = np.repeat(_year_angle(config.nights, coldest_day=28), 24)
    spell = 2.7 * _filter_autoregressive(random.standard_normal(n_days + 1), autocorrelation=0.75)
    spell = np.interp(hour / 24, np.arange(n_days + 1), spell)
    swing = (2.4 - 1.5 * np.cos(angle)) * np.repeat(random.lognormal(-0.08, 0.4, n_days), 24)
    # Warmest at 14:30.
    day_night = swing * np.cos(2 * np.pi * (hour % 24 - 14.5) / 24)
    noise = _filter_autoregressive(random.standard_normal(len(hour)), autocorrelation=0.8)
    temperature_c = 10.9 - 6.9 * np.cos(angle) + spell + day_night + 0.5 * noise
    damp = _filter_autoregressive(random.standard_normal(len(hour)), autocorrelation=0.9)
    humidity = 0.79 - 0.025 * day_night + 0.03 * np.cos(angle) + 0.08 * damp
    return _repeat_half_hourly(temperature_c), _repeat_half_hourly(np.clip(humidity, 0.25, 1.0))


def _repeat_half_hourly(hourly: NDArray[np.float64]) -> Floats:
    return np.repeat(np.round(hourly, 2), 2).astype(np.float32)


def _simulate_prices(n_days: int, random: np.random.Generator) -> Ints:
    """Return the price of each half-hour, `[D * 48]` places in `TARIFF_PRICES`.

    On 27 % of the days a low and on 20 % a high price, for 3, 6 or 12 hours from 00:00, 05:00,
    11:00 or 17:00: the shares of the trial's signal of 2013.
    """
    price = np.full((n_days, HALF_HOURS), TARIFF_PRICES.index("Normal"))
    draw = random.random(n_days)
    length = random.choice([6, 12, 24], size=n_days, p=[0.42, 0.48, 0.1])
    first = random.choice([0, 10, 22, 34], size=n_days, p=[0.2, 0.25, 0.2, 0.35])
    half_hour = np.arange(HALF_HOURS)
    is_event = (half_hour >= first[:, None]) & (half_hour < (first + length)[:, None])
    price[is_event & (draw < 0.27)[:, None]] = TARIFF_PRICES.index("Low")
    price[is_event & (draw > 0.80)[:, None]] = TARIFF_PRICES.index("High")
    return price.ravel()
