"""Commit an ingest: prepare quarantine, ledger and reference tables, then publish all at once."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, cast

import joblib  # type: ignore[import-untyped]
import polars as pl
from pydantic import BaseModel, ConfigDict

from ml.errors import UserError
from ml.ingest.conflicts import LAKE_RANK
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
    load_losing_readings,
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
    """Report of a call: what it delivered and what became of it.

    `rows_in` is `rows_kept + rows_quarantined`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[str, ...] = ()
    """Tables taken in, by the name that they have in every report."""
    rows_in: int = 0
    rows_kept: int = 0
    rows_quarantined: int = 0
    quarantined_by_rule: dict[str, int] = {}
    """Rows by rule, the most frequent first."""
    n_earlier_superseded: int = 0
    """Readings of earlier calls that this call's replaced; they are none of `rows_in`."""
    n_households: int = 0
    first_night: date | None = None
    last_night: date | None = None
    n_missing_half_hours: int = 0
    """Half-hours between a household's first and last one of this call that the lake lacks."""
    changed_months: tuple[str, ...] = ()
    """As `YYYY-MM`, ascending."""
    changed_references: tuple[str, ...] = ()
    already_ingested: tuple[str, ...] = ()
    ignored_files: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return what happened, for a terminal; failures are told by the error."""
        rules = ", ".join(f"{rows:,} {rule}" for rule, rows in self.quarantined_by_rule.items())
        lines = [
            f"{_format_count(len(self.files), 'file')}: {self.rows_in:,} rows delivered, "
            f"{self.rows_kept:,} kept, {self.rows_quarantined:,} quarantined"
            + (f" ({rules})" if rules else "")
        ]
        if self.n_earlier_superseded:
            count = _format_count(self.n_earlier_superseded, "earlier reading")
            lines.append(f"{count} superseded")
        if self.n_households:
            missing = _format_count(self.n_missing_half_hours, "half-hour")
            lines.append(
                f"{_format_count(self.n_households, 'household')}, "
                f"{self.first_night} to {self.last_night}, "
                f"{missing} missing between their readings"
            )
        if self.changed_months:
            months = _format_count(len(self.changed_months), "month")
            lines.append(
                f"{months} written ({self.changed_months[0]} to {self.changed_months[-1]})"
            )
        if self.changed_references:
            lines.append(f"reference tables written: {', '.join(self.changed_references)}")
        lines += [f"already ingested: {file}" for file in self.already_ingested]
        lines += [f"ignored: {line}" for line in self.ignored_files]
        return lines

    def markdown(self) -> str:
        """Return what happened, failures too, for the run's page."""
        rows = reports.render_row_counts(self.rows_in, self.rows_kept, self.quarantined_by_rule)
        lines = self.lines() + [f"failed: {line}" for line in self.failures]
        return rows + "\n".join(f"- {line}" for line in lines) + "\n"


class IngestError(UserError):
    """Some of what was delivered could not be read; the rest is in the lake."""

    def __init__(self, receipt: IngestReceipt) -> None:
        super().__init__("\n".join(receipt.failures))
        self.receipt = receipt


def _format_count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class _Losses:
    """The readings of this call that lost a conflict, and those of earlier calls that it beat."""

    losing_readings: pl.DataFrame
    superseded_earlier: pl.DataFrame
    """With the `file` that each came with."""


