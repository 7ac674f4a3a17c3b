"""The ledger of runs: one row a run, whatever became of it."""

from datetime import date
from pathlib import Path

import pytest

from ml.errors import UserError
from tasks import lake
from tasks.runs import recorded

pytestmark = pytest.mark.usefixtures("home")
NIGHT = date(2014, 2, 2)


def test_a_run_leaves_what_it_said_of_itself() -> None:
    with recorded("score", NIGHT, NIGHT) as record:
        record.model_version = "3"
    row = lake.read("runs").row(0, named=True)
    assert (row["verb"], row["state"], row["model_version"]) == ("score", "completed", "3")
    assert (row["first_night"], row["last_night"]) == (NIGHT, NIGHT)
    assert row["started_utc"] <= row["finished_utc"]


@pytest.mark.parametrize(
    ("error", "message"),
    [(UserError("no champion yet"), "no champion yet"), (KeyboardInterrupt(), "KeyboardInterrupt")],
)
def test_a_run_that_fails_or_is_stopped_is_recorded_and_fails(
    error: BaseException, message: str
) -> None:
    def run() -> None:
        with recorded("train") as record:
            record.rows_in = 5
            raise error

    with pytest.raises(type(error)):
        run()
    row = lake.read("runs").row(0, named=True)
    assert (row["state"], row["message"], row["rows_in"]) == ("failed", message, 5)


def test_runs_of_the_same_moment_do_not_replace_each_other(home: Path) -> None:
    for _ in range(5):
        with recorded("check"):
            pass
    assert lake.read("runs").height == 5
