"""Stage delivered files as household-nights, and merge them month by month over the lake's.

Everything is prepared beside the lake and published in one step by `commit_ingest`, so a call that
is killed leaves the lake as it was, or is finished by the next one. Below `staging_dir()`:

<delivery rank>/{household_nights,collisions}/month=YYYY-MM/<batch>.arrow
<delivery rank>/quarantined/<batch>.arrow
<delivery rank>/{spans,household_attributes}.arrow
claims/<delivery>            the rank of the file that holds this content, for copies of it
spans.arrow                  spans of the whole call
losing_readings/month=YYYY-MM.arrow
"""

import math
import shutil
from collections.abc import Iterable
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
    LOSING_READINGS_SCHEMA,
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
from tasks import is_in_flow_run, paths, storage, task
from tasks.ingest.delivered_files import (
    DeliveredTable,
    hash_content,
    iterate_batches,
    name_file_in_errors,
    scan_table,
)
from tasks.ingest.progress import ingest_progress
from tasks.settings import get_settings

MAX_TASK_GROUPS: Final = 200
"""Most task runs that a call's files are recorded as. Chosen: a task run costs Prefect a few ms and
a row in its list, and a delivery may be thousands of files."""
MIN_TABLES_PER_GROUP: Final = 8
"""Least tables of a task run. Chosen: twice `MAX_THREADS`, so that all threads have work."""
MAX_THREADS: Final = 4
"""Most batches, files or months at work at once. Chosen: each holds up to a few hundred MB, and
Polars uses all cores within one."""


@dataclass(frozen=True)
class RankedTable:
    """A delivered table and its place in the order of deliveries: of two, the higher rank wins."""

    delivery_rank: int
    table: DeliveredTable


@dataclass(frozen=True)
class StagedTable:
    """Outcome of staging one delivered table: new, ingested before, or unreadable."""

    delivery_rank: int
    file: str
    delivery: str = ""
    """The hash of its content, its key in the ledger."""
    rows_in: int = 0
    is_already_ingested: bool = False
    failure: str | None = None

    @property
    def is_new(self) -> bool:
        """Tell whether the table's rows are staged and wait to be merged."""
        return not self.is_already_ingested and self.failure is None


@dataclass(frozen=True)
class MergedMonth:
    """Outcome of merging one month of the lake."""

    month: date
    is_changed: bool
    n_readings_in_spans: int
    """Readings of the month that lie within this call's spans of their households."""
    n_repeated_by_rank: dict[int, int] = field(default_factory=dict)
    """By delivery rank, its readings that the lake held already."""


@dataclass(frozen=True)
class _HashedTable:
    """A table and the hash of its content, or why that could not be read."""

    ranked: RankedTable
    delivery: str | UserError


@dataclass(frozen=True)
class _StagedBatch:
    """Outcome of staging a batch of a table's rows; None where no row was valid."""

    rows_in: int
    spans: pl.DataFrame | None = None
    household_attributes: pl.DataFrame | None = None


def group_tables(tables: list[DeliveredTable]) -> list[list[RankedTable]]:
    """Rank tables by their order and cut them into groups, each to be a recorded task run."""
    ranked = [RankedTable(rank, table) for rank, table in enumerate(tables)]
    size = max(MIN_TABLES_PER_GROUP, math.ceil(len(ranked) / MAX_TASK_GROUPS))
    return [ranked[start : start + size] for start in range(0, len(ranked), size)]


@task(name="stage", retries=2, task_run_name="stage {group[0].table.file}")
def stage_tables(group: list[RankedTable]) -> list[StagedTable]:
    """Stage the household-nights of delivered tables; one that cannot be read leaves nothing.

    Groups are staged one after another: a copy of a file is known by the claim of the file before
    it. Reports "rows read" batch by batch.
    """
    supply_limit_kwh = get_settings().supply_limit_kwh
    hashed = make_thread_pool()(joblib.delayed(_hash_table)(ranked) for ranked in group)
    first: list[_HashedTable] = []
    copies: list[_HashedTable] = []
    for each in hashed:
        is_copy = any(each.delivery == other.delivery for other in first)
        (copies if is_copy else first).append(each)
    staged = make_thread_pool()(
        joblib.delayed(_stage_table)(each, supply_limit_kwh) for each in first
    )
    # A copy waits for the file before it: if that one cannot be read, the copy fails by itself.
    staged += [_stage_table(each, supply_limit_kwh) for each in copies]
    return sorted(staged, key=attrgetter("delivery_rank"))


def make_thread_pool() -> joblib.Parallel:
    """Make a pool of threads: `pool(joblib.delayed(function)(item) for item in items)`.

    joblib takes only one item ahead from the generator, so that little of what it reads lies in
    memory; an executor's `map` takes all items at once.
    """
    return joblib.Parallel(count_threads(), backend="threading", pre_dispatch="n_jobs + 1")


