"""Ingest what has landed, score the night, check and report: what the schedule runs."""

from dataclasses import dataclass
from datetime import date

from prefect import flow

from flows import rename_flow_run, run_flow
from flows.ingest import ingest
from flows.score import OptionalNight
from ml.errors import UserError
from tasks import reports
from tasks.ingest.commit import IngestError, IngestReceipt
from tasks.queries import count_offending_rows
from tasks.run_ledger import record_run
from tasks.scoring import ScoreReceipt, join_episodes, resolve_nights, score_span
from tasks.settings import get_settings


@dataclass(frozen=True)
class NightlyReceipt:
    """What a nightly run ingested and scored, and the offending rows that each check found."""

    ingest_receipt: IngestReceipt
    score_receipt: ScoreReceipt
    offending_rows_by_check: dict[str, int]

    def lines(self) -> list[str]:
        """Return what happened, for a terminal."""
        ingested = self.ingest_receipt.lines() if self.ingest_receipt.files else []
        return [
            *(ingested or ["nothing new has landed"]),
            self.score_receipt.line(),
            f"{len(self.offending_rows_by_check)} checks passed",
        ]

    def list_problems(self) -> list[str]:
        """Return a line for each file that cannot be read and each check that fails."""
        failed = {name: rows for name, rows in self.offending_rows_by_check.items() if rows}
        return [
            *self.ingest_receipt.failures,
            *(f"check {name}: {rows:,} offending rows" for name, rows in failed.items()),
        ]


@flow(name="nightly", flow_run_name="nightly")
def nightly(night: OptionalNight = None) -> NightlyReceipt:
    """Ingest what has landed, score the night, check what changed in the tables, report.

    Raises:
        UserError: a landed file cannot be read or a check fails; the night is scored all the same.
    """
    with record_run("nightly") as record:
        ingest_receipt = ingest_landed_files()
        first_night, last_night = resolve_nights(night)
        record.first_night = first_night
        record.last_night = last_night
        rename_flow_run(f"nightly {first_night}")
        score_receipt = score_span((first_night, last_night))
        record.model_version = score_receipt.model_version
        join_episodes()
        since = _find_first_changed_night(ingest_receipt, first_night)
        receipt = NightlyReceipt(ingest_receipt, score_receipt, count_offending_rows(since))
        _publish_report(receipt)
        problems = receipt.list_problems()
        if problems:
            raise UserError("\n".join(problems))
    return receipt


def ingest_landed_files() -> IngestReceipt:
    """Ingest the landing directory; the receipt names files that cannot be read.

    An empty or absent directory gives an empty receipt, and no run of `ingest`.
    """
    landing = get_settings().landing_dir
    if not any(path.is_file() for path in landing.rglob("[!.]*")):
        return IngestReceipt()
    try:
        return run_flow(ingest, sources=[str(landing)])
    except IngestError as error:
        return error.receipt


def _find_first_changed_night(ingest_receipt: IngestReceipt, scored_night: date) -> date:
    """Return the first night that the run may have changed: of a lake month, or the scored one."""
    first_nights = [date.fromisoformat(f"{month}-01") for month in ingest_receipt.changed_months]
    return min([*first_nights, scored_night])


def _publish_report(receipt: NightlyReceipt) -> None:
    scored = receipt.score_receipt
    reports.draw_most_urgent(scored.first_night, scored.last_night)
    reports.publish_artifact(
        f"nightly-{scored.last_night}",
        receipt.ingest_receipt.markdown()
        + reports.render_scores(scored)
        + reports.render_checks(receipt.offending_rows_by_check),
    )