@task(name="commit-ingest", task_run_name="commit ingest")
def commit_ingest(
    discovered: DiscoveredTables, staged: list[StagedTable], merged_months: list[MergedMonth]
) -> IngestReceipt:
    """Prepare quarantine, ledger and reference tables, and publish them with the merged months."""
    new_tables = [each for each in staged if each.is_new]
    losing_readings = load_losing_readings()
    of_lake = losing_readings.filter(pl.col("delivery_rank") == LAKE_RANK)
    losses = _Losses(losing_readings, _name_superseded_files(of_lake))
    n_repeated = sum((Counter(each.n_repeated_by_rank) for each in merged_months), Counter[int]())
    now_utc = datetime.now(UTC).replace(tzinfo=None)
    quarantined = make_thread_pool()(
        joblib.delayed(_prepare_delivery)(
            table,
            losses,
            n_repeated[table.delivery_rank],
            # A microsecond apart, so that the ledger keeps the order of a call's deliveries.
            now_utc + timedelta(microseconds=table.delivery_rank),
        )
        for table in new_tables
    )
    quarantined_by_rule = sum(quarantined, Counter[str]())
    failures = [*discovered.failures, *(each.failure for each in staged if each.failure)]
    references = _prepare_references(discovered.reference_tables, new_tables, failures)
    rows_in = sum(each.rows_in for each in new_tables)
    receipt = IngestReceipt(
        **_summarize_coverage(merged_months),
        files=tuple(each.file for each in new_tables),
        rows_in=rows_in,
        rows_kept=rows_in - quarantined_by_rule.total(),
        rows_quarantined=quarantined_by_rule.total(),
        quarantined_by_rule=dict(quarantined_by_rule.most_common()),
        n_earlier_superseded=losses.superseded_earlier.height,
        changed_months=tuple(f"{each.month:%Y-%m}" for each in merged_months if each.is_changed),
        changed_references=tuple(references),
        already_ingested=tuple(each.file for each in staged if each.is_already_ingested),
        ignored_files=tuple(discovered.ignored_files),
        failures=tuple(failures),
    )
    # Last of all: a call that is killed before this line leaves the lake as it was.
    storage.publish_prepared()
    return receipt


def _prepare_delivery(
    table: StagedTable, losses: _Losses, n_repeated: int, ingested_at_utc: datetime
) -> Counter[str]:
    """Prepare one delivery's quarantine, spans and ledger entry; count its quarantine by rule.

    The quarantine of a delivery also holds what it superseded of earlier calls, which keeps the
    name of its own file and is not counted.
    """
    rank = table.delivery_rank
    batches = sorted(staged_table_dir(rank).glob("quarantined/*.arrow"))
    lost = losses.losing_readings.filter(pl.col("delivery_rank") == rank)
    own = pl.concat(
        [*(load_staged(path) for path in batches), lost.drop("delivery_rank", "winning_rank")]
    ).with_columns(file=pl.lit(table.file))
    earlier = losses.superseded_earlier.filter(pl.col("winning_rank") == rank)
    rows = pl.concat([own, earlier.select(own.columns)])
    root = paths.prepared_dir()
    if rows.height:
        # Sorted by all columns: the file must not depend on how rows fell into batches.
        names = Quarantine.column_names()
        rows = rows.select(names).sort(names)
        storage.replace_ledger_entry("quarantine", table.delivery, rows, root=root)
    spans = _load_spans(table)
    storage.replace_ledger_entry("spans", table.delivery, spans, root=root)
    entry = _build_ledger_entry(table, own.height, n_repeated, spans, ingested_at_utc)
    storage.replace_ledger_entry("deliveries", table.delivery, entry, root=root)
    return Counter(dict(own.get_column("rule").cast(pl.String).value_counts().iter_rows()))


def _load_spans(table: StagedTable) -> pl.DataFrame:
    """Load a table's spans as rows of the ledger; none where it has no valid reading."""
    path = staged_table_dir(table.delivery_rank) / "spans.arrow"
    spans = load_staged(path) if path.exists() else pl.DataFrame(schema=SPANS_SCHEMA)
    return spans.select(pl.lit(table.delivery).alias("delivery"), *SPANS_SCHEMA)


