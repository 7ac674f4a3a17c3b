"""The end of an ingest: quarantine, ledger, register and references, then all of it published."""

from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, cast

import joblib  # type: ignore[import-untyped]
import polars as pl
from pydantic import BaseModel, ConfigDict

from ml.errors import UserError
from ml.ingest.conflicts import LAKE_RANK, LOSING_READINGS_SCHEMA
from ml.ingest.formats import TableKind, recognise_format
from ml.ingest.reference_tables import (
    KEY_COLUMNS,
    merge_household_registers,
    merge_reference_tables,
    parse_reference_table,
)
from ml.schemas import Deliveries, Quarantine
from tasks import paths, reports, storage, task
from tasks.ingest.delivered_files import DeliveredTable, name_file_in_errors, read_table
from tasks.ingest.discovery import DiscoveredTables
from tasks.ingest.staging import (
    MergedMonth,
    StagedTable,
    load_staged,
    make_thread_pool,
    staged_table_dir,
)

SPANS_SCHEMA: Final = pl.Schema(
    [
        ("household_id", pl.String()),
        ("first_ts_utc", pl.Datetime("us")),
        ("last_ts_utc", pl.Datetime("us")),
    ]
)


class IngestReceipt(BaseModel):
    """What a call delivered and what became of it: `rows_in` is `rows_kept` + `rows_set_aside`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[str, ...] = ()
    rows_in: int = 0
    rows_kept: int = 0
    rows_quarantined: int = 0
    quarantined_by_rule: dict[str, int] = {}
    n_earlier_superseded: int = 0
    n_households: int = 0
    first_night: date | None = None
    last_night: date | None = None
    n_missing_half_hours: int = 0
    changed_months: tuple[str, ...] = ()
    changed_references: tuple[str, ...] = ()
    already_ingested: tuple[str, ...] = ()
    ignored_files: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What happened, for a terminal."""
        rules = ", ".join(f"{rows:,} {rule}" for rule, rows in self.quarantined_by_rule.items())
        said = [
            f"{_format_count(len(self.files), 'file')}: {self.rows_in:,} rows delivered, "
            f"{self.rows_kept:,} kept, {self.rows_quarantined:,} quarantined"
            + (f" ({rules})" if rules else "")
        ]
        if self.n_earlier_superseded:
            said.append(f"{_format_count(self.n_earlier_superseded, 'earlier reading')} superseded")
        if self.n_households:
            said.append(
                f"{_format_count(self.n_households, 'household')}, {self.first_night} to {self.last_night}, "
                f"{_format_count(self.n_missing_half_hours, 'half-hour')} missing between their readings"
            )
        if self.changed_months:
            span = f"{self.changed_months[0]} to {self.changed_months[-1]}"
            said.append(f"{_format_count(len(self.changed_months), 'month')} written ({span})")
        if self.changed_references:
            said.append(f"reference tables written: {', '.join(self.changed_references)}")
        said += [f"already ingested: {file}" for file in self.already_ingested]
        return said + [f"ignored: {line}" for line in self.ignored_files]

    def markdown(self) -> str:
        """What happened, for the run's page."""
        rows = reports.render_row_counts(self.rows_in, self.rows_kept, self.quarantined_by_rule)
        said = self.lines() + [f"failed: {line}" for line in self.failures]
        return rows + "\n".join(f"- {line}" for line in said) + "\n"


class IngestError(UserError):
    """Some of what was delivered could not be read; the rest is in the lake."""

    def __init__(self, receipt: IngestReceipt) -> None:
        super().__init__("\n".join(receipt.failures))
        self.receipt = receipt


