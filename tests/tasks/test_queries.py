"""The home asked in SQL: what views hold, what is refused, what readers see while others write."""

import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.parquet
import pytest

from flows.ingest import ingest
from ml.errors import UserError
from tasks import paths, queries, storage
from tests import small_home
from tests.small_home import NIGHTS

FEB_1, FEB_2 = NIGHTS[2:]


@pytest.fixture
def small(home: Path) -> Path:
    small_home.write_small_home()
    return home


@pytest.mark.usefixtures("small")
def test_readings_view_has_a_row_per_half_hour_of_a_delivered_night() -> None:
    expected = [
        (household, datetime.combine(night, datetime.min.time()) + timedelta(minutes=30 * i), kwh)
        for (household, night), profile in sorted(small_home.PROFILES_KWH.items())
        for i, kwh in enumerate(profile)
    ]
    found = queries.run_query("SELECT * FROM readings ORDER BY household_id, ts_utc")
    assert found.columns == ["household_id", "ts_utc", "kwh"]
    assert found.rows() == expected


@pytest.mark.parametrize(
    ("condition", "n_rows", "n_readings"),
    [
        ("ts_utc = '2014-01-31 01:00'", 1, 0),  # A alone, and its missing half-hour
        # The evening of 31 January is A's alone, the morning of 1 February that of A and C.
        ("ts_utc >= '2014-01-31 22:00' AND ts_utc < '2014-02-01 01:00'", 4 + 2 * 2, 8),
        ("household_id = 'B'", 2 * 48, 49),
        ("household_id = 'B' AND ts_utc::DATE = '2014-02-02'", 48, 10),
        ("ts_utc > '2015-01-01'", 0, 0),
    ],
)
@pytest.mark.usefixtures("small")
def test_readings_view_can_be_filtered(condition: str, n_rows: int, n_readings: int) -> None:
    sql = f"SELECT count(*), count(kwh) FROM readings WHERE {condition}"
    assert queries.run_query(sql).row(0) == (n_rows, n_readings)


@pytest.mark.usefixtures("small")
def test_profiles_view_has_daily_count_sum_and_peak() -> None:
    sql = "SELECT n_readings, day_kwh, peak_kwh, kwh FROM profiles WHERE household_id = $household"
    rows = queries.run_query(f"{sql} ORDER BY night", {"household": "B"}).rows()
    # 39 and 10 readings of 1 kWh.
    assert [row[:3] for row in rows] == [(39, 39.0, 1.0), (10, 10.0, 1.0)]
    assert rows[0][3] == [None] * 9 + [1.0] * 39


