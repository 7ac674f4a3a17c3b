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
from ml.ingest.delivered import HOUSEHOLD_ATTRIBUTES, recognise_format, select_readings
from ml.ingest.rules import (
    build_household_nights,
    collect_household_attributes,
    find_reading_spans,
    merge_reading_spans,
    validate_rows,
)
from ml.schemas import readings_as_array
from tasks import lake, task
from tasks.delivered import (
    DeliveredTable,
    hash_content,
    iterate_batches,
    name_file_in_errors,
    scan_table,
)
from tasks.settings import settings

MOST_GROUPS: Final = 200
LEAST_GROUP: Final = 8
MOST_AT_ONCE: Final = 4

Tell = Callable[[int], None]
"""Hears how much more is done."""


@dataclass(frozen=True)
class Staged:
    """What staging one delivered file came to; `rank` is its place in the order of deliveries."""

    rank: int
    file: str
    delivery: str = ""
    rows_in: int = 0
    is_known: bool = False
    failure: str | None = None

    @property
    def is_new(self) -> bool:
        """Whether the file's rows wait to be merged."""
        return not self.is_known and self.failure is None


@dataclass(frozen=True)
class Merged:
    """What merging one month came to.

    `n_present` counts readings within the call's spans, `repeated` by rank those the lake held.
    """

    month: date
    is_changed: bool
    n_present: int
    repeated: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Staging:
    """One file at work, and where its parts are kept."""

    rank: int
    place: Path
    supply_limit_kwh: float
    tell: Tell


@dataclass(frozen=True)
class _Part:
    """What a batch of a file's rows came to."""

    rows_in: int
    spans: pl.DataFrame | None = None
    about: pl.DataFrame | None = None


