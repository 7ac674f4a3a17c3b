"""Ingest delivered readings."""

from typing import Annotated

from prefect.runtime import flow_run
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as Row
from rich.text import Text

from flows import flow
from tasks import storage
from tasks.ingest.commit import IngestError, IngestReceipt, commit_ingest
from tasks.ingest.delivered_files import DeliveredTable, estimate_row_count
from tasks.ingest.discovery import discover_tables
from tasks.ingest.staging import (
    ProgressCallback,
    StagedTable,
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
    """The run's name: the first source and how many more."""
    first, *more = flow_run.parameters["sources"]
    return f"ingest {first}" + (f" and {len(more)} more" if more else "")


@flow(name="ingest", flow_run_name=format_run_name)
def ingest(
    sources: Sources,
    weather: ReferencePath = None,
    holidays: ReferencePath = None,
    households: ReferencePath = None,
    tariffs: ReferencePath = None,
) -> IngestReceipt:
    """Bring delivered readings and what lies beside them into the lake.

    Raises:
        IngestError: something could not be read; everything else is in the lake.
    """
    with record_run("ingest") as record, storage.hold_write_lock():
        found = discover_tables(
            sources,
            {
                "weather": weather,
                "holidays": holidays,
                "households": households,
                "tariffs": tariffs,
            },
        )
        with _build_progress_bar() as bar:
            staged = _stage_all_tables(found.reading_tables, bar)
            months = plan_months(staged)
            merged = merge_months(months, _add_progress_row(bar, "months merged", len(months)))
            receipt = commit_ingest(found, staged, merged)
        _record_receipt(receipt, record)
        if receipt.failures:
            raise IngestError(receipt)
    return receipt


class _RateColumn(ProgressColumn):
    """How much is done a second."""

    def render(self, task: Row) -> Text:
        """A row's pace, nothing before there is one."""
        pace = task.finished_speed or task.speed
        return Text(f"{pace:,.0f}/s" if pace else "")


def _build_progress_bar() -> Progress:
    """A progress bar where a person watches."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,}"),
        _RateColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _add_progress_row(bar: Progress, description: str, total: int) -> ProgressCallback:
    """A row of the bar, and how to tell it that so many more are done."""
    row = bar.add_task(description, total=total)
    return lambda count: bar.advance(row, count)


def _stage_all_tables(tables: list[DeliveredTable], bar: Progress) -> list[StagedTable]:
    rows = _add_progress_row(bar, "rows read", sum(map(estimate_row_count, tables)))
    files = _add_progress_row(bar, "files", len(tables))
    staged = []
    for group in group_tables(tables):
        staged += stage_tables(group, rows)
        files(len(group))
    return staged


def _record_receipt(receipt: IngestReceipt, record: RunRecord) -> None:
    record.rows_in, record.rows_kept = receipt.rows_in, receipt.rows_kept
    record.rows_quarantined = receipt.rows_quarantined
    record.first_night, record.last_night = receipt.first_night, receipt.last_night
    publish_artifact("ingest", receipt.markdown())