def _format_count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@task(name="commit-ingest", task_run_name="commit ingest")
def commit_ingest(
    discovered: DiscoveredTables, staged: list[StagedTable], merged_months: list[MergedMonth]
) -> IngestReceipt:
    """Prepare quarantine, ledger and references, publish them with the lake, and give a receipt."""
    new = [each for each in staged if each.is_new]
    aside = _load_losing_readings()
    superseded = _name_superseded_files(aside.filter(pl.col("delivery_rank") == LAKE_RANK))
    now = datetime.now(UTC).replace(tzinfo=None)
    repeated = sum((Counter(month.n_repeated_by_rank) for month in merged_months), Counter[int]())
    entered = make_thread_pool()(
        joblib.delayed(_prepare_delivery)(
            each,
            aside,
            superseded,
            repeated[each.delivery_rank],
            now + timedelta(microseconds=each.delivery_rank),
        )
        for each in new
    )
    counts = sum(entered, Counter[str]())
    failures = [*discovered.failures, *(each.failure for each in staged if each.failure)]
    references = _prepare_references(discovered.reference_tables, new, failures)
    receipt = IngestReceipt(
        **_summarize_coverage(merged_months),
        files=tuple(each.file for each in new),
        rows_in=(rows_in := sum(each.rows_in for each in new)),
        rows_kept=rows_in - counts.total(),
        rows_quarantined=counts.total(),
        quarantined_by_rule=dict(counts.most_common()),
        n_earlier_superseded=superseded.height,
        changed_months=tuple(f"{each.month:%Y-%m}" for each in merged_months if each.is_changed),
        changed_references=tuple(references),
        already_ingested=tuple(each.file for each in staged if each.is_already_ingested),
        ignored_files=tuple(discovered.ignored_files),
        failures=tuple(failures),
    )
    storage.publish_prepared()
    return receipt


def _load_losing_readings() -> pl.DataFrame:
    """Every reading that gave way to another, of all months."""
    found = sorted(paths.staging_dir().glob("losing_readings/*.arrow"))
    return pl.concat(
        [pl.DataFrame(schema=LOSING_READINGS_SCHEMA), *(load_staged(path) for path in found)]
    )


def _prepare_delivery(
    staged: StagedTable,
    losing_readings: pl.DataFrame,
    superseded: pl.DataFrame,
    n_repeated: int,
    ingested_at_utc: datetime,
) -> Counter[str]:
    """Prepare one delivery's quarantine, spans and ledger entry; its set-aside rows by rule."""
    bad = [
        load_staged(path)
        for path in sorted(staged_table_dir(staged.delivery_rank).glob("quarantined/*.arrow"))
    ]
    own = pl.concat(
        [
            *bad,
            losing_readings.filter(pl.col("delivery_rank") == staged.delivery_rank).drop(
                "delivery_rank", "winning_rank"
            ),
        ]
    )
    own = own.with_columns(file=pl.lit(staged.file))
    earlier = superseded.filter(pl.col("winning_rank") == staged.delivery_rank).select(own.columns)
    rows = pl.concat([own, earlier])
    if rows.height:
        names = Quarantine.column_names()
        storage.replace_ledger_entry(
            "quarantine",
            staged.delivery,
            rows.select(names).sort(names),
            root=paths.prepared_dir(),
        )
    spans = _load_spans(staged)
    storage.replace_ledger_entry("spans", staged.delivery, spans, root=paths.prepared_dir())
    entry = _build_ledger_entry(staged, own.height, n_repeated, spans, ingested_at_utc)
    storage.replace_ledger_entry("deliveries", staged.delivery, entry, root=paths.prepared_dir())
    return Counter(dict(own.get_column("rule").cast(pl.String).value_counts().iter_rows()))


def _load_spans(staged: StagedTable) -> pl.DataFrame:
    path = staged_table_dir(staged.delivery_rank) / "spans.arrow"
    spans = load_staged(path) if path.exists() else pl.DataFrame(schema=SPANS_SCHEMA)
    return spans.select(pl.lit(staged.delivery).alias("delivery"), *SPANS_SCHEMA)