def count_threads() -> int:
    """Return how many batches, files or months are worked on at once."""
    return min(MAX_THREADS, int(joblib.cpu_count()))


def _hash_table(ranked: RankedTable) -> _HashedTable:
    try:
        return _HashedTable(ranked, hash_content(ranked.table))
    except UserError as error:
        return _HashedTable(ranked, error)


def _stage_table(hashed: _HashedTable, supply_limit_kwh: float) -> StagedTable:
    """Stage one table; on failure, and before a retry, what was staged of it is removed."""
    rank = hashed.ranked.delivery_rank
    table = hashed.ranked.table
    shutil.rmtree(staged_table_dir(rank), ignore_errors=True)
    try:
        if isinstance(hashed.delivery, UserError):
            raise hashed.delivery
        if _is_already_ingested(hashed.delivery, rank):
            return StagedTable(rank, table.file, hashed.delivery, is_already_ingested=True)
        rows_in = _stage_new_table(table, staged_table_dir(rank), supply_limit_kwh)
    except UserError as error:
        shutil.rmtree(staged_table_dir(rank), ignore_errors=True)
        return StagedTable(rank, table.file, failure=str(error))
    # Only now: a copy of a table that could not be read is no copy of anything in the lake.
    _claim_delivery(hashed.delivery, rank)
    return StagedTable(rank, table.file, hashed.delivery, rows_in)


def _stage_new_table(table: DeliveredTable, directory: Path, supply_limit_kwh: float) -> int:
    """Stage a table's rows in batches; return how many there are."""
    with scan_table(table, directory) as frame:
        batches = iterate_batches(table, _scan_readings(table, frame))
        staged: list[_StagedBatch] = make_thread_pool()(
            joblib.delayed(_stage_batch)(rows, directory, f"{number:06d}.arrow", supply_limit_kwh)
            for number, rows in enumerate(batches)
        )
    rows_in = sum(batch.rows_in for batch in staged)
    if not rows_in:
        raise UserError(f"{table.file}: has no rows below its header")
    spans = [batch.spans for batch in staged if batch.spans is not None]
    if spans:
        store_staged(merge_reading_spans(spans), directory / "spans.arrow")
    attributes = [
        batch.household_attributes for batch in staged if batch.household_attributes is not None
    ]
    if attributes:
        by_household = pl.concat(attributes).group_by("household_id")
        store_staged(
            by_household.max().sort("household_id"), directory / "household_attributes.arrow"
        )
    return rows_in


def _scan_readings(table: DeliveredTable, frame: pl.LazyFrame) -> pl.LazyFrame:
    with name_file_in_errors(table.file):
        return select_readings(frame, recognise_format(frame.collect_schema()))


def _stage_batch(
    rows: pl.DataFrame, directory: Path, file_name: str, supply_limit_kwh: float
) -> _StagedBatch:
    """Validate a batch of rows, and store its household-nights, collisions and quarantine."""
    validated = validate_rows(rows, supply_limit_kwh)
    ingest_progress.advance("rows read", rows.height)
    if validated.quarantined_rows.height:
        store_staged(validated.quarantined_rows, directory / "quarantined" / file_name)
    if not len(validated.kwh):
        return _StagedBatch(rows.height)
    household_nights, collisions = build_household_nights(validated)
    _store_months(household_nights, directory / "household_nights", file_name)
    _store_months(collisions, directory / "collisions", file_name)
    attributes = [name for name in HOUSEHOLD_ATTRIBUTES if name in rows.columns]
    return _StagedBatch(
        rows.height,
        find_reading_spans(household_nights),
        collect_household_attributes(validated, attributes) if attributes else None,
    )


def _store_months(frame: pl.DataFrame, directory: Path, file_name: str) -> None:
    """Store the rows of each month apart; the frame is sorted by `month`, which is left out."""
    rows = frame.drop("month")
    start = 0
    for run in frame.get_column("month").rle().to_list():
        path = directory / f"month={run['value']:%Y-%m}" / file_name
        store_staged(rows[start : start + run["len"]], path)
        start += run["len"]


def _is_already_ingested(delivery: str, delivery_rank: int) -> bool:
    """Return whether this content is in the ledger, or another file of this call holds it."""
    if any(path.stem == delivery for path in paths.list_table_files("deliveries")):
        return True
    claim = _delivery_claim_path(delivery)
    # A claim of the file itself was left by a try of this task that failed later.
    return claim.exists() and claim.read_text() != str(delivery_rank)


def _claim_delivery(delivery: str, delivery_rank: int) -> None:
    claim = _delivery_claim_path(delivery)
    claim.parent.mkdir(exist_ok=True, parents=True)
    claim.write_text(str(delivery_rank))


