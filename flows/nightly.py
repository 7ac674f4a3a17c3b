"""What the schedule runs."""

from dataclasses import dataclass
from datetime import date

from flows import flow, rename_flow_run, run_flow
from flows.ingest import ingest
from flows.score import OptionalNight
from ml.errors import UserError
from tasks import queries, reports, task
from tasks.ingest.commit import IngestError, IngestReceipt
from tasks.run_ledger import record_run
from tasks.scoring import ScoreReceipt, join_episodes, resolve_nights, score_span
from tasks.settings import get_settings


@dataclass(frozen=True)
class NightlyReceipt:
    """What a night came to; `checks` counts the offending rows of each."""

    ingest_receipt: IngestReceipt
    score_receipt: ScoreReceipt
    offending_rows_by_check: dict[str, int]

    def list_problems(self) -> list[str]:
        """What a person has to look at: files that cannot be read and checks that fail."""
        broken = {name: rows for name, rows in self.offending_rows_by_check.items() if rows}
        return [
            *self.ingest_receipt.failures,
            *(f"check {name}: {rows:,} offending rows" for name, rows in broken.items()),
        ]


@flow(name="nightly", flow_run_name="nightly")
def nightly(night: OptionalNight = None) -> NightlyReceipt:
    """Take in what has landed, score the night, check what changed in the tables, report.

    Raises:
        UserError: a landed file cannot be read or a check fails; the night is scored all the same.
    """
    with record_run("nightly") as record:
        ingested = ingest_landed_files()
        first, last = record.first_night, record.last_night = resolve_nights(night)
        rename_flow_run(f"nightly {first}")
        scored = score_span((first, last))
        record.model_version = scored.model_version
        join_episodes()
        receipt = NightlyReceipt(
            ingested, scored, check_tables(_first_changed_night(ingested, first))
        )
        _publish_report(receipt)
        if receipt.list_problems():
            raise UserError("\n".join(receipt.list_problems()))
    return receipt


def ingest_landed_files() -> IngestReceipt:
    """Ingest the landing directory; files that cannot be read are named in the receipt."""
    landing = get_settings().landing_dir
    if not any(path.is_file() for path in landing.rglob("[!.]*")):
        return IngestReceipt()
    try:
        return run_flow(ingest, sources=[str(landing)])
    except IngestError as error:
        return error.receipt


@task(name="check tables")
def check_tables(since: date) -> dict[str, int]:
    """Count the offending rows of every check, of the nights from `since` on."""
    return {name: len(rows) for name, rows in queries.run_checks(since).items()}


def _first_changed_night(ingest_receipt: IngestReceipt, scored_night: date) -> date:
    """The first night that a run may have changed."""
    return min(
        [date.fromisoformat(f"{month}-01") for month in ingest_receipt.changed_months]
        + [scored_night]
    )


def _publish_report(receipt: NightlyReceipt) -> None:
    scored = receipt.score_receipt
    reports.draw_most_urgent(scored.first_night, scored.last_night)
    reports.publish_artifact(
        f"nightly-{scored.last_night}",
        receipt.ingest_receipt.markdown()
        + reports.render_scores(scored)
        + reports.render_checks(receipt.offending_rows_by_check),
    )
