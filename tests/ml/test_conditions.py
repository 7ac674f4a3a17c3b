"""Conditions know the calendar, the weather and the household, in a fixed order."""

from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ml import conditions
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
    by_group = conditions.build_conditions([fleets.FIRST_NIGHT], weather, holidays, tariffs)
    group = conditions.assign_condition_groups(fleets.build_households(2))
    signal = by_group[group, 0, conditions.CONDITIONS.index("price_signal")]
    assert signal.tolist() == [0.0, 0.25]  # 12 of 48 half-hours at +1


def test_affluence_follows_acorn_group() -> None:
    named = ["Affluent", None, "Adversity", "ACORN-U", "Comfortable"]
    households = fleets.build_households(5).with_columns(
        acorn_group=pl.Series(named, dtype=pl.String)
    )
    by_group = conditions.build_conditions([fleets.FIRST_NIGHT], *fleets.empty_reference_tables())[
        conditions.assign_condition_groups(households)
    ]
    affluence = by_group[:, 0, conditions.CONDITIONS.index("affluence")]
    np.testing.assert_array_equal(affluence, [1, np.nan, -1, np.nan, 0])


@pytest.mark.seed_fault
def test_bulk_conditions_equal_single_night_conditions() -> None:
    nights = [date(2013, 3, 1) + timedelta(days=i) for i in range(60)]
    bulk = conditions.build_conditions(nights, *fleets.empty_reference_tables())
    for i, night in enumerate(nights):
        one = conditions.build_conditions([night], *fleets.empty_reference_tables())
        np.testing.assert_array_equal(one[:, 0], bulk[:, i])