def _delivery_claim_path(delivery: str) -> Path:
    return paths.staging_dir() / "claims" / delivery


def plan_months(staged: Iterable[StagedTable]) -> list[date]:
    """Return the first days of the months to merge, and store the spans of the whole call.

    They reach from the first to the last month with a valid reading. A month between that only the
    lake holds will not change, but its readings are counted.
    """
    new_tables = [staged_table_dir(each.delivery_rank) for each in staged if each.is_new]
    span_files = [directory / "spans.arrow" for directory in new_tables]
    spans = [load_staged(path) for path in span_files if path.exists()]
    if not spans:
        return []
    store_staged(merge_reading_spans(spans), paths.staging_dir() / "spans.arrow")
    staged_files = paths.staging_dir().glob("*/household_nights/month=*/*.arrow")
    staged_months = {path.parent.name for path in staged_files}
    lake_months = {path.parent.name for path in paths.list_table_files("days")}
    # Names `month=YYYY-MM` sort as their months do.
    first = min(staged_months)
    last = max(staged_months)
    months = staged_months | {name for name in lake_months if first <= name <= last}
    return [date.fromisoformat(f"{name.removeprefix('month=')}-01") for name in sorted(months)]


def merge_months(months: list[date]) -> list[MergedMonth]:
    """Merge months side by side: as task runs in a flow run, else in threads.

    Without a flow run `merge_month.map` would take one month after another: 1.15 s instead of the
    0.77 s of two threads for 27 months of 90 households.
    """
    if is_in_flow_run():
        return merge_month.map(months)
    merged: list[MergedMonth] = make_thread_pool()(
        joblib.delayed(merge_month)(month) for month in months
    )
    return merged


@task(name="merge", retries=2, task_run_name="merge {month:%Y-%m}")
def merge_month(month: date) -> MergedMonth:
    """Lay a month's staged household-nights over the lake's; prepare the month if that changes it.

    Reports one of "months merged".
    """
    call_spans = load_staged(paths.staging_dir() / "spans.arrow")
    lake = _load_lake_month(month)
    delivered = _load_staged_month(month)
    if not delivered:
        ingest_progress.advance("months merged", 1)
        return MergedMonth(
            month, is_changed=False, n_readings_in_spans=count_readings_in_spans(lake, call_spans)
        )
    lake_as_delivery = DeliveredHouseholdNights(
        LAKE_RANK, lake.with_columns(kwh=readings_as_array(lake))
    )
    resolved = resolve_conflicts([lake_as_delivery, *delivered])
    if resolved.losing_readings.height:
        store_staged(
            resolved.losing_readings, _losing_readings_dir() / f"month={month:%Y-%m}.arrow"
        )
    is_changed = not resolved.household_nights.equals(lake)
    if is_changed:
        storage.replace_month(month, resolved.household_nights, root=paths.prepared_dir())
    ingest_progress.advance("months merged", 1)
    return MergedMonth(
        month,
        is_changed,
        count_readings_in_spans(resolved.household_nights, call_spans),
        resolved.n_repeated_by_rank,
    )


def _load_staged_month(month: date) -> list[DeliveredHouseholdNights]:
    """Load what the staged tables have of a month, in the order of deliveries and batches."""
    month_dir = f"month={month:%Y-%m}"
    delivered = []
    for path in sorted(paths.staging_dir().glob(f"*/household_nights/{month_dir}/*.arrow")):
        table_dir = path.parents[2]
        collisions = table_dir / "collisions" / month_dir / path.name
        delivered.append(
            DeliveredHouseholdNights(
                int(table_dir.name),
                load_staged(path),
                load_staged(collisions) if collisions.exists() else None,
            )
        )
    return delivered


def _load_lake_month(month: date) -> pl.DataFrame:
    # 31 days after the first of a month lie in the next one, whatever its length.
    last_night = (month + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    return storage.collect_with_retry(storage.scan_household_nights(month, last_night))


def load_losing_readings() -> pl.DataFrame:
    """Load the readings that lost a conflict, of all months of this call."""
    files = sorted(_losing_readings_dir().glob("*.arrow"))
    return pl.concat(
        [pl.DataFrame(schema=LOSING_READINGS_SCHEMA), *(load_staged(path) for path in files)]
    )


def _losing_readings_dir() -> Path:
    return paths.staging_dir() / "losing_readings"


def staged_table_dir(delivery_rank: int) -> Path:
    """Return the directory in which one delivered table is staged."""
    return paths.staging_dir() / f"{delivery_rank:06d}"


def store_staged(frame: pl.DataFrame, path: Path) -> None:
    """Write a frame below the staging directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_ipc_stream(path)


def load_staged(path: Path) -> pl.DataFrame:
    """Read a frame that was staged."""
    return pl.read_ipc_stream(path)
