"""Ingest delivered readings."""

from collections.abc import Iterator
from typing import Annotated

from prefect.runtime import flow_run
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flows import flow
from tasks import lake
from tasks.delivered import Table
from tasks.discover import discover
from tasks.ingest import Staged, groups, merge, plan, stage
from tasks.report import leave
from tasks.runs import Record, recorded
from tasks.settle import IngestError, IngestReceipt, settle

Sources = Annotated[
    list[str],
    Field(min_length=1, description="files, directories or globs of delivered readings"),
]
Companion = Annotated[
    str | None, Field(description="a file of this kind; empty: what lies beside the readings")
]


def name_of_sources() -> str:
    """The run's name: the first source and how many more."""
    first, *more = flow_run.parameters["sources"]
    return f"ingest {first}" + (f" and {len(more)} more" if more else "")


@flow(name="ingest", flow_run_name=name_of_sources)
def ingest(
    sources: Sources,
    weather: Companion = None,
    holidays: Companion = None,
    households: Companion = None,
    tariffs: Companion = None,
) -> IngestReceipt:
    """Bring delivered readings and what lies beside them into the lake.

    Raises:
        IngestError: something could not be read; everything else is in the lake.
    """
    with recorded("ingest") as record, lake.writing():
        found = discover(
            sources,
            {
                "weather": weather,
                "holidays": holidays,
                "households": households,
                "tariffs": tariffs,
            },
        )
        staged = list(_stage_all(groups(found.readings)))
        receipt = settle(found, staged, merge(plan(staged)))
        _report(receipt, record)
        if receipt.failures:
            raise IngestError(receipt)
    return receipt


def _stage_all(batches: list[list[tuple[int, Table]]]) -> Iterator[Staged]:
    """Stage every group, with a progress bar where a person watches."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rows]:,} rows, {task.fields[pace]:,.0f} rows/s"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        files = bar.add_task("files", total=sum(map(len, batches)), rows=0, pace=0.0)
        rows = 0
        for group in batches:
            staged = stage(group)
            rows += sum(each.rows_in for each in staged)
            elapsed = bar.tasks[0].elapsed or 1e-9
            bar.update(files, advance=len(group), rows=rows, pace=rows / elapsed)
            yield from staged


def _report(receipt: IngestReceipt, record: Record) -> None:
    record.rows_in, record.rows_kept = receipt.rows_in, receipt.rows_kept
    record.rows_set_aside = receipt.rows_set_aside
    record.first_night, record.last_night = receipt.first_night, receipt.last_night
    leave("ingest", receipt.markdown())
