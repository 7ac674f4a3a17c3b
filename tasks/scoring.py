"""Score nights with the champion and replace their result tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

import polars as pl
import torch

from ml.episodes import build_episodes
from ml.errors import UserError
from ml.scoring.tables import first_night_needed, score_nights
from tasks import registry, storage, task
from tasks.fleet_loading import load_fleet
from tasks.score_cache import ScoreCache
from tasks.settings import get_settings

NIGHTS_PER_SPAN: Final = 31
"""Nights that are scored at once: 14 nights of 5,567 households, with 13 before them computed for
the first time, took 2.3 GB."""


@dataclass(frozen=True)
class ScoreReceipt:
    """What scoring a span of nights came to."""

    first_night: date
    last_night: date
    n_household_nights: int
    n_flagged: int
    counts_by_status: dict[str, int]
    model_version: str

    def line(self) -> str:
        """Return the outcome in one line, for a terminal."""
        nights = (
            f"{self.first_night}"
            if self.first_night == self.last_night
            else f"{self.first_night} to {self.last_night}"
        )
        statuses = ", ".join(f"{rows:,} {status}" for status, rows in self.counts_by_status.items())
        return (
            f"{nights}: {self.n_household_nights:,} household-nights ({statuses}), "
            f"{self.n_flagged:,} flagged, by version {self.model_version}"
        )


def split_into_spans(first_night: date, last_night: date) -> Iterator[tuple[date, date]]:
    """Yield the nights `first_night` to `last_night` as spans that fit in memory."""
    step = timedelta(days=NIGHTS_PER_SPAN)
    while first_night <= last_night:
        yield first_night, min(first_night + step - timedelta(days=1), last_night)
        first_night += step


def resolve_nights(first_night: date | None, last_night: date | None = None) -> tuple[date, date]:
    """Return the first and last night to score, by default the last one of the lake.

    Raises:
        UserError: the lake is empty, or a night lies outside it.
    """
    begin, end = storage.read_night_range()
    first_night = first_night or end
    last_night = last_night or first_night
    if first_night > last_night:
        raise UserError(f"the first night {first_night} is after the last night {last_night}")
    for night in (first_night, last_night):
        if not begin <= night <= end:
            raise UserError(f"night {night} is outside the lake, which holds {begin} to {end}")
    return first_night, last_night


@task(name="score nights")
def score_span(span: tuple[date, date]) -> ScoreReceipt:
    """Score the nights of a span with the champion and replace their tables.

    Raises:
        UserError: there is no champion, or its calibration cannot hold the alert budget.
    """
    first_night, last_night = span
    settings = get_settings()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    detector, version = registry.load_champion()
    with storage.hold_write_lock():
        fleet = load_fleet(first_night_needed(first_night, detector), last_night)
        cache = ScoreCache(fleet, f"{version} {settings.engine}", settings.min_readings)
        tables = score_nights(
            detector,
            fleet,
            first_night,
            min_readings=settings.min_readings,
            alert_budget=settings.alert_budget,
            model_version=version,
            cached=cache.load_scores(),
        )
        cache.store_scores(tables.to_cache)
        for night in pl.date_range(first_night, last_night, eager=True):
            is_night = pl.col("night") == night
            storage.replace_night("anomalies", night, tables.anomalies.filter(is_night))
            storage.replace_night("nights", night, tables.nights.filter(is_night))
            storage.replace_night("scores", night, tables.scores.filter(is_night))
    return _build_receipt(first_night, last_night, tables.scores, version)


@task(name="join episodes")
def join_episodes() -> int:
    """Join all flagged nights to episodes, replace what changed, and return how many are open."""
    with storage.hold_write_lock():
        flagged = storage.scan_table("anomalies").select(
            "household_id", "night", "excess_kwh", "reason"
        )
        scored_nights = storage.list_table_nights("scores")
        episodes = build_episodes(
            storage.collect_with_retry(flagged), last_scored=scored_nights[-1]
        )
        stored = _partition_by_first_night(storage.read_table("episodes"))
        stored_nights = set(storage.list_table_nights("episodes"))
        joined = _partition_by_first_night(episodes)
        no_episode = episodes.clear()
        for night in sorted(stored_nights.union(scored_nights)):
            of_night = joined.get((night,), no_episode)
            is_changed = not of_night.equals(stored.get((night,), no_episode))
            # A scored night without an episode has an empty file, so that globs see every night.
            if night not in stored_nights or is_changed:
                storage.replace_night("episodes", night, of_night)
    return int(episodes["is_open"].sum())


def _partition_by_first_night(episodes: pl.DataFrame) -> dict[tuple[Any, ...], pl.DataFrame]:
    return episodes.sort("household_id").partition_by("first_night", as_dict=True)


def _build_receipt(
    first_night: date, last_night: date, scores: pl.DataFrame, model_version: str
) -> ScoreReceipt:
    by_status = scores.group_by("status").len().sort("status")
    return ScoreReceipt(
        first_night=first_night,
        last_night=last_night,
        n_household_nights=len(scores),
        n_flagged=int(scores["is_anomaly"].sum()),
        counts_by_status=dict(by_status.iter_rows()),
        model_version=model_version,
    )


def combine_receipts(receipts: list[ScoreReceipt]) -> ScoreReceipt:
    """Return the receipt of consecutive spans together."""
    statuses = sorted({status for receipt in receipts for status in receipt.counts_by_status})
    return ScoreReceipt(
        first_night=receipts[0].first_night,
        last_night=receipts[-1].last_night,
        n_household_nights=sum(receipt.n_household_nights for receipt in receipts),
        n_flagged=sum(receipt.n_flagged for receipt in receipts),
        counts_by_status={s: sum(r.counts_by_status.get(s, 0) for r in receipts) for s in statuses},
        model_version=receipts[-1].model_version,
    )
