"""Delivered files into the lake: stage each file, merge each month, settle the ledgers.

Everything is prepared beside the lake and published in one step, so a call that is killed leaves
the lake as it was, or is finished by the next one.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import polars as pl

from ml.errors import UserError
from ml.ingest.conflicts import LAKE, filled, present, resolve
from ml.ingest.delivered import ABOUT, readings, recognise
from ml.ingest.rules import about, household_days, sift, spans, widest
from ml.ingest.stamps import patched
from tasks import lake, task
from tasks.delivered import Table, batches, digest, naming, opened
from tasks.settings import settings

MOST_GROUPS: Final = 200
KEYED: Final = pl.Schema([("rank", pl.Int32()), ("part", pl.Int32())])


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


@dataclass
class _Staging:
    """One file at work: where its parts are kept, and what they add up to."""

    rank: int
    place: Path
    supply_limit_kwh: float
    rows_in: int = 0
    spans: list[pl.DataFrame] = field(default_factory=list)
    about: list[pl.DataFrame] = field(default_factory=list)


def groups(tables: list[Table]) -> list[list[tuple[int, Table]]]:
    """Ranked tables in at most so many groups that each may be a recorded task."""
    ranked = list(enumerate(tables))
    size = -(-len(ranked) // MOST_GROUPS) or 1
    return [ranked[start : start + size] for start in range(0, len(ranked), size)]


@task(name="stage", retries=2, task_run_name="stage {group[0][1].file}")
def stage(group: list[tuple[int, Table]]) -> list[Staged]:
    """Stage delivered tables as household-days a month; one that cannot be read leaves nothing."""
    return [_stage(rank, table) for rank, table in group]


def _stage(rank: int, table: Table) -> Staged:
    shutil.rmtree(of_rank(rank), ignore_errors=True)
    try:
        return _stage_new(rank, table)
    except UserError as error:
        shutil.rmtree(of_rank(rank), ignore_errors=True)
        return Staged(rank, table.file, failure=str(error))


def _stage_new(rank: int, table: Table) -> Staged:
    delivery = digest(table)
    if _is_known(delivery, rank):
        return Staged(rank, table.file, delivery, is_known=True)
    work = _Staging(rank, of_rank(rank), settings().supply_limit_kwh)
    with opened(table, work.place) as frame:
        for part, rows in enumerate(batches(table, _standard(table, frame))):
            _stage_part(work, part, rows)
    if not work.rows_in:
        raise UserError(f"{table.file}: has no rows below its header")
    if work.spans:
        keep(widest(work.spans), work.place / "spans.arrow")
    if work.about:
        every = pl.concat(work.about).group_by("household_id").max().sort("household_id")
        keep(every, work.place / "about.arrow")
    _key(delivery).parent.mkdir(exist_ok=True, parents=True)
    _key(delivery).write_text(str(rank))
    return Staged(rank, table.file, delivery, work.rows_in)


def _standard(table: Table, frame: pl.LazyFrame) -> pl.LazyFrame:
    with naming(table.file):
        return readings(frame, recognise(frame.collect_schema()))


def _is_known(delivery: str, rank: int) -> bool:
    """Whether this content is in the ledger, or a file before this one in the call holds it."""
    if any(path.stem == delivery for path in lake.files("deliveries")):
        return True
    return _key(delivery).exists() and _key(delivery).read_text() != str(rank)


def _stage_part(work: _Staging, part: int, rows: pl.DataFrame) -> None:
    good, bad = sift(patched(rows), work.supply_limit_kwh)
    work.rows_in += rows.height
    if bad.height:
        keep(bad, work.place / f"bad/{part:06d}.arrow")
    if not good.height:
        return
    days, taken = household_days(good)
    work.spans.append(spans(days))
    if names := [name for name in ABOUT if name in good.columns]:
        work.about.append(about(good, names))
    _keep_months(work, part, "days", days, pl.col("night"))
    _keep_months(work, part, "taken", taken, pl.col("ts_utc").dt.date())


def _keep_months(work: _Staging, part: int, name: str, frame: pl.DataFrame, night: pl.Expr) -> None:
    marked = frame.with_columns(
        rank=pl.lit(work.rank, KEYED["rank"]),
        part=pl.lit(part, KEYED["part"]),
        month=night.dt.strftime("%Y-%m"),
    )
    parts = marked.partition_by("month", as_dict=True, include_key=False)
    for (month,), rows in parts.items():
        keep(rows, work.place / f"{name}/month={month}/{part:06d}.arrow")


def plan(staged: Iterable[Staged]) -> list[date]:
    """The months to merge: every one from the first to the last stamp that has readings."""
    new = [each.rank for each in staged if each.is_new]
    found = [kept(path) for path in _all(f"{rank:06d}/spans.arrow" for rank in new)]
    if not found:
        return []
    call = widest(found)
    keep(call, lake.staging() / "spans.arrow")
    given = {path.parent.name for path in _all(["*/days/month=*/*.arrow"])}
    held = {path.parent.name for path in lake.files("days")}
    low, high = min(given), max(given)
    months = given | {name for name in held if low <= name <= high}
    return [date.fromisoformat(f"{name.removeprefix('month=')}-01") for name in sorted(months)]


@task(name="merge", retries=2, task_run_name="merge {month:%Y-%m}")
def merge(month: date) -> Merged:
    """Lay the staged household-days of a month over the lake's; prepare it if that changes it."""
    call = kept(lake.staging() / "spans.arrow")
    held = _held(month)
    given = [kept(path) for path in _of_month("days", month)]
    if not given:
        return Merged(month, is_changed=False, n_present=present(held, call))
    before = held.with_columns(
        kwh=filled(held), rank=pl.lit(LAKE, KEYED["rank"]), part=pl.lit(0, KEYED["part"])
    )
    taken = [kept(path) for path in _of_month("taken", month)]
    resolved = resolve(pl.concat([before, *given]), taken)
    if resolved.aside.height:
        keep(resolved.aside, lake.staging() / f"aside/month={month:%Y-%m}.arrow")
    is_changed = not resolved.days.equals(held)
    if is_changed:
        lake.replace_month(month, resolved.days, root=lake.prepared())
    return Merged(month, is_changed, present(resolved.days, call), resolved.repeated)


def _held(month: date) -> pl.DataFrame:
    last = (month + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    return lake.collect(lake.scan_days(month, last))


def of_rank(rank: int) -> Path:
    """Where one delivered file is staged."""
    return lake.staging() / f"{rank:06d}"


def keep(frame: pl.DataFrame, path: Path) -> None:
    """Keep a frame in the staging area."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_ipc(path)


def kept(path: Path) -> pl.DataFrame:
    """A frame of the staging area."""
    return pl.read_ipc(path)


def _all(patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(lake.staging().glob(pattern))


def _of_month(name: str, month: date) -> Iterator[Path]:
    return _all([f"*/{name}/month={month:%Y-%m}/*.arrow"])


def _key(delivery: str) -> Path:
    return lake.staging() / "keys" / delivery
