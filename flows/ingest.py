"""Ingest delivered readings."""

from typing import Annotated

from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from tasks import storage
from tasks.ingest.commit import IngestError, IngestReceipt, commit_ingest
from tasks.ingest.delivered_files import DeliveredTable, estimate_row_count
from tasks.ingest.discovery import discover_tables
from tasks.ingest.progress import ingest_progress
from tasks.ingest.staging import (
    MergedMonth,
    StagedTable,
    count_threads,
    group_tables,
    merge_months,
    plan_months,
    stage_tables,
)
from tasks.reports import publish_artifact
from tasks.run_ledger import RunRecord, record_run

Sources = Annotated[
    list[str],
    Field(min_length=1, description="files, directories or globs of delivered readings"),
]
ReferencePath = Annotated[
    str | None, Field(description="a file of this kind; empty: what lies beside the readings")
]


def format_run_name() -> str:
    """Return the run's name: the first source and how many more."""
    first, *more = flow_run.parameters["sources"]
    return f"ingest {first}" + (f" and {len(more)} more" if more else "")


# Without a limit Prefect would merge all months at once, each with its few hundred MB.
@flow(
    name="ingest",
    flow_run_name=format_run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=count_threads()),  # type: ignore[arg-type]
)
def ingest(
    sources: Sources,
    weather: ReferencePath = None,
    holidays: ReferencePath = None,
    households: ReferencePath = None,
    tariffs: ReferencePath = None,
) -> IngestReceipt:
    """Bring delivered readings and the reference tables beside them into the lake.

    Raises:
        IngestError: something could not be read; everything else is in the lake.
    """
    with record_run("ingest") as record, storage.hold_write_lock():
        discovered = discover_tables(
            sources,
            {
                "weather": weather,
                "holidays": holidays,
                "households": households,
                "tariffs": tariffs,
            },
        )
        with ingest_progress.show():
            staged = _stage_all_tables(discovered.reading_tables)
            merged = _merge_all_months(staged)
            receipt = commit_ingest(discovered, staged, merged)
        _record_receipt(receipt, record)
        if receipt.failures:
            raise IngestError(receipt)
    return receipt


def _stage_all_tables(tables: list[DeliveredTable]) -> list[StagedTable]:
    ingest_progress.expect("rows read", sum(map(estimate_row_count, tables)))
    ingest_progress.expect("files", len(tables))
    staged = []
    for group in group_tables(tables):
        staged += stage_tables(group)
        ingest_progress.advance("files", len(group))
    return staged


def _merge_all_months(staged: list[StagedTable]) -> list[MergedMonth]:
    months = plan_months(staged)
    ingest_progress.expect("months merged", len(months))
    return merge_months(months)


def _record_receipt(receipt: IngestReceipt, record: RunRecord) -> None:
    record.rows_in = receipt.rows_in
    record.rows_kept = receipt.rows_kept
    record.rows_quarantined = receipt.rows_quarantined
    record.first_night = receipt.first_night
    record.last_night = receipt.last_night
    publish_artifact("ingest", receipt.markdown())
