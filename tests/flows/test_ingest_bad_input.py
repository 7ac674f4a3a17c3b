"""A file that cannot be read is named in one clear line, and nothing else is lost."""

import gzip
from pathlib import Path

import polars as pl
import pytest

from ml.errors import UserError
from tasks import storage
from tasks.ingest.commit import IngestError
from tests.deliveries import (
    KAGGLE_HEADER,
    build_rows,
    format_timestamp,
    hash_files,
    ingest_sources,
    load_readings,
    write_csv,
)

MANY = build_rows({slot: slot % 7 / 10 for slot in range(20_000)})
GOOD = {("MAC000009", format_timestamp(0)): 0.5}


def _missing(path: Path) -> Path:
    return path / "nowhere.csv"


def _empty(path: Path) -> Path:
    (path / "empty.csv").write_bytes(b"")
    return path / "empty.csv"


def _blank(path: Path) -> Path:
    (path / "blank.csv").write_bytes(b"\n\n")
    return path / "blank.csv"


def _header_only(path: Path) -> Path:
    return write_csv(path / "header.csv", [])


def _cut_parquet(path: Path, keep: slice, tail: int = 0) -> Path:
    frame = pl.DataFrame(MANY, schema=KAGGLE_HEADER.split(","), orient="row")
    frame.write_parquet(path / "cut.parquet", compression="uncompressed")
    whole = (path / "cut.parquet").read_bytes()
    (path / "cut.parquet").write_bytes(whole[keep] + (whole[-tail:] if tail else b""))
    return path / "cut.parquet"