def _build_ledger_entry(
    table: StagedTable,
    n_quarantined: int,
    n_repeated: int,
    spans: pl.DataFrame,
    ingested_at_utc: datetime,
) -> pl.DataFrame:
    row = {
        "delivery": table.delivery,
        "file": table.file,
        "ingested_at_utc": ingested_at_utc,
        "rows_in": table.rows_in,
        "rows_kept": table.rows_in - n_quarantined,
        "rows_quarantined": n_quarantined,
        "rows_repeated": n_repeated,
        "households": spans.height,
        "first_ts_utc": spans.get_column("first_ts_utc").min(),
        "last_ts_utc": spans.get_column("last_ts_utc").max(),
    }
    schema = {name: column.dtype for name, column in Deliveries.columns().items()}
    return pl.DataFrame([row], schema=schema)


def _name_superseded_files(superseded: pl.DataFrame) -> pl.DataFrame:
    """Add to readings of earlier calls the `file` that they came with.

    The lake does not store where a reading came from: it is that of the latest earlier delivery
    whose span of the household covers the stamp.
    """
    if superseded.is_empty():
        return superseded.with_columns(file=pl.lit(""))
    deliveries = storage.read_table("deliveries").select("delivery", "file", "ingested_at_utc")
    spans = storage.read_table("spans").join(deliveries, on="delivery")
    rows = superseded.with_row_index("row")
    # A join with every delivery of the household, filtered: superseded readings are few.
    covers = pl.col("ts_utc").is_between("first_ts_utc", "last_ts_utc")
    latest = rows.join(spans, on="household_id").filter(covers).sort("ingested_at_utc")
    files = latest.group_by("row").agg(pl.last("file"))
    return (
        rows.join(files, on="row", how="left")
        .drop("row")
        .with_columns(pl.col("file").fill_null("an earlier delivery"))
    )


def _summarize_coverage(merged_months: list[MergedMonth]) -> dict[str, Any]:
    """Return the receipt's figures of households, nights and missing half-hours; none for none."""
    if not merged_months:
        return {}
    call_spans = load_staged(paths.staging_dir() / "spans.arrow")
    first = call_spans.get_column("first_ts_utc")
    last = call_spans.get_column("last_ts_utc")
    # Both ends count: one reading alone spans one half-hour.
    expected = ((last - first).dt.total_minutes() // 30 + 1).sum()
    return {
        "n_households": call_spans.height,
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
    """Prepare the reference tables that this call changes; return their names.

    Readings name households too, and may carry their attributes. They come first, so that the
    register has the last word. A table that cannot be read is added to `failures`.
    """
    delivered = defaultdict[storage.ReferenceTableName, list[pl.DataFrame]](list)
    for new_table in new_tables:
        directory = staged_table_dir(new_table.delivery_rank)
        for path in (directory / "spans.arrow", directory / "household_attributes.arrow"):
            if path.exists():
                households = load_staged(path).drop("first_ts_utc", "last_ts_utc", strict=False)
                delivered["households"].append(households)
    for kind, table in reference_tables:
        name = cast(storage.ReferenceTableName, kind)
        try:
            delivered[name].append(_read_reference_table(table))
        except UserError as error:
            failures.append(str(error))
    return [
        name
        for name, tables in delivered.items()
        if tables and _update_reference_table(name, tables)
    ]


def _read_reference_table(table: DeliveredTable) -> pl.DataFrame:
    rows = read_table(table, paths.staging_dir() / "reference_table")
    with name_file_in_errors(table.file):
        return parse_reference_table(rows, recognise_format(rows.columns))


def _update_reference_table(
    name: storage.ReferenceTableName, delivered: list[pl.DataFrame]
) -> bool:
    """Merge delivered tables over a reference table; return whether that changes it."""
    stored = storage.read_table(name)
    if name == "households":
        merged = merge_household_registers([stored, *delivered])
    else:
        merged = merge_reference_tables([stored, *delivered], KEY_COLUMNS[name])
    # Not written again where nothing changes, so that the same delivery again changes no file.
    if merged.equals(stored):
        return False
    storage.replace_reference_table(name, merged, root=paths.prepared_dir())
    return True
