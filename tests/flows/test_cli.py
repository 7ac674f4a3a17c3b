"""The command line: exit status, one clear line for a mistake, small verbs that are small.

Most tests call `main` in this process, which spares each the seconds of an interpreter.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from flows.cli import main
from ml.simulation.environment import FleetConfig
from tasks import paths, storage
from tasks.simulation import simulate
from tests import small_home

METERWATCH_COMMAND = Path(sys.executable).with_name("meterwatch")
RunCommand = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def meterwatch(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Call the command line: exit status, standard output, standard error."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        return status, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small fleet as it is delivered."""
    out = tmp_path_factory.mktemp("delivered") / "fleet"
    simulate(out, FleetConfig(households=3, days=3))
    return out


def read_lake_files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in paths.list_table_files("days")}


@pytest.mark.parametrize(
    "arguments",
    [
        ["nix"],
        ["score", "yesterday"],
        ["score", "2013-02-30"],
        ["score", "--nix"],
        ["score", "--from", "2013-01-01"],
        ["score", "2013-01-01", "--from", "2013-01-01", "--to", "2013-01-02"],
        ["nightly", "30/12/2013"],
        ["ingest"],
        ["simulate"],
        ["simulate", "out", "--households", "0"],
        ["simulate", "out", "--days", "many"],
        ["train", "--until", "soon"],
        ["train", "--seed", "-1"],
        ["train", "--seed", str(2**31)],
        ["train", "--max-epochs", "0"],
        ["train", "--model", "crystal_ball"],
        ["query"],
        ["query", "SELECT 1", "--format", "xlsx"],
        ["query", "top_anomalies", "--param", "limit"],
    ],
    ids=" ".join,
)
def test_wrong_usage_prints_one_line_and_exits_2(
    arguments: list[str], meterwatch: RunCommand
) -> None:
    status, _, said = meterwatch(*arguments)
    assert status == 2
    assert said.startswith("meterwatch: ")
    assert said.count("\n") == 1


