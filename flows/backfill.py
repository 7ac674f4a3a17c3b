"""Score a range of nights."""

from datetime import date
from typing import Annotated

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field
from rich.console import Console
from rich.progress import Progress

from tasks.reports import publish_score_report
from tasks.run_ledger import record_run
from tasks.scoring import (
    ScoreReceipt,
    combine_receipts,
    join_episodes,
    resolve_nights,
    score_span,
    split_into_spans,
)

FirstNight = Annotated[date, Field(description="first night to score (UTC calendar day)")]
LastNight = Annotated[date, Field(description="last night to score, included")]


# One span at a time: each holds the home's write lock and a fleet of its nights in memory, and
# finds the network outputs of the span before in the score cache.
@flow(
    name="backfill",
    flow_run_name="backfill {first_night} to {last_night}",
    task_runner=ThreadPoolTaskRunner(max_workers=1),  # type: ignore[arg-type]  # invariant
)
def backfill(first_night: FirstNight, last_night: LastNight) -> ScoreReceipt:
    """Score the nights `first_night` to `last_night` again, a month at a time.

    Each night comes out as if it were scored alone. Returns the receipt of all nights together.

    Raises:
        UserError: the lake lacks a night, or there is no champion.
    """
    with record_run("backfill", first_night, last_night) as record:
        spans = list(split_into_spans(*resolve_nights(first_night, last_night)))
        with _build_progress_bar() as bar:
            bar_id = bar.add_task("backfill", total=len(spans))
            receipts = score_span.map(spans, on_done=lambda: bar.advance(bar_id))
        receipt = combine_receipts(receipts)
        join_episodes()
        record.model_version = receipt.model_version
        publish_score_report(receipt)
    return receipt


def _build_progress_bar() -> Progress:
    """Return a bar for a terminal; nothing is shown where standard error is none."""
    console = Console(stderr=True)
    return Progress(console=console, disable=not console.is_terminal)
