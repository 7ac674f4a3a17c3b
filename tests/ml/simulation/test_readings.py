"""Simulated households behave like London ones, in weather and calendar like London's."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest

from ml.simulation import fleet
from ml.simulation.environment import FleetConfig, build_environment, list_bank_holidays
from tests.benchmarks.fleet_comparison import COMPARISON_CONFIG, compute_statistics, load_real_kwh

# Allowed relative distance: half of the households' scatter is that between one sample of 225
# households and another, so the tails and the rare (zeros, absences) are held less tightly.
TOLERANCE = 0.15
TOLERANCE_BY_STATISTIC = {
    "reading, quantile 0.1": 0.25,
    "share of zeros": 0.6,
    "share below 0.02 kWh": 0.3,
    "mean level, households' 5 %": 0.25,
    "autocorrelation of days, 7 days": 0.25,
    "share of days below 0.4 of usual": 0.35,
}


@pytest.mark.london
def test_simulated_statistics_match_real_sample(london: Path) -> None:
    real = compute_statistics(load_real_kwh(london))
    simulated = compute_statistics(fleet.simulate_fleet_kwh(COMPARISON_CONFIG))
    wrong = {
        name: (value, simulated[name])
        for name, value in real.items()
        if abs(simulated[name] / value - 1) > TOLERANCE_BY_STATISTIC.get(name, TOLERANCE)
    }
    assert wrong == {}


def test_occupied_load_follows_local_time_but_night_timers_do_not() -> None:
    config = FleetConfig(households=256, days=56, start=date(2013, 3, 3), seed=2)
    kwh = fleet.simulate_fleet_kwh(config)
    # Summer time begins on 31 March, day 28: an hour earlier by UTC from then on.
    before, after = (kwh[:, part].mean(axis=(0, 1)) for part in (slice(0, 28), slice(28, 56)))
    hours = np.arange(-6, 7)
    morning = slice(10, 18)
    lags = [np.corrcoef(before[morning], np.roll(after, lag)[morning])[0, 1] for lag in hours]
    assert hours[int(np.argmax(lags))] in (1, 2, 3)
    night = kwh[:, :, :14].mean(axis=(1, 2)) / kwh.mean(axis=(1, 2))
    timed = kwh[night > np.quantile(night, 0.98)]
    rises = [
        np.diff(timed[:, part].mean(axis=1), axis=1)[:, :14] for part in (slice(28), slice(28, 56))
    ]
    assert (rises[0].argmax(axis=1) == rises[1].argmax(axis=1)).mean() > 0.5


def test_tariff_and_acorn_group_change_readings() -> None:
    config = FleetConfig(households=1024, days=60, seed=4)
    kwh = fleet.simulate_fleet_kwh(config)
    households = fleet.draw_register(config)
    environment = build_environment(config)
    is_tou = (households["tariff"] == "ToU").to_numpy()
    assert 0.15 < is_tou.mean() < 0.25
    flat = kwh.reshape(len(kwh), -1)
    tou, std = (flat[which].mean(axis=0) / flat[which].mean() for which in (is_tou, ~is_tou))
    low, normal, high = ((tou / std)[environment.price_index == price].mean() for price in range(3))
    assert low > normal > high
    group = households["acorn_group"].to_numpy()
    level = np.log(flat.mean(axis=1))
    assert level[group == "Affluent"].mean() > level[group == "Adversity"].mean()


def test_readings_are_whole_watt_hours_within_supply_limit() -> None:
    kwh = fleet.simulate_fleet_kwh(FleetConfig(households=256, days=30, seed=6)).astype(np.float64)
    assert 0 <= kwh.min() <= kwh.max() <= 12
    assert np.abs(kwh * 1000 - np.rint(kwh * 1000)).max() < 1e-3


def test_simulated_weather_matches_london_climate() -> None:
    config = FleetConfig(households=1, days=2 * 365, start=date(2012, 1, 1), seed=0)
    environment = build_environment(config)
    daily = environment.temperature_c.reshape(-1, 48)
    month = np.array([night.month for night in config.nights])
    # The real means of January and July 2012 to 2014 are 6.2 and 18.9 degrees.
    assert 3 < daily[month == 1].mean() < 8
    assert 15.5 < daily[month == 7].mean() < 20.5
    assert daily[:, 28].mean() > daily[:, 10].mean() + 3
    assert 0.25 <= environment.humidity.min() <= environment.humidity.max() <= 1
    assert date(2012, 6, 5) in list_bank_holidays(config)  # the Diamond Jubilee