BAD_FILES = {
    "missing": (None, "no such file"),
    "empty.csv": (b"", "is empty"),
    "truncated.parquet": (b"PAR1" + bytes(100), "not a whole Parquet file"),
    "other_table.csv": (b"Acorn,Score\nA,1\n", "expected LCLid, tstp, energy"),
    "colour.csv": (
        b"LCLid,tstp,energy(kWh/hh),colour\nM1,2013-01-01 00:00:00,0.2,red\n",
        "unknown column 'colour'",
    ),
    "header.csv": (b"LCLid,tstp,energy(kWh/hh)\n", "no rows"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_unreadable_file_is_named_and_leaves_the_lake_unchanged(
    name: str, meterwatch: RunCommand, delivered: Path, tmp_path: Path
) -> None:
    meterwatch("ingest", str(delivered))
    before = read_lake_files()
    content, said_of_it = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    status, _, said = meterwatch("ingest", str(tmp_path / name))
    assert status == 1
    assert said.count("\n") == 1
    assert name in said
    assert said_of_it in said
    assert before
    assert read_lake_files() == before


def test_readable_files_are_ingested_beside_an_unreadable_one(
    meterwatch: RunCommand, delivered: Path, tmp_path: Path
) -> None:
    landing = tmp_path / "landing"
    shutil.copytree(delivered, landing)
    (landing / "broken.parquet").write_bytes(b"PAR1" + bytes(100))
    status, told, said = meterwatch("ingest", str(landing))
    assert status == 1
    assert said.startswith("meterwatch: broken.parquet: ")
    assert "3 households" in told
    assert storage.read_table("days")["household_id"].n_unique() == 3


def test_score_without_readings_or_champion_names_the_missing_step(
    meterwatch: RunCommand, delivered: Path
) -> None:
    status, _, said = meterwatch("score")
    assert (status, said.count("\n")) == (1, 1)
    assert "meterwatch ingest" in said
    meterwatch("ingest", str(delivered))
    status, _, said = meterwatch("score")
    assert (status, said.count("\n")) == (1, 1)
    assert "meterwatch train" in said


def test_scoring_a_night_outside_the_lake_fails_in_one_line(
    meterwatch: RunCommand, delivered: Path
) -> None:
    meterwatch("ingest", str(delivered))
    status, _, said = meterwatch("score", "2031-01-01")
    assert (status, said.count("\n")) == (1, 1)
    assert "2031-01-01" in said


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT * FROM nix", "SELECT 1; SELECT 2", "nix"])
def test_invalid_query_fails_in_one_line(sql: str, meterwatch: RunCommand) -> None:
    status, told, said = meterwatch("query", sql)
    assert (status, told, said.count("\n")) == (1, "", 1)


def test_invalid_setting_is_named_in_one_line(
    meterwatch: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERWATCH_ALERT_BUDGET", "few")
    status, _, said = meterwatch("status")
    assert (status, said.count("\n")) == (1, 1)
    assert "METERWATCH_ALERT_BUDGET" in said


def test_home_that_is_a_file_is_refused(
    meterwatch: RunCommand, delivered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("METERWATCH_HOME", str(tmp_path / "file"))
    status, _, said = meterwatch("ingest", str(delivered))
    assert (status, said.count("\n")) == (1, 1)
    assert str(tmp_path / "file") in said


def test_ingest_prints_delivered_and_kept_row_counts(
    meterwatch: RunCommand, delivered: Path
) -> None:
    status, told, said = meterwatch("ingest", str(delivered))
    receipt = storage.read_table("deliveries").sum().row(0, named=True)
    assert (status, said) == (0, "")
    assert f"{receipt['rows_in']:,} rows delivered, {receipt['rows_kept']:,} kept" in told


def test_simulated_fleet_can_be_ingested(meterwatch: RunCommand, tmp_path: Path) -> None:
    options = ["--households", "2", "--days", "2", "--start", "2013-12-30", "--seed", "7"]
    assert meterwatch("simulate", str(tmp_path / "fleet"), *options)[0] == 0
    assert meterwatch("ingest", str(tmp_path / "fleet"))[0] == 0
    assert storage.read_night_range() == (date(2013, 12, 30), date(2013, 12, 31))


def test_check_prints_the_offending_rows_and_fails(meterwatch: RunCommand) -> None:
    small_home.write_small_home()
    status, told, said = meterwatch("check")
    assert (status, said) == (0, "")
    assert "checks passed" in told
    scores = small_home.build_scores().filter(night=small_home.NIGHTS[3], household_id="A")
    storage.replace_night("scores", small_home.NIGHTS[3], scores)
    status, told, said = meterwatch("check")
    assert (status, said.count("\n")) == (1, 1)
    assert "offending rows" in told


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_query_result_is_the_same_in_every_output_format(
    form: str, meterwatch: RunCommand, tmp_path: Path
) -> None:
    small_home.write_small_home()
    out = tmp_path / f"answer.{form}"
    parameters = ["--param", "night=2014-02-01", "--param", "limit=1"]
    assert meterwatch(
        "query", "top_anomalies", *parameters, "--format", form, "--out", str(out)
    ) == (0, "", "")
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        "csv": pl.read_csv,
        "json": pl.read_json,
        "parquet": pl.read_parquet,
    }
    assert readers[form](out)["household_id"].to_list() == ["C"]


def test_list_column_is_one_csv_cell(meterwatch: RunCommand) -> None:
    _, told, _ = meterwatch("query", "SELECT [1.5, NULL, 2] AS kwh", "--format", "csv")
    assert told == "kwh\n1.5  2.0\n"
    _, told, _ = meterwatch("query", "SELECT [1, 2]::INTEGER[2] AS pair", "--format", "csv")
    assert told == "pair\n1 2\n"


def test_unwritable_output_file_is_named_in_one_line(
    meterwatch: RunCommand, tmp_path: Path
) -> None:
    out = tmp_path / "nix" / "answer.csv"
    status, _, said = meterwatch("query", "SELECT 1", "--format", "csv", "--out", str(out))
    assert (status, said.count("\n")) == (1, 1)
    assert str(out) in said


def test_status_prints_lake_coverage_and_last_nights(meterwatch: RunCommand) -> None:
    small_home.write_small_home()
    status, told, _ = meterwatch("status")
    assert status == 0
    assert "2014-01-30" in told
    assert "2014-02-02" in told


def build_environment(home: Path) -> dict[str, str]:
    return {**os.environ, "METERWATCH_HOME": str(home), "DO_NOT_TRACK": "1"}


def test_installed_command_prints_one_error_line(home: Path) -> None:
    done = subprocess.run(
        [METERWATCH_COMMAND, "ingest", "nix.csv"],
        env=build_environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "meterwatch: nix.csv: no such file or directory\n"


def test_query_imports_no_heavy_library(home: Path) -> None:
    """Asking a question must not wait for the trainer, the registry or the orchestrator."""
    code = (
        "import sys; from flows.cli import main\n"
        "assert main(['query', 'SELECT 1']) == 0\n"
        "print(sorted({'torch', 'prefect', 'mlflow', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=build_environment(home),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_closed_output_pipe_is_not_an_error(home: Path) -> None:
    command = f"{METERWATCH_COMMAND} query 'SELECT * FROM range(1000000)' --format csv | true"
    done = subprocess.run(
        ["bash", "-c", command],
        env=build_environment(home),
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_interrupt_ends_without_a_traceback(home: Path) -> None:
    """A long simulation is stopped once it has begun to write."""
    out = home.parent / "fleet"
    process = subprocess.Popen(
        [METERWATCH_COMMAND, "simulate", str(out), "--days", "500"],
        env=build_environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not out.with_name(".fleet.partial").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")
    assert not out.exists()
