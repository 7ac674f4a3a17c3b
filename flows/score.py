"""Score one night."""

from datetime import date
from typing import Annotated

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from ml.errors import UserError
from tasks.reports import publish_score_report
from tasks.run_ledger import record_run
from tasks.scoring import ScoreReceipt, join_episodes, resolve_nights, score_span

OptionalNight = Annotated[
    date | None,
    Field(description="calendar day (UTC) whose 48 half-hours are scored; empty: the lake's last"),
]


def format_run_name() -> str:
    """Return the run's name, which says the night also where the lake's last one is meant."""
    try:
        night, _ = resolve_nights(flow_run.parameters.get("night"))
    except UserError:
        # The flow raises the same; a name that raises would leave the run Pending.
        return f"{flow_run.flow_name} {flow_run.parameters.get('night')}"
    return f"{flow_run.flow_name} {night}"


@flow(name="score", flow_run_name=format_run_name)
def score(night: OptionalNight = None) -> ScoreReceipt:
    """Score a night for every registered household and replace its tables.

    Raises:
        UserError: the lake lacks the night, or there is no champion.
    """
    with record_run("score") as record:
        record.first_night, record.last_night = resolve_nights(night)
        receipt = score_span((record.first_night, record.last_night))
        join_episodes()
        record.model_version = receipt.model_version
        publish_score_report(receipt)
    return receipt
