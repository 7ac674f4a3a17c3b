"""What a model reads depends on the night and its past alone, and knows the calendar."""

from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import arrays, conditions
from ml import fleet as fleet_module
from ml.schemas import Holidays, Tariffs, Weather
from tests import fleets


def build_night_conditions(*nights: date) -> pl.DataFrame:
    return conditions.build_night_conditions(
        list(nights), Weather.create_empty(), Holidays.create_empty()
    )


def test_conditions_are_fifteen_distinct_names() -> None:
    assert len(conditions.CONDITIONS) == len(set(conditions.CONDITIONS)) == 15


@pytest.mark.seed_fault
def test_friday_is_not_a_day_off() -> None:
    friday = build_night_conditions(date(2013, 6, 7), date(2013, 6, 8))
    assert friday["is_friday"].to_list() == [1.0, 0.0]
    assert friday["is_day_off"].to_list() == [0.0, 1.0]


def test_bank_holidays_are_days_off_without_delivered_holidays() -> None:
    assert build_night_conditions(date(2013, 8, 26))["is_day_off"].to_list() == [1.0]


def test_delivered_holidays_are_days_off() -> None:
    royal = Holidays.validate(pl.DataFrame({"day": [date(2013, 6, 19)], "name": ["Royal visit"]}))
    frame = conditions.build_night_conditions([date(2013, 6, 19)], Weather.create_empty(), royal)
    assert frame["is_day_off"].to_list() == [1.0]


def test_holiday_with_swapped_day_and_month_is_corrected() -> None:
    # The trial's file says 2013-06-05 for the early May bank holiday of 6 May 2013.
    swapped = pl.DataFrame({"day": [date(2013, 6, 5)], "name": ["Early May bank holiday"]})
    nights = [date(2013, 5, 6), date(2013, 6, 5)]
    frame = conditions.build_night_conditions(
        nights, Weather.create_empty(), Holidays.validate(swapped)
    )
    assert frame["is_day_off"].to_list() == [1.0, 0.0]


def test_summer_time_follows_clock_changes() -> None:
    # The clocks of 2013 went forward on 31 March at 01:00 UTC and back on 27 October.
    changes = build_night_conditions(
        date(2013, 3, 30), date(2013, 3, 31), date(2013, 10, 26), date(2013, 10, 27)
    )
    assert changes["is_summer_time"].to_list() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.seed_fault
def test_temperature_is_mean_of_hours() -> None:
    night = date(2013, 6, 5)
    hours = [datetime(2013, 6, 5) + timedelta(hours=h) for h in range(4)]
    weather = pl.DataFrame(
        {"ts_utc": hours, "temperature_c": [0.0, 0.0, 0.0, 20.0], "humidity": [0.5] * 4}
    )
    weather = Weather.validate(weather, cast=True)
    frame = conditions.build_night_conditions([night], weather, Holidays.create_empty())
    assert frame["temperature_c"].to_list() == [5.0]


def test_price_signal_is_zero_for_standard_tariff_households() -> None:
    stamps = [datetime(2013, 6, 3) + timedelta(minutes=30 * i) for i in range(48)]
    prices = ["High"] * 12 + ["Normal"] * 36
    tariffs = Tariffs.validate(pl.DataFrame({"ts_utc": stamps, "price": prices}), cast=True)
    weather, holidays, _ = fleets.empty_reference_tables()
    known = conditions.build_conditions([fleets.FIRST_NIGHT], weather, holidays, tariffs)
    group = conditions.assign_condition_groups(fleets.build_households(2))
    signal = known[group, 0, conditions.CONDITIONS.index("price_signal")]
    assert signal.tolist() == [0.0, 0.25]  # 12 of 48 half-hours at +1


def test_affluence_follows_acorn_group() -> None:
    named = ["Affluent", None, "Adversity", "ACORN-U", "Comfortable"]
    homes = fleets.build_households(5).with_columns(acorn_group=pl.Series(named, dtype=pl.String))
    known = conditions.build_conditions([fleets.FIRST_NIGHT], *fleets.empty_reference_tables())[
        conditions.assign_condition_groups(homes)
    ]
    affluence = known[:, 0, conditions.CONDITIONS.index("affluence")]
    np.testing.assert_array_equal(affluence, [1, np.nan, -1, np.nan, 0])