def _spoil_kwh(path: Path) -> None:
    """Overwrite the readings of a lake file; its statistics stay."""
    column = pyarrow.parquet.read_metadata(path).row_group(0).column(3)
    assert column.path_in_schema.startswith("kwh")
    start = column.dictionary_page_offset or column.data_page_offset
    raw = bytearray(path.read_bytes())
    raw[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(raw)


def test_timestamp_filter_reads_only_the_needed_nights(home: Path) -> None:
    names = pl.Series("household_id", [f"MAC{i:06d}" for i in range(100)])
    for night in (NIGHTS[0], FEB_1):
        rows = (
            small_home.build_household_nights()
            .filter(household_id="A", night=night)
            .drop("household_id")
        )
        storage.replace_month(night, rows.join(names.to_frame(), how="cross"))
    _spoil_kwh(home / "lake/days/month=2014-02/days.parquet")
    sql = "SELECT sum(kwh) FROM readings WHERE ts_utc >= '2014-01-30' AND ts_utc < $end"
    assert queries.run_query(sql, {"end": "2014-01-31"}).item() == 100 * 48 * 0.5
    with pytest.raises(UserError):
        queries.run_query(sql, {"end": "2014-02-02"})


@pytest.mark.parametrize("table", ["scores", "anomalies"])
def test_night_filter_opens_only_that_partition(small: Path, table: str) -> None:
    (small / f"tables/{table}/night={FEB_2}/{table}.parquet").write_bytes(b"no Parquet at all")
    sql = f"SELECT DISTINCT night FROM {table}"
    assert queries.run_query(f"{sql} WHERE night = '{FEB_1}'").rows() == [(FEB_1,)]
    with pytest.raises(UserError, match=rf"night={FEB_2}/{table}\.parquet"):
        queries.run_query(sql)


def test_empty_home_has_every_view_with_its_column_types(home: Path) -> None:
    for name in paths.TABLE_GLOBS:
        schema = storage.TABLE_SCHEMAS[name]
        found = queries.run_query(f"SELECT * FROM {name}")
        assert found.is_empty()
        written = pl.from_arrow(schema.create_empty().to_arrow())
        for column, dtype in written.schema.items():
            kind = pl.List(pl.Float32) if isinstance(dtype, pl.Array) else dtype
            kind = pl.String if isinstance(dtype, (pl.Enum, pl.Categorical)) else kind
            assert found.schema[column] == kind, f"{name}.{column}"
    assert queries.run_query("SELECT * FROM readings").schema == {
        "household_id": pl.String(),
        "ts_utc": pl.Datetime("us"),
        "kwh": pl.Float32(),
    }
    assert not home.exists()


@pytest.mark.usefixtures("home")
def test_empty_home_answers_every_query_and_check() -> None:
    given = {"household_history": {"household_id": "A"}}
    for name in queries.list_queries():
        assert queries.run_query(name, given.get(name, {})).height == (name == "lake_coverage")
    assert not any(rows.height for rows in queries.run_checks().values())
    assert queries.collect_status()["Lake"]["household_nights"].item() == 0


@pytest.mark.parametrize(
    ("asked", "given", "message"),
    [
        (
            "top_anomaly",
            {},
            r"no query named 'top_anomaly'; there are: alert_load, .*top_anomalies",
        ),
        ("", {}, "no query named ''"),
        ("top_anomalies", {"nigth": "1"}, "has no parameter 'nigth'; it takes: of_night, n"),
        ("quarantine_by_rule", {"night": "1"}, "has no parameter 'night'; it takes: none"),
        ("top_anomalies", {"night": "soon"}, "top_anomalies: of_night is 'soon', expected DATE"),
        ("top_anomalies", {"n": "x"}, "top_anomalies: n is 'x', expected INTEGER"),
        ("top_anomalies", {"limit": "x"}, "top_anomalies: n is 'x', expected INTEGER"),
        ("top_anomalies", {"n": "-1"}, "cannot be negative"),
        ("household_history", {}, "household_history needs --param of_household=..."),
        ("SELCT 1", {}, r'Parser Error: syntax error at or near "SELCT"'),
        ("SELECT * FROM nothing", {}, "Table with name nothing does not exist"),
        ("SELECT $a", {}, "a"),
        ("SELECT 1", {"a": "1"}, "Expected 0, got 1"),
        ("SELECT 1; SELECT 2", {}, "a query is one SELECT over the views"),
        ("-- nothing", {}, "a query is one SELECT over the views"),
        ("DROP VIEW scores", {}, "a query is one SELECT over the views"),
        ("COPY scores TO 'scores.csv'", {}, "a query is one SELECT over the views"),
        ("SET threads = 1", {}, "a query is one SELECT over the views"),
        ("SELECT * FROM read_text('/etc/hostname')", {}, "disabled by configuration"),
        ("SELECT * FROM glob('/*')", {}, "disabled by configuration"),
    ],
)
@pytest.mark.usefixtures("small")
def test_invalid_query_raises_a_one_line_error(
    asked: str, given: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        queries.run_query(asked, given)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("small")
def test_every_duckdb_type_is_returned() -> None:
    sql = """
    SELECT finished_utc - started_utc AS took, [INTERVAL 1 DAY] AS "a ""b", verb,
        (SELECT sum(nights) FROM episodes) AS nights, '{"a": 1}'::JSON AS json, NULL AS nothing
    FROM runs WHERE verb = 'score'"""
    rows = [("00:00:01.5", "[1 day]", "score", 3, '{"a": 1}', None)]
    assert queries.run_query(sql).rows() == rows
    assert queries.run_query(sql).columns[1] == 'a "b'
    assert queries.run_query("SELECT 1 AS a, 2 AS a").rows() == [(1, 2)]


@pytest.mark.usefixtures("small")
def test_user_sql_cannot_write() -> None:
    with queries.open_database() as connection:
        for sql in ("SET enable_external_access = true", "COPY scores TO '/tmp/scores.csv'"):
            with pytest.raises(duckdb.Error):
                connection.execute(sql)


@pytest.mark.usefixtures("small")
def test_named_queries_describe_their_parameters() -> None:
    question = queries.list_queries()["top_anomalies"]
    assert question.description.startswith("the most urgent anomalies of a night")
    assert [(p.name, p.sql_type) for p in question.parameters] == [
        ("of_night", "DATE"),
        ("n", "INTEGER"),
    ]
    described = [*queries.list_queries().values(), *queries.list_checks().values()]
    assert all(10 < len(each.description) < 100 for each in described)


@pytest.mark.usefixtures("small")
def test_no_macro_parameter_is_named_as_a_column_of_a_view() -> None:
    columns = {
        column
        for view in [*paths.TABLE_GLOBS, "readings", "profiles"]
        for column in queries.run_query(f"SELECT * FROM {view} LIMIT 0").columns
    }
    for named_query in queries.list_queries().values():
        assert columns.isdisjoint(parameter.name for parameter in named_query.parameters)
        assert {queries.PARAMETER_ALIASES.get(name, name) for name in columns} >= {
            parameter.name for parameter in named_query.parameters if parameter.name != "n"
        }


@pytest.mark.usefixtures("small")
def test_named_query_is_a_table_inside_user_sql() -> None:
    sql = "SELECT household_id FROM top_anomalies(n := 5) JOIN households USING (household_id)"
    assert queries.run_query(f"{sql} ORDER BY ALL")["household_id"].to_list() == ["A", "C"]
    earlier = "SELECT household_id FROM top_anomalies(of_night := DATE '2014-02-01')"
    assert queries.run_query(earlier)["household_id"].to_list() == ["C"]


FORMER_COLUMNS = {
    ("nights", f"tables/nights/night={FEB_1}/nights.parquet"): {
        "common_movement": "fleet_shift",
        "tail_height": "tail_inflation",
        "tail_height_learnt": "tail_inflation_training",
    },
    ("deliveries", "lake/deliveries/first.parquet"): {"rows_set_aside": "rows_quarantined"},
    ("runs", "runs/r1.parquet"): {"rows_set_aside": "rows_quarantined"},
}


@pytest.mark.parametrize(("table", "file"), FORMER_COLUMNS)
def test_view_reads_columns_under_their_former_names(small: Path, table: str, file: str) -> None:
    expected = queries.run_query(f"SELECT * FROM {table}")
    former_names = {new: old for old, new in FORMER_COLUMNS[table, file].items()}
    storage.replace_parquet(small / file, pl.read_parquet(small / file).rename(former_names))
    assert queries.run_query(f"SELECT * FROM {table}").equals(expected)


@pytest.mark.parametrize("table", ["scores", "anomalies", "nights", "episodes"])
def test_column_that_an_older_night_lacks_is_null_in_its_view(small: Path, table: str) -> None:
    path = small / f"tables/{table}/night={FEB_1}/{table}.parquet"
    column = pl.read_parquet_schema(path).names()[-1]
    storage.replace_parquet(path, pl.read_parquet(path).drop(column))
    first_column = "first_night" if table == "episodes" else "night"
    found = queries.run_query(f"SELECT {first_column} AS night, {column} AS value FROM {table}")
    assert found.filter(night=FEB_1)["value"].is_null().all()
    assert not found.filter(night=FEB_2)["value"].is_null().any()


def test_column_and_reason_of_a_newer_release_do_not_break_a_view(small: Path) -> None:
    path = small / f"tables/scores/night={FEB_2}/scores.parquet"
    newer = pl.read_parquet(path).with_columns(
        pl.lit("meter_swap").alias("reason"), novelty=pl.lit(1)
    )
    storage.replace_parquet(path, newer)
    found = queries.run_query("SELECT DISTINCT reason FROM scores WHERE night = '2014-02-02'")
    assert found["reason"].to_list() == ["meter_swap"]


@pytest.mark.usefixtures("small")
def test_status_shows_champion_lake_nights_and_runs() -> None:
    assert queries.collect_status()["Champion"].is_empty()
    paths.champion_file().parent.mkdir()
    paths.champion_file().write_text('{"version": "3", "run_id": "abc"}')
    sections = queries.collect_status()
    assert sections["Champion"].rows() == [("3", "abc")]
    assert sections["Lake"]["readings"].item() == 336
    assert sections["Last nights"]["night"].to_list() == NIGHTS[::-1]
    assert sections["Last runs"]["verb"].to_list() == ["score", "ingest"]


def test_home_path_may_contain_special_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERWATCH_HOME", str(tmp_path / "o'neil [1] *"))
    small_home.write_small_home()
    assert queries.run_query("SELECT count(*) FROM scores").item() == 8
    assert not any(rows.height for rows in queries.run_checks().values())


def test_home_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METERWATCH_HOME", "data")
    small_home.write_small_home()
    assert queries.run_query("SELECT count(*) FROM scores").item() == 8


@pytest.mark.parametrize("table", ["scores", "anomalies", "episodes"])
def test_result_tables_are_readable_by_duckdb_polars_and_pyarrow(small: Path, table: str) -> None:
    written = {"scores": small_home.build_scores, "anomalies": small_home.build_anomalies}
    expected = written.get(table, small_home.build_episodes)()
    folder = small / "tables" / table
    pattern = f"{folder}/night=*/*.parquet"
    assert duckdb.sql(f"SELECT count(*) FROM '{pattern}'").fetchall() == [(expected.height,)]
    found = pl.read_parquet(pattern, hive_partitioning=False)
    assert found.sort("household_id", *expected.columns[1:2]).equals(
        expected.sort("household_id", *expected.columns[1:2])
    )
    # pyarrow, and so pandas, would take the partition key for text: the column is in the files too.
    plain = pyarrow.parquet.read_table(folder, partitioning=None)
    assert (plain.num_rows, plain.column_names) == (expected.height, expected.columns)


@pytest.mark.usefixtures("small")
def test_query_imports_no_heavy_library() -> None:
    for table in ("weather", "holidays", "tariffs"):
        storage.replace_reference_table(table, storage.TABLE_SCHEMAS[table].create_empty())
    storage.replace_ledger_entry("spans", "first", storage.TABLE_SCHEMAS["spans"].create_empty())
    heavy = "{'torch', 'mlflow', 'prefect', 'lightning', 'sqlalchemy', 'pandas', 'scipy'}"
    code = f"""
import sys
from tasks import queries
assert queries.run_query("top_anomalies").height == 2
print(sorted({heavy} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("home")
def test_rows_add_up_after_a_correction_of_a_real_household(london: Path, tmp_path: Path) -> None:
    delivered = london / "raw/LCL_MAC000002.csv"
    ingest.fn([str(delivered)])
    gaps = queries.run_query("gaps_by_household")
    # 24,158 rows less 17 duplicates and a Null; the publisher's file lacks 52 half-hours.
    assert gaps.select("readings", "missing").rows() == [(24_140, 52)]
    header, *rows = delivered.read_text().splitlines()
    again = [row for row in rows if "2013-01-0" in row]
    changed = [f"{row.rpartition(',')[0]},0.777" if i % 3 else row for i, row in enumerate(again)]
    correction = tmp_path / delivered.name
    correction.write_text("\n".join([header, *changed, changed[0]]))
    ingest.fn([str(correction)])
    assert queries.run_query("SELECT DISTINCT rule, file FROM quarantine ORDER BY rule").rows() == [
        (rule, delivered.name) for rule in ("duplicate", "null", "superseded")
    ]
    assert {name: n for name, rows in queries.run_checks().items() if (n := rows.height)} == {}


WRITER = """
import sys
from datetime import date
import polars as pl
from ml.schemas import Scores
from tasks import paths, storage

night, n = date(2014, 2, 2), 5567
dtypes = {name: column.dtype for name, column in Scores.columns().items()}
row = dict(night=night, status="missing", n_readings=0, is_anomaly=False)
rows = pl.DataFrame([row | {"household_id": f"MAC{i:06d}"} for i in range(n)], schema=dtypes)
for version in range(1_000_000):
    storage.replace_night("scores", night, rows.with_columns(model_version=pl.lit(str(version))))
    if version == 0:
        print("ready", flush=True)
"""


@pytest.mark.usefixtures("home")
def test_readers_see_whole_nights_while_a_writer_is_killed() -> None:
    sql = "SELECT count(*), count(DISTINCT model_version), max(model_version::INT) FROM scores"
    writer = subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        until, seen = time.monotonic() + 3, []
        while time.monotonic() < until:
            seen.append(queries.run_query(sql).row(0))
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
    seen.append(queries.run_query(sql).row(0))
    assert {row[:2] for row in seen} == {(5567, 1)}
    assert len({row[2] for row in seen}) > 2  # the writer did replace the night in between
    assert queries.run_checks()["files_in_place"].is_empty()
