"""Score a range of nights."""

from collections.abc import Iterable, Iterator
from datetime import date
from typing import Annotated

from pydantic import Field
from rich.console import Console
from rich.progress import track

from flows import flow
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
NightRange = tuple[date, date]


@flow(name="backfill", flow_run_name="backfill {first_night} to {last_night}")
def backfill(first_night: FirstNight, last_night: LastNight) -> ScoreReceipt:
    """Score the nights `first_night` to `last_night`, a month at a time, as if each were scored alone."""
    with record_run("backfill", first_night, last_night) as record:
        receipt = combine_receipts(
            score_span.map(
                _iter_with_progress(split_into_spans(*resolve_nights(first_night, last_night)))
            )
        )
        join_episodes()
        record.model_version = receipt.model_version
        publish_score_report(receipt)
    return receipt


def _iter_with_progress(night_ranges: Iterable[NightRange]) -> Iterator[NightRange]:
    """The spans one by one, with a progress bar where a person watches."""
    console = Console(stderr=True)
    yield from track(
        list(night_ranges), description="backfill", console=console, disable=not console.is_terminal
    )
