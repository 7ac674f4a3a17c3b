"""Delivered files into the lake: stage each file, merge each month, settle the ledgers.

Everything is prepared beside the lake and published in one step, so a call that is killed leaves
the lake as it was, or is finished by the next one.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Final

import joblib  # type: ignore[import-untyped]
import polars as pl

from ml.errors import UserError
from ml.ingest.conflicts import (
    LAKE_RANK,
    DeliveredHouseholdNights,
    count_readings_in_spans,
    resolve_conflicts,
)
from ml.ingest.formats import HOUSEHOLD_ATTRIBUTES, recognise_format, select_readings
from ml.ingest.validation import (
    build_household_nights,
    collect_household_attributes,
    find_reading_spans,
    merge_reading_spans,
    validate_rows,
)
from ml.schemas import readings_as_array
from tasks import paths, storage, task
from tasks.ingest.delivered_files import (
    DeliveredTable,
    hash_content,
    iterate_batches,
    name_file_in_errors,
    scan_table,
)
from tasks.settings import get_settings

MAX_TASK_GROUPS: Final = 200
MIN_TABLES_PER_GROUP: Final = 8
MAX_THREADS: Final = 4

ProgressCallback = Callable[[int], None]
"""Hears how much more is done."""


@dataclass(frozen=True)
class StagedTable:
    """What staging one delivered file came to; `rank` is its place in the order of deliveries."""

    delivery_rank: int
    file: str
    delivery: str = ""
    rows_in: int = 0
    is_already_ingested: bool = False
    failure: str | None = None

    @property
    def is_new(self) -> bool:
        """Whether the file's rows wait to be merged."""
        return not self.is_already_ingested and self.failure is None


@dataclass(frozen=True)
class MergedMonth:
    """What merging one month came to.

    `n_present` counts readings within the call's spans, `repeated` by rank those the lake held.
    """

    month: date
    is_changed: bool
    n_readings_in_spans: int
    n_repeated_by_rank: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _StagingJob:
    """One file at work, and where its parts are kept."""

    delivery_rank: int
    directory: Path
    supply_limit_kwh: float
    on_progress: ProgressCallback


@dataclass(frozen=True)
class _StagedBatch:
    """What a batch of a file's rows came to."""

    rows_in: int
    spans: pl.DataFrame | None = None
    household_attributes: pl.DataFrame | None = None