@pytest.mark.seed_fault
def test_missing_half_hour_does_not_shift_others() -> None:
    readings = fleets.simulate_readings_kwh(1, 1)
    readings[0, 0, 7] = np.nan
    laid = fleet_module.build_fleet(
        [fleets.build_household_nights(readings)],
        [fleets.FIRST_NIGHT],
        fleets.build_households(1),
        *fleets.empty_reference_tables(),
    )
    np.testing.assert_array_equal(laid.kwh, readings)


def test_undelivered_profile_has_no_readings() -> None:
    readings = fleets.simulate_readings_kwh(2, 3)
    readings[1, 1] = np.nan
    nights = [fleets.FIRST_NIGHT + timedelta(days=i) for i in range(3)]
    laid = fleet_module.build_fleet(
        [fleets.build_household_nights(readings)],
        nights,
        fleets.build_households(2),
        *fleets.empty_reference_tables(),
    )
    assert laid.n_readings.tolist() == [[48, 48, 48], [48, 0, 48]]


@settings(max_examples=20, deadline=None)
@given(night=st.integers(30, 44), seed=st.integers(0, 99))
def test_bulk_scaling_equals_single_night_scaling(night: int, seed: int) -> None:
    readings = fleets.simulate_readings_kwh(4, 45, seed)
    readings[np.random.default_rng(seed).random(readings.shape) < 0.1] = np.nan
    bulk = fleet_module.scale_fleet(fleets.build_fleet(readings), min_readings=36)
    start = night - fleet_module.LEVEL_NIGHTS
    past = fleets.build_fleet(
        readings[:, start : night + 1], fleets.FIRST_NIGHT + timedelta(days=start)
    )
    one = fleet_module.scale_fleet(past, min_readings=36)
    np.testing.assert_array_equal(one.log_readings[:, -1], bulk.log_readings[:, night])
    np.testing.assert_array_equal(one.level_kwh[:, -1], bulk.level_kwh[:, night])


@pytest.mark.seed_fault
def test_bulk_conditions_equal_single_night_conditions() -> None:
    nights = [date(2013, 3, 1) + timedelta(days=i) for i in range(60)]
    bulk = conditions.build_conditions(nights, *fleets.empty_reference_tables())
    for i, night in enumerate(nights):
        one = conditions.build_conditions([night], *fleets.empty_reference_tables())
        np.testing.assert_array_equal(one[:, 0], bulk[:, i])


def test_usual_level_excludes_the_night_itself() -> None:
    readings = fleets.simulate_readings_kwh(2, 40)
    loud = readings.copy()
    loud[:, 39] *= 50
    quiet_level = fleet_module.scale_fleet(fleets.build_fleet(readings), min_readings=36).level_kwh[
        :, 39
    ]
    loud_level = fleet_module.scale_fleet(fleets.build_fleet(loud), min_readings=36).level_kwh[
        :, 39
    ]
    np.testing.assert_array_equal(quiet_level, loud_level)


def test_scaled_readings_do_not_depend_on_household_level() -> None:
    readings = fleets.simulate_readings_kwh(2, 40)
    units = fleet_module.scale_fleet(fleets.build_fleet(readings), min_readings=36)
    tenfold = fleet_module.scale_fleet(fleets.build_fleet(readings * 10), min_readings=36)
    np.testing.assert_allclose(units.log_readings, tenfold.log_readings, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.one_of(st.just(np.nan), st.floats(-5, 5)), min_size=5, max_size=5)).filter(
        bool
    )
)
def test_median_equals_numpy(rows: list[list[float]]) -> None:
    windows = np.array(rows)
    median, _ = arrays.median_and_mad(windows)
    for row, found in zip(windows, median, strict=True):
        expected = np.nanmedian(row) if np.isfinite(row).any() else np.nan
        np.testing.assert_array_equal(found, expected)
