"""Delivered files become the right lake, quarantine, ledger and register."""

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.ingest.timestamps import parse_timestamps
from ml.schemas import QUARANTINE_RULES
from tasks import paths, queries, storage
from tasks.ingest.delivered_files import DeliveredTable, estimate_row_count, list_tables
from tasks.ingest.progress import ingest_progress
from tasks.ingest.staging import group_tables, stage_tables
from tests.deliveries import (
    KAGGLE_HEADER,
    START,
    build_rows,
    format_timestamp,
    hash_files,
    ingest_sources,
    load_quarantine,
    load_readings,
    write_csv,
)

DATASTORE = "LCLid,stdorToU,DateTime,KWH/hh (per half hour) "
ONE = {("MAC000001", format_timestamp(0)): 0.163, ("MAC000001", format_timestamp(1)): 0.25}


def test_datastore_household_has_exact_row_and_rule_counts(home: Path, london: Path) -> None:
    receipt = ingest_sources(london / "raw/LCL_MAC000002.csv")
    assert (receipt.rows_in, receipt.rows_kept) == (24_158, 24_140)
    assert receipt.quarantined_by_rule == {"duplicate": 17, "null": 1}
    assert receipt.n_missing_half_hours == 52
    bad = storage.read_table("quarantine").filter(pl.col("rule") == "null").row(0)
    expected = datetime(2012, 12, 19, 12, 37, 27)
    assert bad == ("MAC000002", expected, "Null", "null", "LCL_MAC000002.csv")


def test_equal_readings_of_two_formats_are_duplicates_not_superseded(
    home: Path, london: Path
) -> None:
    receipt = ingest_sources(london)
    assert receipt.rows_in == 3_775_636 + 52_558 + 24_158
    # The raw files repeat 52,558 and 17,520 readings of 2013 that the Parquet files hold, as equal
    # Float32; 17 rows are double within the Datastore file.
    assert receipt.quarantined_by_rule == {"duplicate": 52_558 + 17_520 + 17, "null": 1}
    n_readings = storage.scan_table("days").select(
        pl.col("kwh").arr.eval(pl.element().is_not_null()).arr.sum()
    )
    assert n_readings.sum().collect().item() == receipt.rows_kept
    register, weather = storage.read_table("households"), storage.read_table("weather")
    assert (register.height, weather.height, storage.read_table("holidays").height) == (
        5_566,
        21_165,
        25,
    )
    assert storage.read_table("tariffs").get_column("price").value_counts().sort(
        "count"
    ).rows() == [
        ("High", 788),
        ("Low", 1_660),
        ("Normal", 15_072),
    ]
    assert receipt.failures == receipt.ignored_files == ()


