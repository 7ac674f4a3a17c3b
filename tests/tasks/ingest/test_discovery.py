"""Tables in and beside a delivery are recognised by their columns alone."""

from datetime import date, datetime
from pathlib import Path

import polars as pl
import pytest

from tasks import storage
from tests.deliveries import build_rows, ingest_sources, write_csv

WEATHER = "summary,time,temperature,humidity"
HOUSEHOLDS = "LCLid,stdorToU,Acorn,Acorn_grouped,file"
REFERENCE_TABLES = ("households", "weather", "holidays", "tariffs")


def _write_reference_tables(directory: Path) -> None:
    write_csv(
        directory / "x1.csv",
        ["Clear,2013-06-03 01:00:00,10.5,0.9", "Clear,2013-06-03 00:00:00,9.25,"],
        WEATHER,
    )
    write_csv(directory / "x2.csv", ['MAC000001,ToU,ACORN-,ACORN-,"block_0\r"'], HOUSEHOLDS)
    write_csv(directory / "x3.csv", ['2013-06-03,"A holiday\r"'], "Bank holidays,Type")
    write_csv(
        directory / "x4.csv",
        ['"2013-06-03 00:00:00","Low\r"', '"2013-06-03 00:30:00","High\r"'],
        "TariffDateTime,Tariff",
    )


def _check_reference_tables() -> None:
    assert storage.read_table("weather").rows() == [
        (datetime(2013, 6, 3, 0), 9.25, None),
        (datetime(2013, 6, 3, 1), 10.5, pytest.approx(0.9)),
    ]
    assert storage.read_table("households").rows() == [("MAC000001", "ToU", "ACORN-", "ACORN-")]
    assert storage.read_table("holidays").rows() == [(date(2013, 6, 3), "A holiday")]
    assert storage.read_table("tariffs").get_column("price").to_list() == ["Low", "High"]


@pytest.mark.parametrize("place", ["in", "in/deep/er", "."])
def test_reference_tables_are_found_in_the_directory_or_beside_the_file(
    home: Path, tmp_path: Path, place: str
) -> None:
    source = write_csv(tmp_path / "in/a.csv", build_rows({0: 0.1}))
    _write_reference_tables(tmp_path / place)
    ingest_sources(source if place == "." else source.parent)
    _check_reference_tables()


