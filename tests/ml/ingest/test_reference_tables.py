"""Reference tables are parsed cell by cell, checked by their schema, and merged by key."""

from datetime import date, datetime

import polars as pl
import pytest

from ml.errors import UserError
from ml.ingest.formats import recognise_format
from ml.ingest.reference_tables import (
    merge_household_registers,
    merge_reference_tables,
    parse_reference_table,
)
from ml.schemas import Holidays, Households, Tariffs, Weather


def parse(header: str, *lines: str) -> pl.DataFrame:
    """Parse a reference table delivered as text."""
    names = header.split(",")
    rows = pl.DataFrame(
        [line.split(",") for line in lines],
        schema=dict.fromkeys(names, pl.String),
        orient="row",
    )
    return parse_reference_table(rows, recognise_format(names))


def test_weather_is_sorted_and_an_empty_cell_is_null() -> None:
    weather = parse("time,temperature,humidity", "2013-06-03 01:00,10.5,0.5", "2013-06-03,-1,")
    assert Weather.validate(weather).rows() == [
        (datetime(2013, 6, 3, 0), -1.0, None),
        (datetime(2013, 6, 3, 1), 10.5, 0.5),
    ]


def test_households_are_stripped_and_other_columns_left_out() -> None:
    households = parse("LCLid,stdorToU,Acorn,Acorn_grouped,file", " MAC1 ,ToU, ,Affluent,block_0")
    assert Households.validate(households).rows() == [("MAC1", "ToU", None, "Affluent")]


def test_holidays_are_dates() -> None:
    holidays = parse("Bank holidays,Type", "2013-12-26,Boxing Day\r", "2013-12-25,Christmas")
    assert Holidays.validate(holidays).rows() == [
        (date(2013, 12, 25), "Christmas"),
        (date(2013, 12, 26), "Boxing Day"),
    ]


def test_tariffs_are_prices_of_half_hours() -> None:
    tariffs = parse("TariffDateTime,Tariff", "2013-06-03 00:00:00,Low\r")
    assert Tariffs.validate(tariffs).rows() == [(datetime(2013, 6, 3), "Low")]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_row_of_a_repeated_key_is_kept_in_any_row_order(order: tuple[int, ...]) -> None:
    lines = ["2013-06-03,1,0.5", "2013-06-03,2,0.25"]
    weather = parse("time,temperature,humidity", *(lines[i] for i in order))
    assert weather.rows() == [(datetime(2013, 6, 3), 2.0, 0.25)]


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("time,temperature,humidity", "2013-06-03,warm,0.5", "'temperature' .* no number: 'warm'"),
        ("time,temperature,humidity", "soon,1,0.5", "column 'time' has a cell that is no time"),
        ("time,temperature,humidity", ",1,0.5", "column 'time' has empty cells"),
        ("time,temperature,humidity", "2013-06-03,1,55", "break the rules of weather: .*humidity"),
        ("TariffDateTime,Tariff", "2013-06-03,Dear", "none of Low, Normal, High: 'Dear'"),
    ],
)
def test_parse_reference_table_names_column_and_cell_that_it_refuses(
    header: str, line: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        parse(header, line)


def test_merge_reference_tables_keeps_the_last_row_of_a_key() -> None:
    earlier = parse("Bank holidays,Type", "2013-12-25,Christmas", "2013-12-26,Boxing")
    later = parse("Bank holidays,Type", "2013-12-26,Boxing Day")
    merged = merge_reference_tables([earlier, later], "day")
    assert merged.rows() == [(date(2013, 12, 25), "Christmas"), (date(2013, 12, 26), "Boxing Day")]


def test_merge_household_registers_keeps_the_last_value_that_is_not_null() -> None:
    register = parse("LCLid,stdorToU,Acorn,Acorn_grouped", "MAC2,Std,ACORN-A,Affluent")
    seen_in_readings = pl.DataFrame({"household_id": ["MAC1", "MAC2"]})
    changed = pl.DataFrame({"household_id": ["MAC2"], "tariff": ["ToU"]})
    merged = merge_household_registers([register, seen_in_readings, changed])
    assert merged.rows() == [("MAC1", None, None, None), ("MAC2", "ToU", "ACORN-A", "Affluent")]
