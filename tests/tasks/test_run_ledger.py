"""The ledger of runs: one row a run, whatever became of it."""

from datetime import date
from pathlib import Path

import pytest

from ml.errors import UserError
from tasks import storage
from tasks.run_ledger import record_run

pytestmark = pytest.mark.usefixtures("home")
NIGHT = date(2014, 2, 2)


def test_completed_run_is_recorded_with_its_fields() -> None:
    with record_run("score", NIGHT, NIGHT) as record:
        record.model_version = "3"
    row = storage.read_table("runs").row(0, named=True)
    assert (row["verb"], row["state"], row["model_version"]) == ("score", "completed", "3")
    assert (row["first_night"], row["last_night"]) == (NIGHT, NIGHT)
    assert row["started_utc"] <= row["finished_utc"]


@pytest.mark.parametrize(
    ("error", "message"),
    [(UserError("no champion yet"), "no champion yet"), (KeyboardInterrupt(), "KeyboardInterrupt")],
)
def test_failed_or_interrupted_run_is_recorded_and_reraised(
    error: BaseException, message: str
) -> None:
    def run() -> None:
        with record_run("train") as record:
            record.rows_in = 5
            raise error

    with pytest.raises(type(error)):
        run()
    row = storage.read_table("runs").row(0, named=True)
    assert (row["state"], row["message"], row["rows_in"]) == ("failed", message, 5)


def test_concurrent_runs_have_distinct_ledger_entries(home: Path) -> None:
    for _ in range(5):
        with record_run("check"):
            pass
    assert storage.read_table("runs").height == 5
