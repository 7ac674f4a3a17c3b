"""Record in the ledger of runs what ran, when, and what it did."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Literal
from uuid import uuid4

import polars as pl

from ml.schemas import Runs
from tasks import storage

RunState = Literal["completed", "failed"]


@dataclass
class RunRecord:
    """A row of the ledger; a flow fills it in as it goes, so that a failed run has a part of it.

    `first_night` and `last_night` are the nights it was about; `rows_*` are delivered readings and
    stay None for runs that ingest nothing.
    """

    verb: str
    first_night: date | None = None
    last_night: date | None = None
    rows_in: int | None = None
    rows_kept: int | None = None
    rows_quarantined: int | None = None
    model_version: str | None = None
    message: str | None = None


@contextmanager
def record_run(
    verb: str, first_night: date | None = None, last_night: date | None = None
) -> Iterator[RunRecord]:
    """Write one row to the ledger when the block ends: completed, or failed with the error's text.

    The error is raised again.
    """
    record = RunRecord(verb, first_night, last_night)
    started_utc = _now_utc()
    try:
        yield record
    except BaseException as error:  # an interrupt is a failed run too
        record.message = str(error) or type(error).__name__
        _write_run_record(record, started_utc, state="failed")
        raise
    _write_run_record(record, started_utc, state="completed")


def _write_run_record(record: RunRecord, started_utc: datetime, state: RunState) -> None:
    # Sorts by time; the random part keeps runs of one second apart.
    run_id = f"{started_utc:%Y%m%dT%H%M%S}-{uuid4().hex[:8]}"
    row = asdict(record) | {
        "run_id": run_id,
        "started_utc": started_utc,
        "finished_utc": _now_utc(),
        "state": state,
    }
    schema = {name: column.dtype for name, column in Runs.columns().items()}
    storage.replace_ledger_entry("runs", run_id, pl.DataFrame([row], schema=schema))


def _now_utc() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
