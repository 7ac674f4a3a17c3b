"""Stamps are parsed as naive UTC, whatever way they are written."""

from datetime import date, datetime, time

import polars as pl
import pytest

from ml.errors import UserError
from ml.ingest.timestamps import parse_timestamps, select_timestamp, strip_text

HALF_PAST = datetime(2013, 6, 3, 0, 30)


@pytest.mark.parametrize(
    "text",
    [
        "2013-06-03 00:30:00",
        " 2013-06-03 00:30 ",
        "2013-06-03T00:30:00.0000000",
        "2013-06-03 01:30:00+01:00",
        "2013-06-03T00:30Z",
    ],
)
@pytest.mark.parametrize("neighbour", ["2013-06-03 00:30:00", "nonsense"])
def test_parse_timestamps_reads_every_way_beside_any_other(text: str, neighbour: str) -> None:
    assert parse_timestamps(pl.Series([text, neighbour])).item(0) == HALF_PAST


@pytest.mark.parametrize("text", ["03/06/2013 00:30", "2013-02-30 00:00:00", "soon", "", None])
def test_parse_timestamps_gives_null_where_a_stamp_cannot_be_read(text: str | None) -> None:
    stamps = pl.Series([text, "2013-06-03 00:30:00"], dtype=pl.String)
    assert parse_timestamps(stamps).to_list() == [None, HALF_PAST]


def test_parse_timestamps_reads_the_hour_alone_as_the_full_hour() -> None:
    assert parse_timestamps(pl.Series(["2013-06-03 05"])).item() == datetime(2013, 6, 3, 5)
    mixed = parse_timestamps(pl.Series(["2013-06-03 05", "x"]))
    assert mixed.item(0) == datetime(2013, 6, 3, 5)


def test_parse_timestamps_keeps_times_that_were_delivered_as_such() -> None:
    stamps = pl.Series([HALF_PAST], dtype=pl.Datetime("us"))
    assert parse_timestamps(stamps).equals(stamps)


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_select_timestamp_turns_a_zone_into_utc(unit: str) -> None:
    local = pl.Series([datetime(2013, 6, 3, 1, 30)]).cast(pl.Datetime(unit))  # type: ignore[arg-type]
    frame = local.dt.replace_time_zone("Europe/London").alias("tstp").to_frame()
    selected = frame.select(select_timestamp("tstp", frame.schema["tstp"]))
    assert selected.schema == {"timestamp": pl.Datetime("us")}
    assert selected.item() == HALF_PAST


def test_select_timestamp_takes_a_date_as_its_midnight() -> None:
    frame = pl.DataFrame({"time": [date(2013, 6, 3)]})
    assert frame.select(select_timestamp("time", pl.Date())).item() == datetime(2013, 6, 3)


@pytest.mark.parametrize("dtype", [pl.Int64(), pl.Time(), pl.Duration(), pl.Boolean()])
def test_select_timestamp_refuses_what_holds_no_stamps(dtype: pl.DataType) -> None:
    with pytest.raises(UserError, match=r"column 'tstp' holds .*, expected time stamps"):
        select_timestamp("tstp", dtype)


def test_strip_text_makes_an_empty_cell_null() -> None:
    frame = pl.DataFrame({"cell": [" a b\r", "  ", "", None]})
    assert frame.select(strip_text("cell")).to_series().to_list() == ["a b", None, None, None]
    times = pl.DataFrame({"cell": [time(1, 30)]})
    assert times.select(strip_text("cell")).schema["cell"] == pl.String