def test_ingesting_the_same_file_again_writes_nothing(home: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in/a.csv", build_rows({0: 0.1, 1: "Null", 2: 0.3, 3: 99}))
    ingest_sources(source)
    before = {path: path.stat().st_mtime_ns for path in (home / "lake").rglob("*.parquet")}
    receipt = ingest_sources(source.parent)
    assert receipt.already_ingested == ("a.csv",)
    assert receipt.rows_in == 0
    assert before == {path: path.stat().st_mtime_ns for path in (home / "lake").rglob("*.parquet")}
    assert not (home / "staging").exists()


@pytest.mark.parametrize(
    ("name", "header", "lines"),
    [
        ("a.csv", KAGGLE_HEADER, ["MAC000001,{0}, 0.163 ", " MAC000001 , {1} ,0.25"]),
        ("a.csv", DATASTORE, ["MAC000001,Std,{0}.0000000, 0.163 \r", "MAC000001,Std,{1}.0,0.25\r"]),
        (
            "a.csv.gz",
            DATASTORE + ",Acorn,Acorn_grouped",
            ["MAC000001,ToU,{0},0.163,ACORN-A,Affluent", "MAC000001,ToU,{1},0.25,ACORN-A,Affluent"],
        ),
        ("a.csv", "LCLid,DateTime,KWH/hh", ["MAC000001,{0},0.163", "", "MAC000001,{1},0.25", ""]),
        (
            "a.zip",
            '\ufeff"LCLid" , "tstp" ,energy(kWh/hh)',
            ['"MAC000001","{0}","0.163"', "MAC000001,{1},.25"],
        ),
        (
            "A.CSV",
            "household_id,ts_utc,kwh",
            [
                "MAC000001,2013-06-03T00:00:00.000000+0000,0.163",
                "MAC000001,2013-06-03T01:30+01:00,0.25",
            ],
        ),
        (
            "a.csv",
            "kwh,household_id,ts_utc",
            ["0.163,MAC000001,2013-06-03", "2.5e-1,MAC000001,2013-06-03T00:30"],
        ),
    ],
)
def test_delivered_csv_format_is_read(
    home: Path, tmp_path: Path, name: str, header: str, lines: list[str]
) -> None:
    written = [line.format(format_timestamp(0), format_timestamp(1)) for line in lines]
    receipt = ingest_sources(write_csv(tmp_path / name, written, header))
    assert load_readings() == ONE
    assert (receipt.rows_in, receipt.rows_quarantined) == (2, 0)


@pytest.mark.parametrize("unit", ["ns", "us", "ms"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/London"])
@pytest.mark.parametrize("dtype", [pl.Float32, pl.Float64, pl.Decimal(10, 3), pl.String])
def test_parquet_column_type_is_read(
    home: Path, tmp_path: Path, unit: str, zone: str | None, dtype: pl.DataType
) -> None:
    ts = pl.Series([START, START.replace(minute=30)], dtype=pl.Datetime(unit))  # type: ignore[arg-type]
    aware = ts.dt.replace_time_zone("UTC").dt.convert_time_zone(zone) if zone else ts
    value = pl.Series(["0.163", "0.25"]).cast(dtype)
    frame = pl.DataFrame({"household_id": ["MAC000001"] * 2, "ts_utc": aware, "kwh": value})
    frame.write_parquet(tmp_path / "a.parquet")
    ingest_sources(tmp_path / "a.parquet")
    assert load_readings() == ONE


# value, stamp, household, and the rule that the row breaks first in the order of QUARANTINE_RULES
BROKEN = [
    ("Null", "2013-06-03 12:37:27", "", "null"),
    ("", format_timestamp(0), "MAC000001", "null"),
    (" ", "nonsense", "MAC000001", "null"),
    ("abc", "2013-06-03 00:10:00", "MAC000001", "not_a_number"),
    ("NaN", format_timestamp(0), "MAC000001", "not_a_number"),
    ("inf", format_timestamp(0), "MAC000001", "not_a_number"),
    ("0.5", "01/06/2013 00:00", "MAC000001", "bad_timestamp"),
    ("4294967.295", "nonsense", "MAC000001", "sentinel"),
    ("2147483647", format_timestamp(0), "MAC000001", "sentinel"),
    ("0.5", "", "MAC000001", "bad_timestamp"),
    ("0.5", "2013-02-30 00:00:00", "MAC000001", "bad_timestamp"),
    ("0.5", "9999-01-01 00:00:00", "MAC000001", "bad_timestamp"),
    ("-0.5", "2013-06-03 00:29:59", "MAC000001", "off_grid"),
    ("0.5", "2013-06-03 00:30:00.5000000", "MAC000001", "off_grid"),
    ("-0.001", format_timestamp(0), "", "negative"),
    ("12.001", format_timestamp(0), "", "above_limit"),
    ("0.5", format_timestamp(0), " ", "no_household"),
]


@pytest.mark.parametrize(("value", "at", "household", "rule"), BROKEN)
def test_row_is_quarantined_under_the_first_rule_it_breaks(
    home: Path, tmp_path: Path, value: str, at: str, household: str, rule: str
) -> None:
    source = write_csv(
        tmp_path / "a.csv", [(household, at, value), *build_rows({40: 12, 41: "-0"})]
    )
    receipt = ingest_sources(source)
    assert receipt.quarantined_by_rule == {rule: 1}
    assert load_quarantine()[0][1:] == (value.strip() or None, rule, "a.csv")
    assert [*load_readings().values()] == [12, 0]


def test_every_single_row_rule_has_a_case() -> None:
    assert {rule for *_, rule in BROKEN} | {"duplicate", "superseded"} == set(QUARANTINE_RULES)


def test_later_delivery_supersedes_the_earlier_reading(home: Path, tmp_path: Path) -> None:
    ingest_sources(write_csv(tmp_path / "1/z.csv", build_rows({0: 0.1, 1: 0.2, 60: 0.3})))
    ingest_sources(write_csv(tmp_path / "2/other.csv", build_rows({0: 7}, "MAC000009")))
    receipt = ingest_sources(write_csv(tmp_path / "3/a.csv", build_rows({0: 0.1, 1: 0.9})))
    assert load_readings()["MAC000001", format_timestamp(1)] == 0.9
    assert load_quarantine() == [(format_timestamp(1), "0.2", "superseded", "z.csv")]
    # The reading given again is kept; the superseded one was not among this call's rows.
    assert (receipt.rows_in, receipt.rows_kept, receipt.n_earlier_superseded) == (2, 2, 1)
    ingest_sources(write_csv(tmp_path / "4/b.csv", build_rows({1: 0.2})))
    assert load_readings()["MAC000001", format_timestamp(1)] == 0.2
    assert load_quarantine()[1] == (format_timestamp(1), "0.9", "superseded", "a.csv")


@pytest.mark.parametrize("sources", [("b.csv", "z/a.csv"), ("z", "b.csv"), (".",)])
def test_later_file_name_supersedes_within_one_delivery(
    home: Path, tmp_path: Path, sources: tuple[str, ...]
) -> None:
    write_csv(tmp_path / "z/a.csv", build_rows({0: 0.9, 1: 0.5}))
    write_csv(tmp_path / "b.csv", build_rows({0: 0.1, 1: 0.5}))
    receipt = ingest_sources(*(tmp_path / source for source in sources))
    assert load_readings() == {
        ("MAC000001", format_timestamp(0)): 0.1,
        ("MAC000001", format_timestamp(1)): 0.5,
    }
    assert [(at, value, rule, Path(file).name) for at, value, rule, file in load_quarantine()] == [
        (format_timestamp(0), "0.9", "superseded", "a.csv"),
        (format_timestamp(1), "0.5", "duplicate", "b.csv"),
    ]
    assert (receipt.rows_in, receipt.rows_kept) == (4, 2)
    assert receipt.quarantined_by_rule == {"duplicate": 1, "superseded": 1}


def test_negative_zero_is_stored_as_zero(home: Path, tmp_path: Path) -> None:
    ingest_sources(write_csv(tmp_path / "a.csv", build_rows({0: "-0", 1: "0"})))
    assert str(storage.read_table("days").item(0, "kwh").head(2).to_list()) == "[0.0, 0.0]"


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_largest_reading_of_a_file_is_kept_in_any_row_order(
    home: Path, tmp_path: Path, order: tuple[int, ...]
) -> None:
    lines = (
        build_rows({0: 0.5}) + build_rows({0: 0.7}) + build_rows({0: 0.7}) + build_rows({0: 0.6})
    )
    ingest_sources(write_csv(tmp_path / "a.csv", [lines[i] for i in order]))
    assert load_readings() == {("MAC000001", format_timestamp(0)): 0.7}
    assert sorted(row[1:3] for row in load_quarantine()) == [
        ("0.5", "superseded"),
        ("0.6", "superseded"),
        ("0.7", "duplicate"),
    ]


def test_readings_equal_as_float32_do_not_collide(home: Path, tmp_path: Path) -> None:
    ingest_sources(write_csv(tmp_path / "1.csv", build_rows({0: "6.5279999"})))
    receipt = ingest_sources(write_csv(tmp_path / "2.csv", build_rows({0: "6.528"})))
    assert (receipt.n_earlier_superseded, receipt.changed_months) == (0, ())


def test_only_changed_months_are_written(home: Path, tmp_path: Path) -> None:
    ingest_sources(write_csv(tmp_path / "1.csv", build_rows({0: 0.1, 1_400: 0.2, 2_900: 0.3})))
    written = {path: path.stat().st_mtime_ns for path in paths.list_table_files("days")}
    receipt = ingest_sources(write_csv(tmp_path / "2.csv", build_rows({0: 0.1, 2_900: 0.4})))
    assert receipt.changed_months == ("2013-08",)
    # 29th July's slot is the lake's: of slots 0 to 2,900 three are there.
    assert receipt.n_missing_half_hours == 2_901 - 3
    changed = [
        path for path in paths.list_table_files("days") if path.stat().st_mtime_ns != written[path]
    ]
    assert [path.parent.name for path in changed] == ["month=2013-08"]


def test_delivery_ledger_counts_kept_and_quarantined_rows(home: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "in/a.csv", build_rows({0: 0.1, 1: "Null", 50: 0.2}))
    write_csv(tmp_path / "in/b.zip", build_rows({0: 0.1, 1: 0.4}) + build_rows({7: 3}, "MAC000002"))
    write_csv(tmp_path / "in/copy.csv", build_rows({0: 0.1, 1: "Null", 50: 0.2}))
    receipt = ingest_sources(tmp_path / "in")
    entries = storage.read_table("deliveries").sort("file").drop("delivery", "ingested_at_utc")
    assert entries.rows() == [
        ("a.csv", 3, 2, 1, 0, 1, START, datetime(2013, 6, 4, 1)),
        ("b.zip/readings.csv", 3, 2, 1, 0, 2, START, datetime(2013, 6, 3, 3, 30)),
    ]
    assert receipt.already_ingested == ("copy.csv",)
    assert receipt.rows_in == receipt.rows_kept + receipt.rows_quarantined == 6


def test_overlapping_deliveries_count_repeated_rows(home: Path, tmp_path: Path) -> None:
    ingest_sources(write_csv(tmp_path / "1/a.csv", build_rows({0: 0.1, 1: 0.2, 2: "Null"})))
    ingest_sources(
        write_csv(tmp_path / "2/a.csv", build_rows({0: 0.1, 1: 0.9, 3: 0.3}) + build_rows({0: 0.1}))
    )
    ingest_sources(
        write_csv(tmp_path / "3/b.csv", build_rows({0: 0.1, 1: 0.2})),
        write_csv(tmp_path / "3/c.csv", build_rows({1: 0.9})),
    )
    entries = storage.read_table("deliveries").sort("ingested_at_utc")
    # The second a.csv repeats slot 0 of the first. Of the third call, b.csv repeats slot 0; its
    # 0.2 is superseded by c.csv, which repeats the lake's 0.9.
    assert entries.get_column("rows_repeated").to_list() == [0, 1, 1, 1]
    assert queries.run_checks()["rows_add_up"].is_empty()


@st.composite
def deliveries(draw: st.DrawFn) -> list[list[tuple[str, int, str]]]:
    """Rows without conflicts but with dirt and duplicates, cut into files in some order."""
    cells = st.tuples(st.sampled_from(["MAC1", "MAC2", "MAC3"]), st.integers(0, 3_000))
    half_hours = draw(st.lists(cells, min_size=1, max_size=40))
    lines = [(household, slot, f"{(slot * 7 + 1) % 997 / 1000}") for household, slot in half_hours]
    dirt = [(household, slot, "Null") for household, slot in half_hours[:3]]
    mixed = draw(st.permutations(lines + dirt))
    cuts = sorted(draw(st.lists(st.integers(0, len(mixed)), max_size=4)))
    return [mixed[a:b] for a, b in zip([0, *cuts], [*cuts, len(mixed)], strict=True) if a < b]


def _deliver(path: Path, lines: list[tuple[str, int, str]], how: int) -> None:
    table = [(household, format_timestamp(slot), value) for household, slot, value in lines]
    if how < 3:
        write_csv(path.with_suffix((".csv", ".csv.gz", ".zip")[how]), table)
        return
    frame = pl.DataFrame(table, schema=["LCLid", "tstp", "energy(kWh/hh)"], orient="row")
    typed = frame.with_columns(
        pl.col("tstp").str.to_datetime(), pl.col("energy(kWh/hh)").cast(pl.Float64, strict=False)
    )
    (frame if how == 3 else typed).write_parquet(path.with_suffix(".parquet"))


STAMPS = [
    ("2013-06-03 00:30:00", datetime(2013, 6, 3, 0, 30)),
    (" 2013-06-03 00:30 ", datetime(2013, 6, 3, 0, 30)),
    ("2013-06-03T00:30:00.0000000", datetime(2013, 6, 3, 0, 30)),
    ("2013-06-03 01:30:00+01:00", datetime(2013, 6, 3, 0, 30)),
    ("2013-06-03T00:30Z", datetime(2013, 6, 3, 0, 30)),
    ("2013-06-03 05", datetime(2013, 6, 3, 5)),
    ("2013-06-03", datetime(2013, 6, 3)),
    ("9999-12-31 00:00:00", datetime(9999, 12, 31)),
    ("03/06/2013 00:30", None),
    ("nonsense", None),
    ("", None),
    (None, None),
]


@given(st.lists(st.sampled_from(STAMPS), min_size=1, max_size=8))
def test_timestamp_is_parsed_independently_of_its_neighbours(
    cells: list[tuple[str | None, datetime | None]],
) -> None:
    parsed = parse_timestamps(pl.Series([cell for cell, _ in cells], dtype=pl.String))
    assert parsed.to_list() == [meant for _, meant in cells]


def test_half_hours_a_century_apart_are_not_laid_out_densely(home: Path, tmp_path: Path) -> None:
    far = {"2000-01-01 00:00:00": 0.1, "2099-12-31 23:30:00": 0.2}
    households = [f"MAC{i:06d}" for i in range(60)]
    expected = {(name, at): kwh for name in households for at, kwh in far.items()}
    ingest_sources(
        write_csv(
            tmp_path / "a.csv", [(name, at, f"{kwh}") for (name, at), kwh in expected.items()]
        )
    )
    assert load_readings() == expected


@given(deliveries(), st.lists(st.integers(0, 4), min_size=5, max_size=5), st.booleans())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_lake_does_not_depend_on_file_split_row_order_or_container(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[list[tuple[str, int, str]]],
    ways: list[int],
    one_by_one: bool,
) -> None:
    root = tmp_path_factory.mktemp("cut")
    (root / "cut").mkdir()
    for i, (lines, how) in enumerate(zip(files, ways, strict=False)):
        _deliver(root / f"cut/{i}", lines, how)
    (root / "whole").mkdir()
    _deliver(root / "whole/all", sorted(line for lines in files for line in lines), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METERWATCH_HOME", str(root / "one"))
        ingest_sources(root / "whole")
        patch.setenv("METERWATCH_HOME", str(root / "other"))
        cut = sorted((root / "cut").iterdir(), reverse=True)
        for source in cut if one_by_one else [root / "cut"]:
            ingest_sources(source)
    for part in ("lake/days", "lake/households.parquet"):
        assert hash_files(root / "one", part) == hash_files(root / "other", part) != {}


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.zip"])
def test_estimated_row_count_is_close_to_rows_read(home: Path, tmp_path: Path, name: str) -> None:
    source = write_csv(tmp_path / name, build_rows({slot: slot % 9 / 10 for slot in range(20_000)}))
    (table,) = list_tables(source, name)
    with storage.hold_write_lock(), ingest_progress.show() as bars:
        ingest_progress.expect("rows read", estimate_row_count(table))
        (group,) = group_tables([table])
        (staged,) = stage_tables(group)
        assert bars.tasks[0].completed == staged.rows_in == 20_000
    assert estimate_row_count(table) == pytest.approx(20_000, rel=0.02)


def test_estimated_row_count_of_an_unreadable_file_is_zero(tmp_path: Path) -> None:
    whole = write_csv(tmp_path / "a.csv.gz", build_rows({0: 0.1, 1: 0.2})).read_bytes()
    (tmp_path / "b.csv.gz").write_bytes(whole[: len(whole) // 2])
    assert estimate_row_count(DeliveredTable(tmp_path / "b.csv.gz", "b.csv.gz", "gzip")) == 0
