"""A delivered table is recognised by its columns alone."""

import polars as pl
import pytest

from ml.errors import UserError
from ml.ingest.formats import (
    READING_FORMATS,
    clean_column_name,
    recognise_format,
    select_readings,
)

DATASTORE = ("LCLid", "stdorToU", "DateTime", "KWH/hh (per half hour)")


@pytest.mark.parametrize(
    ("columns", "kind", "title"),
    [
        (("LCLid", "tstp", "energy(kWh/hh)"), "readings", "Kaggle"),
        (("kwh", "ts_utc", "household_id"), "readings", "Meterwatch"),
        (DATASTORE, "readings", "Datastore"),
        ((*DATASTORE, "Acorn", "Acorn_grouped"), "readings", "Datastore"),
        (("LCLid", "DateTime", "KWH/hh"), "readings", "Datastore"),
        (("LCLid", "stdorToU", "Acorn", "Acorn_grouped", "file"), "households", "households"),
        (("time", "temperature", "humidity", "summary"), "weather", "weather"),
        (("Bank holidays", "Type"), "holidays", "bank holidays"),
        (("TariffDateTime", "Tariff"), "tariffs", "tariffs"),
        (("household_id", "night", "kind", "anything"), "other", "injected anomalies"),
    ],
)
def test_recognise_format_tells_tables_apart(
    columns: tuple[str, ...], kind: str, title: str
) -> None:
    table_format = recognise_format(columns)
    assert (table_format.kind, table_format.title) == (kind, title)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("year price", "no readings: its columns are 'year', 'price'; expected LCLid, tstp, "),
        ("a b c d e f g h", "'f' and 2 more; expected"),
        ("LCLid tstp energy(kWh/hh) note", "^unknown column 'note'; expected LCLid, tstp, "),
        ("LCLid tstp", "^no column 'energy.kWh/hh.'; expected"),
        (
            "LCLid DateTime kWh",
            "^unknown column 'kWh', no column 'KWH/hh .per half hour.'; expected",
        ),
    ],
)
def test_recognise_format_says_what_differs_from_the_nearest_format(
    columns: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        recognise_format(columns.split(" "))


def test_expected_columns_marks_optional_ones() -> None:
    assert READING_FORMATS[1].expected_columns == (
        "LCLid, DateTime, KWH/hh (per half hour) [stdorToU] [Acorn] [Acorn_grouped]"
    )


def test_clean_column_name_drops_padding_quotes_and_byte_order_mark() -> None:
    assert clean_column_name('\ufeff"KWH/hh (per half hour) "\r') == "KWH/hh (per half hour)"


def test_select_readings_renames_parses_and_keeps_the_value_as_delivered() -> None:
    frame = pl.LazyFrame(
        [["MAC1", "Std", "2013-06-03", " 0.50 "], ["MAC1", "Std", "2013-06-03", "Null"]],
        schema=DATASTORE,
        orient="row",
    )
    rows = select_readings(frame, recognise_format(DATASTORE)).collect()
    assert rows.to_dicts() == [
        {
            "household_id": "MAC1",
            "timestamp": "2013-06-03",
            "value": value,
            "kwh": kwh,
            "tariff": "Std",
        }
        for value, kwh in ((" 0.50 ", 0.5), ("Null", None))
    ]


@pytest.mark.parametrize("dtype", [pl.Boolean, pl.Date])
def test_select_readings_refuses_a_column_without_numbers(dtype: type[pl.DataType]) -> None:
    schema = {"household_id": pl.String, "ts_utc": pl.String, "kwh": dtype}
    with pytest.raises(UserError, match=r"column 'kwh' holds .*, expected numbers"):
        select_readings(pl.LazyFrame(schema=schema), recognise_format(schema))