def test_reference_option_replaces_discovered_tables(home: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in/a.csv", build_rows({0: 0.1}))
    _write_reference_tables(tmp_path / "far")
    write_csv(tmp_path / "in/near.csv", ["Dull,2013-06-03 00:00:00,-3,0.5"], WEATHER)
    ingest_sources(
        source,
        weather=str(tmp_path / "far/x1.csv"),
        households=str(tmp_path / "far/x2.csv"),
        holidays=str(tmp_path / "far/x3.csv"),
        tariffs=str(tmp_path / "far/x4.csv"),
    )
    _check_reference_tables()


def test_reference_tables_with_meterwatch_columns_are_read(home: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in/a.csv", build_rows({0: 0.1}))
    _write_reference_tables(tmp_path / "in")
    ingest_sources(source)
    write_csv(tmp_path / "again/b.csv", build_rows({1: 0.1}))
    for name in REFERENCE_TABLES:
        storage.read_table(name).write_parquet(tmp_path / f"again/{name}.parquet")
    receipt = ingest_sources(tmp_path / "again")
    assert receipt.changed_references == ()
    _check_reference_tables()


def test_later_reference_rows_replace_by_key_and_equal_ones_write_nothing(
    home: Path, tmp_path: Path
) -> None:
    write_csv(tmp_path / "1/a.csv", build_rows({0: 0.1}))
    write_csv(
        tmp_path / "1/w.csv",
        ["x,2013-06-03 00:00:00,1,0.5", "x,2013-06-03 01:00:00,2,0.5"],
        WEATHER,
    )
    write_csv(tmp_path / "2/b.csv", build_rows({1: 0.1}))
    write_csv(
        tmp_path / "2/w.csv",
        ["x,2013-06-03 01:00:00,3,0.5", "x,2013-06-03 02:00:00,4,0.5"],
        WEATHER,
    )
    ingest_sources(tmp_path / "1")
    assert ingest_sources(tmp_path / "2").changed_references == ("weather",)
    assert storage.read_table("weather").get_column("temperature_c").to_list() == [1, 3, 4]
    write_csv(tmp_path / "2/c.csv", build_rows({2: 0.1}))
    assert ingest_sources(tmp_path / "2").changed_references == ()


def test_register_adds_households_and_attributes_from_readings(home: Path, tmp_path: Path) -> None:
    write_csv(
        tmp_path / "1/a.csv",
        [f"MAC000002,ToU,{at},0.1,ACORN-E,Affluent" for at in ("2013-06-03", "2013-06-04")],
        "LCLid,stdorToU,DateTime,KWH/hh,Acorn,Acorn_grouped",
    )
    ingest_sources(tmp_path / "1")
    write_csv(
        tmp_path / "2/b.csv", build_rows({5: 0.1}, "MAC000002") + build_rows({5: 0.1}, "MAC000007")
    )
    ingest_sources(tmp_path / "2")
    assert storage.read_table("households").rows() == [
        ("MAC000002", "ToU", "ACORN-E", "Affluent"),
        ("MAC000007", None, None, None),
    ]


def test_unrelated_files_in_a_directory_are_ignored(home: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "in/a.csv", build_rows({0: 0.1}))
    write_csv(
        tmp_path / "in/acorn_details.csv",
        ["a,b,c,1"],
        "MAIN CATEGORIES,CATEGORIES,REFERENCE,ACORN-A",
    )
    write_csv(tmp_path / "in/prices.csv", ["1,2"], "year,price")
    write_csv(tmp_path / "in/.hidden.csv", ["1,2"], "LCLid,price")
    (tmp_path / "in/README.md").write_text("hello")
    truth = {"household_id": ["MAC1"], "night": [date(2013, 6, 3)], "kind": ["spike"]}
    pl.DataFrame(truth).write_parquet(tmp_path / "in/truth.parquet")
    receipt = ingest_sources(tmp_path / "in")
    assert receipt.files == ("a.csv",)
    assert [line.split(":")[0] for line in receipt.ignored_files] == ["prices.csv"]


def test_source_matched_twice_is_ingested_once(home: Path, tmp_path: Path) -> None:
    a = write_csv(tmp_path / "in/a.csv", build_rows({0: 0.1}))
    write_csv(tmp_path / "in/deep/b.csv", build_rows({1: 0.1}))
    receipt = ingest_sources(tmp_path / "in/**/*.csv", a, tmp_path / "in")
    assert receipt.files == ("a.csv", "b.csv")


def test_state_of_the_home_is_not_ingested(home: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", build_rows({0: 0.1}))
    ingest_sources(tmp_path)
    receipt = ingest_sources(tmp_path)
    assert (receipt.already_ingested, receipt.ignored_files) == (("a.csv",), ())


def test_landing_directory_inside_the_home_is_ingested(home: Path) -> None:
    write_csv(home / "landing/a.csv", build_rows({0: 0.1}))
    assert ingest_sources(home / "landing").rows_kept == 1


def test_every_csv_member_of_a_zip_is_a_table(home: Path, tmp_path: Path) -> None:
    import zipfile

    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in/x.zip", "w") as archive:
        for path in (
            write_csv(tmp_path / "b.csv", build_rows({0: 0.1})),
            write_csv(tmp_path / "a.csv", build_rows({0: 0.2})),
        ):
            archive.write(path, f"halfhourly/{path.name}")
        archive.write(write_csv(tmp_path / "w.csv", ["x,2013-06-03,1,0.5"], WEATHER), "w.csv")
        archive.writestr("notes.txt", "hello")
    receipt = ingest_sources(tmp_path / "in")
    assert receipt.files == ("x.zip/halfhourly/a.csv", "x.zip/halfhourly/b.csv")
    assert storage.read_table("weather").height == 1
    superseded = storage.read_table("quarantine").select("value", "rule", "file").row(0)
    assert superseded == ("0.2", "superseded", "x.zip/halfhourly/a.csv")
