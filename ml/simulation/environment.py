"""What a simulated fleet lives in: the calendar, the local clock, the weather, the price signal.

People live by the clock of Europe/London, stamps are UTC. What people do is therefore laid out on
a grid of its own, the *waking day*: 48 half-hours from 04:00 local time, so that an evening that
ends after midnight is one piece. `World.local` maps each UTC half-hour to its place on that grid.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

import holidays
import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.signal import lfilter

from ml.schemas import HALF_HOURS

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

PRICE_NAMES: Final = ("Low", "Normal", "High")
WAKING_DAY_START_HOUR: Final = 4
# Hours of local time of the waking day's half-hours: 4.0, 4.5, ... 27.5.
WAKING_DAY_HOURS: Final = (WAKING_DAY_START_HOUR + np.arange(HALF_HOURS) / 2).astype(np.float32)
LONDON_LATITUDE_RAD: Final = np.deg2rad(51.5)


class FleetConfig(BaseModel):
    """Which fleet to simulate; the same configuration is the same fleet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    households: int = Field(5567, ge=1, le=999_999)
    days: int = Field(100, ge=1, le=3660)
    start: date = Field(date(2013, 9, 23), ge=date(1970, 1, 2), le=date(2100, 1, 1))
    seed: int = Field(0, ge=0, le=2**63 - 1)

    @property
    def nights(self) -> list[date]:
        """Every night of the period."""
        return [self.start + timedelta(days=day) for day in range(self.days)]

    def create_generator(self, *key: int) -> np.random.Generator:
        """Random numbers of one part of the fleet, independent of every other part's."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))


@dataclass(frozen=True)
class FleetEnvironment:
    """All that every household shares. D days; a waking day more at both ends."""

    waking_day_index: Ints  # [D * 48] place of each UTC half-hour on the flat grid of waking days
    temperature_c: Floats  # [D * 48]
    humidity: Floats  # [D * 48]
    price_index: Ints  # [D * 48] place in PRICES
    darkness: Floats  # [D + 2, 48] of the waking days, 0 by day to 1 by night
    winter_phase: Floats  # [D + 2] of the waking days, 1 in mid-winter to -1 in mid-summer
    is_free_day: Bools  # [D + 2] of the waking days, bank holidays too

    @property
    def n_days(self) -> int:
        """How many UTC days."""
        return len(self.waking_day_index) // HALF_HOURS


def build_environment(config: FleetConfig) -> FleetEnvironment:
    """Lay out calendar, weather and prices of the period."""
    random = config.create_generator(0)
    days = _list_waking_days(config)
    temperature_c, humidity = _simulate_weather(config, random)
    return FleetEnvironment(
        waking_day_index=_map_to_waking_days(config),
        temperature_c=temperature_c,
        humidity=humidity,
        price_index=_simulate_prices(config.days, random),
        darkness=_compute_darkness(days),
        winter_phase=np.cos(_year_angle(days, coldest_day=10)).astype(np.float32),
        is_free_day=_find_free_days(days),
    )


def list_half_hours_utc(config: FleetConfig) -> pl.Series:
    """The start of every half-hour of the period, UTC and naive."""
    start = datetime.combine(config.start, datetime.min.time())
    end = start + timedelta(days=config.days)
    return pl.datetime_range(start, end, interval="30m", closed="left", eager=True)


def list_bank_holidays(config: FleetConfig) -> dict[date, str]:
    """England's bank holidays of the years that the period and its margins touch."""
    days = _list_waking_days(config)
    years = range(days[0].year, days[-1].year + 1)
    found = holidays.country_holidays("GB", subdiv="ENG", years=years)
    return {day: str(name) for day, name in sorted(found.items())}


def _list_waking_days(config: FleetConfig) -> list[date]:
    before, after = config.start - timedelta(days=1), config.start + timedelta(days=config.days)
    return [before, *config.nights, after]


def _map_to_waking_days(config: FleetConfig) -> Ints:
    clock = (
        list_half_hours_utc(config)
        .dt.replace_time_zone("UTC")
        .dt.convert_time_zone("Europe/London")
    )
    summer_time = clock.dt.dst_offset().dt.total_minutes().to_numpy() // 30
    # The first waking day begins 20 hours before the first UTC half-hour.
    return np.arange(len(clock)) + HALF_HOURS - 2 * WAKING_DAY_START_HOUR + summer_time