def _cut_gzip(path: Path) -> Path:
    whole = write_csv(path / "cut.csv.gz", MANY).read_bytes()
    (path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    return path / "cut.csv.gz"


def _write(path: Path, name: str, content: bytes) -> Path:
    (path / name).write_bytes(content)
    return path / name


BAD = {
    "no such file": _missing,
    "is empty": _empty,
    " is empty": _blank,
    "no rows below its header": _header_only,
    "not a whole Parquet file": lambda path: _cut_parquet(path, slice(0, 9_000)),
    " not a whole Parquet file": lambda path: _cut_parquet(path, slice(0, 9_000), tail=2_000),
    "  not a whole Parquet file": lambda path: _write(path, "text.parquet", b"hello\n"),
    "is empty ": lambda path: _write(path, "none.parquet", b""),
    "cannot be read (Compressed file ended": _cut_gzip,
    "cannot be read (File is not a zip file": lambda path: _write(path, "x.zip", b"PK\x03\x04\0\0"),
    "cannot be read (invalid utf-8": lambda path: _write(
        path, "latin.csv", f"{KAGGLE_HEADER}\nMAC\xe9,{format_timestamp(0)},1\n".encode("latin-1")
    ),
    "no readings: its columns are 'year', 'price'": lambda path: write_csv(
        path / "other.csv", ["1,2"], "year,price"
    ),
    "holds Acorn profiles, not readings": lambda path: write_csv(
        path / "acorn.csv", ["a,b,c"], "MAIN CATEGORIES,CATEGORIES,REFERENCE"
    ),
    "unknown column 'note'; expected LCLid, tstp, energy(kWh/hh)": lambda path: write_csv(
        path / "note.csv", [f"MAC000001,{format_timestamp(0)},1,hi"], KAGGLE_HEADER + ",note"
    ),
    "unknown column 'energy', no column 'energy(kWh/hh)'": lambda path: write_csv(
        path / "energy.csv", [f"MAC000001,{format_timestamp(0)},1"], "LCLid,tstp,energy"
    ),
    "line 3 has 4 fields where the header has 3": lambda path: write_csv(
        path / "ragged.csv",
        [f"MAC000001,{format_timestamp(0)},1", f"MAC000001,{format_timestamp(1)},0,5", *MANY[:3]],
    ),
    "column 'tstp' holds Int64, expected time stamps": lambda path: _frame(
        path, LCLid=["MAC000001"], tstp=pl.Series([1]), **{"energy(kWh/hh)": pl.Series([1.0])}
    ),
    "column 'energy(kWh/hh)' holds Boolean, expected numbers": lambda path: _frame(
        path,
        LCLid=["MAC000001"],
        tstp=[format_timestamp(0)],
        **{"energy(kWh/hh)": pl.Series([True])},
    ),
}


def _frame(path: Path, **columns: pl.Series | list[str]) -> Path:
    pl.DataFrame(columns).write_parquet(path / "typed.parquet")
    return path / "typed.parquet"


@pytest.mark.parametrize("reason", BAD)
@pytest.mark.parametrize("is_first", [True, False])
def test_unreadable_file_is_reported_and_the_rest_is_ingested(
    home: Path, tmp_path: Path, reason: str, is_first: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = BAD[reason](tmp_path)
    good = write_csv(
        tmp_path / ("z.csv" if is_first else "A.csv"), build_rows({0: 0.5}, "MAC000009")
    )
    with pytest.raises(IngestError) as caught:
        ingest_sources(bad, good)
    (line,) = str(caught.value).splitlines()
    assert line.startswith((f"{bad.name}: ", f"{bad}: "))
    assert reason.strip() in line
    assert caught.value.receipt.failures == (line,)
    assert load_readings() == GOOD
    assert storage.read_table("deliveries").get_column("file").to_list() == [good.name]
    assert not (home / "staging").exists()
    assert capfd.readouterr().err == ""


def test_every_unreadable_file_is_reported_on_its_own_line(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        ingest_sources(_empty(tmp_path), _missing(tmp_path), _cut_gzip(tmp_path))
    assert len(str(caught.value).splitlines()) == 3


def test_failed_ingest_is_recorded_in_the_run_ledger(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        ingest_sources(
            _empty(tmp_path), write_csv(tmp_path / "z.csv", build_rows({0: 0.5}, "MAC000009"))
        )
    run = storage.read_table("runs").row(0, named=True)
    assert (run["verb"], run["state"], run["rows_kept"]) == ("ingest", "failed", 1)


def test_repaired_file_is_ingested(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        ingest_sources(
            write_csv(
                tmp_path / "a.csv",
                [*build_rows({0: 0.5}, "MAC000009"), f"MAC000009,{format_timestamp(1)},0,5"],
            )
        )
    assert load_readings() == {}
    ingest_sources(write_csv(tmp_path / "a.csv", build_rows({0: 0.5}, "MAC000009")))
    assert load_readings() == GOOD


def test_household_table_of_unknown_format_in_a_directory_fails(home: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "in/a.csv", build_rows({0: 0.5}, "MAC000009"))
    write_csv(tmp_path / "in/b.csv", ["MAC000001,1"], "LCLid,daily_kwh")
    with pytest.raises(UserError, match=r"^b\.csv: no readings"):
        ingest_sources(tmp_path / "in")
    assert load_readings() == GOOD


@pytest.mark.parametrize("name", ["", "weather.csv"])
def test_source_without_readings_is_refused(home: Path, tmp_path: Path, name: str) -> None:
    write_csv(tmp_path / "in/weather.csv", ["2013-06-03,1,0.5"], "time,temperature,humidity")
    with pytest.raises(UserError, match="holds no delivered readings"):
        ingest_sources(tmp_path / "in" / name)


@pytest.mark.parametrize(
    ("header", "line", "reason"),
    [
        ("time,temperature,humidity", "2013-06-03,warm,0.5", "a cell that is no number: 'warm'"),
        ("time,temperature,humidity", "soon,1,0.5", "a cell that is no time: 'soon'"),
        ("time,temperature,humidity", "2013-06-03,1,55", "humidity"),
        ("time,temperature,humidity", ",1,0.5", "column 'time' has empty cells"),
        ("TariffDateTime,Tariff", "2013-06-03,Dear", "none of Low, Normal, High: 'Dear'"),
    ],
)
def test_reference_table_with_an_invalid_cell_is_refused(
    home: Path, tmp_path: Path, header: str, line: str, reason: str
) -> None:
    write_csv(tmp_path / "in/a.csv", build_rows({0: 0.5}, "MAC000009"))
    write_csv(tmp_path / "in/beside.csv", [line], header)
    with pytest.raises(UserError, match=reason) as caught:
        ingest_sources(tmp_path / "in")
    assert str(caught.value).startswith("beside.csv: ")
    assert load_readings() == GOOD


def test_reference_option_of_the_wrong_kind_is_refused(home: Path, tmp_path: Path) -> None:
    good = write_csv(tmp_path / "in/a.csv", build_rows({0: 0.5}, "MAC000009"))
    prices = write_csv(tmp_path / "p.csv", ["2013-06-03,Low"], "TariffDateTime,Tariff")
    with pytest.raises(UserError) as caught:
        ingest_sources(good, weather=str(prices), holidays=str(tmp_path / "none.csv"))
    first, second = str(caught.value).splitlines()
    assert first == "p.csv: holds tariffs, not weather"
    assert second.endswith("none.csv: no such file")
    assert load_readings() == GOOD


def test_row_with_too_few_fields_is_quarantined(home: Path, tmp_path: Path) -> None:
    source = write_csv(
        tmp_path / "a.csv", [f"MAC000001,{format_timestamp(1)}", *build_rows({0: 0.5}, "MAC000009")]
    )
    assert ingest_sources(source).quarantined_by_rule == {"null": 1}


def test_unreadable_delivery_leaves_the_lake_unchanged(home: Path, tmp_path: Path) -> None:
    good = write_csv(tmp_path / "in/a.csv", build_rows({0: 0.5}, "MAC000009"))
    ingest_sources(good)
    before = hash_files(home)
    broken = _write(tmp_path, "b.csv.gz", gzip.compress(b"\x00" * 100))
    with pytest.raises(UserError):
        ingest_sources(broken)
    assert hash_files(home) == before