def _build_ledger_entry(
    staged: StagedTable,
    n_quarantined: int,
    n_repeated: int,
    spans: pl.DataFrame,
    ingested_at_utc: datetime,
) -> pl.DataFrame:
    row = {
        "delivery": staged.delivery,
        "file": staged.file,
        "ingested_at_utc": ingested_at_utc,
        "rows_in": staged.rows_in,
        "rows_kept": staged.rows_in - n_quarantined,
        "rows_quarantined": n_quarantined,
        "rows_repeated": n_repeated,
        "households": spans.height,
        "first_ts_utc": spans.get_column("first_ts_utc").min(),
        "last_ts_utc": spans.get_column("last_ts_utc").max(),
    }
    schema = {name: column.dtype for name, column in Deliveries.columns().items()}
    return pl.DataFrame([row], schema=schema)


def _name_superseded_files(superseded: pl.DataFrame) -> pl.DataFrame:
    """Name for readings of earlier calls the latest earlier delivery that covers their stamp."""
    if superseded.is_empty():
        return superseded.with_columns(file=pl.lit(""))
    deliveries = storage.read_table("deliveries").select("delivery", "file", "ingested_at_utc")
    spans = storage.read_table("spans").join(deliveries, on="delivery")
    rows = superseded.with_row_index("row")
    covers = pl.col("ts_utc").is_between("first_ts_utc", "last_ts_utc")
    latest = rows.join(spans, on="household_id").filter(covers).sort("ingested_at_utc")
    files = latest.group_by("row").agg(pl.last("file"))
    return (
        rows.join(files, on="row", how="left")
        .drop("row")
        .with_columns(pl.col("file").fill_null("an earlier delivery"))
    )


def _summarize_coverage(merged_months: list[MergedMonth]) -> dict[str, Any]:
    """Households and nights of this call, and the half-hours that the lake misses between."""
    if not merged_months:
        return {}
    call = load_staged(paths.staging_dir() / "spans.arrow")
    first, last = call.get_column("first_ts_utc"), call.get_column("last_ts_utc")
    expected = ((last - first).dt.total_minutes() // 30 + 1).sum()
    return {
        "n_households": call.height,
        "first_night": first.dt.date().min(),
        "last_night": last.dt.date().max(),
        "n_missing_half_hours": expected
        - sum(month.n_readings_in_spans for month in merged_months),
    }


def _prepare_references(
    reference_tables: list[tuple[TableKind, DeliveredTable]],
    new_tables: list[StagedTable],
    failures: list[str],
) -> list[str]:
    """Prepare the references that this call changes; their names."""
    given = defaultdict[storage.ReferenceTableName, list[pl.DataFrame]](list)
    for each in new_tables:
        of_file = staged_table_dir(each.delivery_rank)
        paths = [of_file / "spans.arrow", of_file / "household_attributes.arrow"]
        told = [
            load_staged(path).drop("first_ts_utc", "last_ts_utc", strict=False)
            for path in paths
            if path.exists()
        ]
        given["households"] += told
    for kind, table in reference_tables:
        try:
            given[cast(storage.ReferenceTableName, kind)].append(_read_reference_table(table))
        except UserError as error:
            failures.append(str(error))
    return [
        name for name, tables in given.items() if tables and _update_reference_table(name, tables)
    ]


def _read_reference_table(table: DeliveredTable) -> pl.DataFrame:
    rows = read_table(table, paths.staging_dir() / "reference_table")
    with name_file_in_errors(table.file):
        return parse_reference_table(rows, recognise_format(rows.columns))


def _update_reference_table(
    name: storage.ReferenceTableName, delivered: list[pl.DataFrame]
) -> bool:
    """Lay what was given over a reference; whether that changes it."""
    present = storage.read_table(name)
    if name == "households":
        after = merge_household_registers([present, *delivered])
    else:
        after = merge_reference_tables([present, *delivered], KEY_COLUMNS[name])
    if after.equals(present):
        return False
    storage.replace_reference_table(name, after, root=paths.prepared_dir())
    return True