def groups(tables: list[DeliveredTable]) -> list[list[tuple[int, DeliveredTable]]]:
    """Ranked tables in at most so many groups that each may be a recorded task."""
    ranked = list(enumerate(tables))
    size = max(LEAST_GROUP, -(-len(ranked) // MOST_GROUPS))
    return [ranked[start : start + size] for start in range(0, len(ranked), size)]


@task(name="stage", retries=2, task_run_name="stage {group[0][1].file}")
def stage(group: list[tuple[int, DeliveredTable]], tell: Tell) -> list[Staged]:
    """Stage delivered tables as household-days a month; one that cannot be read leaves nothing.

    `tell` hears of every batch of rows.
    """
    deliveries = side_by_side()(joblib.delayed(_digest)(table) for _, table in group)
    first: list[tuple[int, DeliveredTable, str | UserError]] = []
    again: list[tuple[int, DeliveredTable, str | UserError]] = []
    for (rank, table), delivery in zip(group, deliveries, strict=True):
        is_copy = any(delivery == other for _, _, other in first)
        (again if is_copy else first).append((rank, table, delivery))
    staged = side_by_side()(joblib.delayed(_stage)(*each, tell) for each in first)
    # A copy waits for the file before it, which may be one that cannot be read.
    return sorted(staged + [_stage(*each, tell) for each in again], key=attrgetter("rank"))


def _digest(table: DeliveredTable) -> str | UserError:
    try:
        return hash_content(table)
    except UserError as error:
        return error


def _stage(rank: int, table: DeliveredTable, delivery: str | UserError, tell: Tell) -> Staged:
    shutil.rmtree(of_rank(rank), ignore_errors=True)
    try:
        if isinstance(delivery, UserError):
            raise delivery
        return _stage_new(rank, table, delivery, tell)
    except UserError as error:
        shutil.rmtree(of_rank(rank), ignore_errors=True)
        return Staged(rank, table.file, failure=str(error))


def _stage_new(rank: int, table: DeliveredTable, delivery: str, tell: Tell) -> Staged:
    if _is_known(delivery, rank):
        return Staged(rank, table.file, delivery, is_known=True)
    work = _Staging(rank, of_rank(rank), settings().supply_limit_kwh, tell)
    with scan_table(table, work.place) as frame:
        every = iterate_batches(table, _standard(table, frame))
        parts: list[_Part] = side_by_side()(
            joblib.delayed(_stage_part)(work, part, rows) for part, rows in enumerate(every)
        )
    if not (rows_in := sum(part.rows_in for part in parts)):
        raise UserError(f"{table.file}: has no rows below its header")
    if found := [part.spans for part in parts if part.spans is not None]:
        keep(merge_reading_spans(found), work.place / "spans.arrow")
    if told := [part.about for part in parts if part.about is not None]:
        keep(
            pl.concat(told).group_by("household_id").max().sort("household_id"),
            work.place / "about.arrow",
        )
    _key(delivery).parent.mkdir(exist_ok=True, parents=True)
    _key(delivery).write_text(str(rank))
    return Staged(rank, table.file, delivery, rows_in)


def side_by_side() -> joblib.Parallel:
    """Work in threads, little at once: what is read ahead stays in memory."""
    n_jobs = min(MOST_AT_ONCE, joblib.cpu_count())
    return joblib.Parallel(n_jobs, backend="threading", pre_dispatch="n_jobs + 1")


def _standard(table: DeliveredTable, frame: pl.LazyFrame) -> pl.LazyFrame:
    with name_file_in_errors(table.file):
        return select_readings(frame, recognise_format(frame.collect_schema()))


def _is_known(delivery: str, rank: int) -> bool:
    """Whether this content is in the ledger, or a file before this one in the call holds it."""
    if any(path.stem == delivery for path in lake.files("deliveries")):
        return True
    return _key(delivery).exists() and _key(delivery).read_text() != str(rank)


def _stage_part(work: _Staging, part: int, rows: pl.DataFrame) -> _Part:
    sifted = validate_rows(rows, work.supply_limit_kwh)
    work.tell(rows.height)
    if sifted.quarantined_rows.height:
        keep(sifted.quarantined_rows, work.place / f"bad/{part:06d}.arrow")
    if not len(sifted.kwh):
        return _Part(rows.height)
    days, taken = build_household_nights(sifted)
    _keep_months(work, part, "days", days)
    _keep_months(work, part, "taken", taken)
    names = [name for name in HOUSEHOLD_ATTRIBUTES if name in rows.columns]
    return _Part(
        rows.height,
        find_reading_spans(days),
        collect_household_attributes(sifted, names) if names else None,
    )


def _keep_months(work: _Staging, part: int, name: str, frame: pl.DataFrame) -> None:
    """Keep the rows of each month, which lie together."""
    runs, rows, first = frame.get_column("month").rle().to_list(), frame.drop("month"), 0
    for run in runs:
        path = work.place / f"{name}/month={run['value']:%Y-%m}/{part:06d}.arrow"
        keep(rows[first : first + run["len"]], path)
        first += run["len"]


def plan(staged: Iterable[Staged]) -> list[date]:
    """The months to merge: every one from the first to the last stamp that has readings."""
    new = [each.rank for each in staged if each.is_new]
    found = [kept(path) for path in _all(f"{rank:06d}/spans.arrow" for rank in new)]
    if not found:
        return []
    call = merge_reading_spans(found)
    keep(call, lake.staging() / "spans.arrow")
    given = {path.parent.name for path in _all(["*/days/month=*/*.arrow"])}
    held = {path.parent.name for path in lake.files("days")}
    low, high = min(given), max(given)
    months = given | {name for name in held if low <= name <= high}
    return [date.fromisoformat(f"{name.removeprefix('month=')}-01") for name in sorted(months)]


@task(name="merge", retries=2)
def merge(months: list[date], tell: Tell) -> list[Merged]:
    """Lay the staged household-days of months over the lake's; prepare those that it changes.

    `tell` hears of every month.
    """
    every: list[Merged] = side_by_side()(joblib.delayed(_merge)(month, tell) for month in months)
    return every


def _merge(month: date, tell: Tell) -> Merged:
    merged = _merged(month)
    tell(1)
    return merged


def _merged(month: date) -> Merged:
    call = kept(lake.staging() / "spans.arrow")
    held = _held(month)
    given = _given(month)
    if not given:
        return Merged(month, is_changed=False, n_present=count_readings_in_spans(held, call))
    resolved = resolve_conflicts(
        [
            DeliveredHouseholdNights(LAKE_RANK, held.with_columns(kwh=readings_as_array(held))),
            *given,
        ]
    )
    if resolved.losing_readings.height:
        keep(resolved.losing_readings, lake.staging() / f"aside/month={month:%Y-%m}.arrow")
    is_changed = not resolved.household_nights.equals(held)
    if is_changed:
        lake.replace_month(month, resolved.household_nights, root=lake.prepared())
    return Merged(
        month,
        is_changed,
        count_readings_in_spans(resolved.household_nights, call),
        resolved.n_repeated_by_rank,
    )


def _given(month: date) -> list[DeliveredHouseholdNights]:
    """What the staged files give of a month, in their order and that of their parts."""
    given = []
    for path in _all([f"*/days/month={month:%Y-%m}/*.arrow"]):
        rank, taken = path.parents[2], path.parents[2] / f"taken/{path.parent.name}/{path.name}"
        given.append(
            DeliveredHouseholdNights(
                int(rank.name), kept(path), kept(taken) if taken.exists() else None
            )
        )
    return given


def _held(month: date) -> pl.DataFrame:
    last = (month + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    return lake.collect(lake.scan_days(month, last))


def of_rank(rank: int) -> Path:
    """Where one delivered file is staged."""
    return lake.staging() / f"{rank:06d}"


def keep(frame: pl.DataFrame, path: Path) -> None:
    """Keep a frame in the staging area."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_ipc_stream(path)


def kept(path: Path) -> pl.DataFrame:
    """A frame of the staging area."""
    return pl.read_ipc_stream(path)


def _all(patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(lake.staging().glob(pattern))


def _key(delivery: str) -> Path:
    return lake.staging() / "keys" / delivery