def group_tables(tables: list[DeliveredTable]) -> list[list[tuple[int, DeliveredTable]]]:
    """Ranked tables in at most so many groups that each may be a recorded task."""
    ranked = list(enumerate(tables))
    size = max(MIN_TABLES_PER_GROUP, -(-len(ranked) // MAX_TASK_GROUPS))
    return [ranked[start : start + size] for start in range(0, len(ranked), size)]


@task(name="stage", retries=2, task_run_name="stage {group[0][1].file}")
def stage_tables(
    group: list[tuple[int, DeliveredTable]], on_progress: ProgressCallback
) -> list[StagedTable]:
    """Stage delivered tables as household-days a month; one that cannot be read leaves nothing.

    `tell` hears of every batch of rows.
    """
    deliveries = make_thread_pool()(joblib.delayed(_try_hash_content)(table) for _, table in group)
    first: list[tuple[int, DeliveredTable, str | UserError]] = []
    again: list[tuple[int, DeliveredTable, str | UserError]] = []
    for (rank, table), delivery in zip(group, deliveries, strict=True):
        is_copy = any(delivery == other for _, _, other in first)
        (again if is_copy else first).append((rank, table, delivery))
    staged = make_thread_pool()(
        joblib.delayed(_try_stage_table)(*each, on_progress) for each in first
    )
    # A copy waits for the file before it, which may be one that cannot be read.
    return sorted(
        staged + [_try_stage_table(*each, on_progress) for each in again],
        key=attrgetter("delivery_rank"),
    )


def _try_hash_content(table: DeliveredTable) -> str | UserError:
    try:
        return hash_content(table)
    except UserError as error:
        return error


def _try_stage_table(
    delivery_rank: int,
    table: DeliveredTable,
    delivery: str | UserError,
    on_progress: ProgressCallback,
) -> StagedTable:
    shutil.rmtree(staged_table_dir(delivery_rank), ignore_errors=True)
    try:
        if isinstance(delivery, UserError):
            raise delivery
        return _stage_new_table(delivery_rank, table, delivery, on_progress)
    except UserError as error:
        shutil.rmtree(staged_table_dir(delivery_rank), ignore_errors=True)
        return StagedTable(delivery_rank, table.file, failure=str(error))


def _stage_new_table(
    delivery_rank: int, table: DeliveredTable, delivery: str, on_progress: ProgressCallback
) -> StagedTable:
    if _is_already_ingested(delivery, delivery_rank):
        return StagedTable(delivery_rank, table.file, delivery, is_already_ingested=True)
    work = _StagingJob(
        delivery_rank, staged_table_dir(delivery_rank), get_settings().supply_limit_kwh, on_progress
    )
    with scan_table(table, work.directory) as frame:
        every = iterate_batches(table, _scan_readings(table, frame))
        parts: list[_StagedBatch] = make_thread_pool()(
            joblib.delayed(_stage_batch)(work, part, rows) for part, rows in enumerate(every)
        )
    if not (rows_in := sum(part.rows_in for part in parts)):
        raise UserError(f"{table.file}: has no rows below its header")
    if found := [part.spans for part in parts if part.spans is not None]:
        store_staged(merge_reading_spans(found), work.directory / "spans.arrow")
    if told := [
        part.household_attributes for part in parts if part.household_attributes is not None
    ]:
        store_staged(
            pl.concat(told).group_by("household_id").max().sort("household_id"),
            work.directory / "household_attributes.arrow",
        )
    _delivery_claim_path(delivery).parent.mkdir(exist_ok=True, parents=True)
    _delivery_claim_path(delivery).write_text(str(delivery_rank))
    return StagedTable(delivery_rank, table.file, delivery, rows_in)


def make_thread_pool() -> joblib.Parallel:
    """Work in threads, little at once: what is read ahead stays in memory."""
    n_jobs = min(MAX_THREADS, joblib.cpu_count())
    return joblib.Parallel(n_jobs, backend="threading", pre_dispatch="n_jobs + 1")


def _scan_readings(table: DeliveredTable, frame: pl.LazyFrame) -> pl.LazyFrame:
    with name_file_in_errors(table.file):
        return select_readings(frame, recognise_format(frame.collect_schema()))


def _is_already_ingested(delivery: str, delivery_rank: int) -> bool:
    """Whether this content is in the ledger, or a file before this one in the call holds it."""
    if any(path.stem == delivery for path in paths.list_table_files("deliveries")):
        return True
    return _delivery_claim_path(delivery).exists() and _delivery_claim_path(
        delivery
    ).read_text() != str(delivery_rank)


def _stage_batch(job: _StagingJob, batch_number: int, rows: pl.DataFrame) -> _StagedBatch:
    sifted = validate_rows(rows, job.supply_limit_kwh)
    job.on_progress(rows.height)
    if sifted.quarantined_rows.height:
        store_staged(
            sifted.quarantined_rows, job.directory / f"quarantined/{batch_number:06d}.arrow"
        )
    if not len(sifted.kwh):
        return _StagedBatch(rows.height)
    days, taken = build_household_nights(sifted)
    _store_months(job, batch_number, "household_nights", days)
    _store_months(job, batch_number, "collisions", taken)
    names = [name for name in HOUSEHOLD_ATTRIBUTES if name in rows.columns]
    return _StagedBatch(
        rows.height,
        find_reading_spans(days),
        collect_household_attributes(sifted, names) if names else None,
    )


def _store_months(job: _StagingJob, batch_number: int, name: str, frame: pl.DataFrame) -> None:
    """Keep the rows of each month, which lie together."""
    runs, rows, first = frame.get_column("month").rle().to_list(), frame.drop("month"), 0
    for run in runs:
        path = job.directory / f"{name}/month={run['value']:%Y-%m}/{batch_number:06d}.arrow"
        store_staged(rows[first : first + run["len"]], path)
        first += run["len"]


def plan_months(staged: Iterable[StagedTable]) -> list[date]:
    """The months to merge: every one from the first to the last stamp that has readings."""
    new = [each.delivery_rank for each in staged if each.is_new]
    found = [
        load_staged(path) for path in _list_staged_files(f"{rank:06d}/spans.arrow" for rank in new)
    ]
    if not found:
        return []
    call = merge_reading_spans(found)
    store_staged(call, paths.staging_dir() / "spans.arrow")
    given = {
        path.parent.name for path in _list_staged_files(["*/household_nights/month=*/*.arrow"])
    }
    held = {path.parent.name for path in paths.list_table_files("days")}
    low, high = min(given), max(given)
    months = given | {name for name in held if low <= name <= high}
    return [date.fromisoformat(f"{name.removeprefix('month=')}-01") for name in sorted(months)]


@task(name="merge", retries=2)
def merge_months(months: list[date], on_progress: ProgressCallback) -> list[MergedMonth]:
    """Lay the staged household-days of months over the lake's; prepare those that it changes.

    `tell` hears of every month.
    """
    every: list[MergedMonth] = make_thread_pool()(
        joblib.delayed(_merge_and_report)(month, on_progress) for month in months
    )
    return every


def _merge_and_report(month: date, on_progress: ProgressCallback) -> MergedMonth:
    merged = _merge_month(month)
    on_progress(1)
    return merged


def _merge_month(month: date) -> MergedMonth:
    call = load_staged(paths.staging_dir() / "spans.arrow")
    held = _load_lake_month(month)
    given = _load_staged_month(month)
    if not given:
        return MergedMonth(
            month, is_changed=False, n_readings_in_spans=count_readings_in_spans(held, call)
        )
    resolved = resolve_conflicts(
        [
            DeliveredHouseholdNights(LAKE_RANK, held.with_columns(kwh=readings_as_array(held))),
            *given,
        ]
    )
    if resolved.losing_readings.height:
        store_staged(
            resolved.losing_readings,
            paths.staging_dir() / f"losing_readings/month={month:%Y-%m}.arrow",
        )
    is_changed = not resolved.household_nights.equals(held)
    if is_changed:
        storage.replace_month(month, resolved.household_nights, root=paths.prepared_dir())
    return MergedMonth(
        month,
        is_changed,
        count_readings_in_spans(resolved.household_nights, call),
        resolved.n_repeated_by_rank,
    )


def _load_staged_month(month: date) -> list[DeliveredHouseholdNights]:
    """What the staged files give of a month, in their order and that of their parts."""
    given = []
    for path in _list_staged_files([f"*/household_nights/month={month:%Y-%m}/*.arrow"]):
        rank, taken = (
            path.parents[2],
            path.parents[2] / f"collisions/{path.parent.name}/{path.name}",
        )
        given.append(
            DeliveredHouseholdNights(
                int(rank.name), load_staged(path), load_staged(taken) if taken.exists() else None
            )
        )
    return given


def _load_lake_month(month: date) -> pl.DataFrame:
    last = (month + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    return storage.collect_with_retry(storage.scan_household_nights(month, last))


def staged_table_dir(delivery_rank: int) -> Path:
    """Where one delivered file is staged."""
    return paths.staging_dir() / f"{delivery_rank:06d}"


def store_staged(frame: pl.DataFrame, path: Path) -> None:
    """Keep a frame in the staging area."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_ipc_stream(path)


def load_staged(path: Path) -> pl.DataFrame:
    """A frame of the staging area."""
    return pl.read_ipc_stream(path)


def _list_staged_files(patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(paths.staging_dir().glob(pattern))


def _delivery_claim_path(delivery: str) -> Path:
    return paths.staging_dir() / "claims" / delivery