def _find_free_days(days: list[date]) -> Bools:
    years = range(days[0].year, days[-1].year + 1)
    free = holidays.country_holidays("GB", subdiv="ENG", years=years)
    return np.array([day.weekday() >= 5 or day in free for day in days])


def _year_angle(days: list[date], coldest_day: float) -> NDArray[np.float64]:
    ordinal = np.array([day.timetuple().tm_yday for day in days])
    return 2 * np.pi * (ordinal - coldest_day) / 365.25


def _compute_darkness(days: list[date]) -> Floats:
    declination = np.deg2rad(-23.4) * np.cos(_year_angle(days, coldest_day=-10))
    solar_noon = 12.0 + np.array([_summer_time_offset_hours(day) for day in days])[:, None]
    hour_angle = 2 * np.pi * (WAKING_DAY_HOURS - solar_noon) / 24
    sun = np.sin(LONDON_LATITUDE_RAD) * np.sin(declination)[:, None]
    sun = sun + np.cos(LONDON_LATITUDE_RAD) * np.cos(declination)[:, None] * np.cos(hour_angle)
    return np.clip(0.5 - 4 * sun, 0, 1).astype(np.float32)


def _summer_time_offset_hours(day: date) -> float:
    """Whole hours of summer time: from the last Sunday of March to that of October."""
    first, last = (date(day.year, month, 31) for month in (3, 10))
    first, last = (end - timedelta(days=(end.weekday() + 1) % 7) for end in (first, last))
    return float(first <= day < last)


def _filter_autoregressive(
    noise: NDArray[np.float64], autocorrelation: float
) -> NDArray[np.float64]:
    """Noise of unit variance that forgets a share `1 - memory` a step."""
    noise = noise.copy()
    noise[0] /= np.sqrt(1 - autocorrelation**2)
    return np.asarray(lfilter([np.sqrt(1 - autocorrelation**2)], [1, -autocorrelation], noise))


def _simulate_weather(config: FleetConfig, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Temperature and humidity of each half-hour; hourly, as the weather comes."""
    days, hour = config.days, np.arange(config.days * 24)
    angle = np.repeat(_year_angle(config.nights, coldest_day=28), 24)
    spell = 2.7 * _filter_autoregressive(random.standard_normal(days + 1), autocorrelation=0.75)
    spell = np.interp(hour / 24, np.arange(days + 1), spell)
    swing = (2.4 - 1.5 * np.cos(angle)) * np.repeat(random.lognormal(-0.08, 0.4, days), 24)
    day_night = swing * np.cos(2 * np.pi * (hour % 24 - 14.5) / 24)
    noise = _filter_autoregressive(random.standard_normal(len(hour)), autocorrelation=0.8)
    temperature_c = 10.9 - 6.9 * np.cos(angle) + spell + day_night + 0.5 * noise
    damp = _filter_autoregressive(random.standard_normal(len(hour)), autocorrelation=0.9)
    humidity = 0.79 - 0.025 * day_night + 0.03 * np.cos(angle) + 0.08 * damp
    return _repeat_half_hourly(temperature_c), _repeat_half_hourly(np.clip(humidity, 0.25, 1.0))


def _repeat_half_hourly(hourly: NDArray[np.float64]) -> Floats:
    return np.repeat(np.round(hourly, 2), 2).astype(np.float32)


def _simulate_prices(n_days: int, random: np.random.Generator) -> Ints:
    """Days of a low or a high price, in blocks of 3, 6 or 12 hours, as in the trial of 2013."""
    price = np.full((n_days, HALF_HOURS), PRICE_NAMES.index("Normal"))
    draw = random.random(n_days)
    length = random.choice([6, 12, 24], size=n_days, p=[0.42, 0.48, 0.1])
    first = random.choice([0, 10, 22, 34], size=n_days, p=[0.2, 0.25, 0.2, 0.35])
    slot = np.arange(HALF_HOURS)
    event = (slot >= first[:, None]) & (slot < (first + length)[:, None])
    price[event & (draw < 0.27)[:, None]] = PRICE_NAMES.index("Low")
    price[event & (draw > 0.80)[:, None]] = PRICE_NAMES.index("High")
    return price.ravel()
