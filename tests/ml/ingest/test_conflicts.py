"""Of several readings of one half-hour one is kept, and each of the others is reported."""

from datetime import date, datetime, timedelta

import numpy as np
import polars as pl

from ml.ingest.conflicts import (
    LAKE_RANK,
    DeliveredHouseholdNights,
    count_readings_in_spans,
    resolve_conflicts,
)
from ml.schemas import HouseholdNights

NIGHT = date(2013, 6, 3)


def at(half_hour: int) -> datetime:
    """The stamp of a half-hour of NIGHT."""
    return datetime(2013, 6, 3) + timedelta(minutes=30 * half_hour)


def deliver(
    rank: int, readings: dict[tuple[str, int], float], collisions: pl.DataFrame | None = None
) -> DeliveredHouseholdNights:
    """A delivery of one night: kWh by household and half-hour."""
    households = sorted({household for household, _ in readings})
    kwh = np.full((len(households), 48), np.nan, dtype=np.float32)
    for (household, half_hour), value in readings.items():
        kwh[households.index(household), half_hour] = value
    frame = pl.DataFrame({"night": [NIGHT] * len(kwh), "household_id": households, "kwh": kwh})
    return DeliveredHouseholdNights(rank, frame, collisions)


def resolve(
    *deliveries: DeliveredHouseholdNights,
) -> tuple[dict[tuple[str, int], float], list[tuple[object, ...]], dict[int, int]]:
    """Resolve; return kept readings, losing readings without household, repeated counts."""
    resolved = resolve_conflicts(list(deliveries))
    HouseholdNights.validate(resolved.household_nights)
    kept = {
        (household, half_hour): round(kwh, 3)
        for household, readings in resolved.household_nights.select("household_id", "kwh").rows()
        for half_hour, kwh in enumerate(readings)
        if kwh is not None
    }
    return kept, sorted(resolved.losing_readings.rows()), resolved.n_repeated_by_rank


def test_later_delivery_wins_and_the_earlier_reading_is_superseded() -> None:
    kept, losing, _ = resolve(deliver(0, {("A", 1): 0.9}), deliver(1, {("A", 1): 0.2}))
    assert kept == {("A", 1): 0.2}
    assert losing == [("A", at(1), "0.9", "superseded", 0, 1)]


def test_reading_of_the_lake_is_superseded_by_the_call() -> None:
    kept, losing, _ = resolve(deliver(LAKE_RANK, {("A", 1): 0.9}), deliver(0, {("A", 1): 0.2}))
    assert kept == {("A", 1): 0.2}
    assert losing == [("A", at(1), "0.9", "superseded", LAKE_RANK, 0)]


def test_largest_reading_wins_among_parts_of_one_delivery() -> None:
    parts = [deliver(0, {("A", 1): value}) for value in (0.5, 0.75, 0.25, 0.75)]
    kept, losing, _ = resolve(*parts)
    assert kept == {("A", 1): 0.75}
    assert losing == [
        ("A", at(1), "0.25", "superseded", 0, 0),
        ("A", at(1), "0.5", "superseded", 0, 0),
        ("A", at(1), "0.75", "duplicate", 0, 0),
    ]


def test_equal_readings_of_two_deliveries_are_one_and_a_duplicate() -> None:
    kept, losing, repeated = resolve(deliver(0, {("A", 1): 0.5}), deliver(1, {("A", 1): 0.5}))
    assert kept == {("A", 1): 0.5}
    assert losing == [("A", at(1), "0.5", "duplicate", 1, 1)]
    assert not any(repeated.values())


def test_reading_that_the_lake_holds_is_repeated_and_no_duplicate() -> None:
    held = deliver(LAKE_RANK, {("A", 1): 0.5, ("A", 2): 0.5})
    kept, losing, repeated = resolve(held, deliver(0, {("A", 1): 0.5, ("A", 3): 0.1}))
    assert kept == {("A", 1): 0.5, ("A", 2): 0.5, ("A", 3): 0.1}
    assert losing == []
    assert repeated == {0: 1}


def test_reading_of_the_lake_that_two_deliveries_repeat_counts_for_the_first() -> None:
    held, first, second = (deliver(rank, {("A", 1): 0.5}) for rank in (LAKE_RANK, 0, 1))
    _, losing, repeated = resolve(held, first, second)
    assert losing == [("A", at(1), "0.5", "duplicate", 1, 1)]
    assert repeated == {0: 1, 1: 0}


def test_missing_reading_of_a_later_delivery_supersedes_nothing() -> None:
    kept, losing, _ = resolve(deliver(0, {("A", 1): 0.5}), deliver(1, {("A", 2): 0.25}))
    assert kept == {("A", 1): 0.5, ("A", 2): 0.25}
    assert losing == []


def test_collision_is_a_duplicate_of_the_kept_reading_or_superseded_by_it() -> None:
    collisions = pl.DataFrame(
        {
            "household_id": ["A", "A"],
            "ts_utc": pl.Series([at(1), at(1)], dtype=pl.Datetime("us")),
            "value": ["0.50", "0.2"],
            "kwh": pl.Series([0.5, 0.2], dtype=pl.Float32),
        }
    )
    _, losing, _ = resolve(deliver(3, {("A", 1): 0.5}, collisions))
    assert losing == [
        ("A", at(1), "0.2", "superseded", 3, 3),
        ("A", at(1), "0.50", "duplicate", 3, 3),
    ]


def test_resolved_household_nights_are_sorted_and_counted() -> None:
    resolved = resolve_conflicts(
        [deliver(0, {("B", 0): 1, ("B", 1): 1}), deliver(1, {("A", 47): 0})]
    )
    columns = ("night", "household_id", "n_readings")
    assert resolved.household_nights.select(columns).rows() == [(NIGHT, "A", 1), (NIGHT, "B", 2)]


def test_count_readings_in_spans_includes_both_ends_and_no_other_household() -> None:
    readings = {("A", half_hour): 1.0 for half_hour in range(10)} | {("B", 0): 1.0}
    household_nights = resolve_conflicts([deliver(0, readings)]).household_nights
    spans = pl.DataFrame(
        {"household_id": ["A"], "first_ts_utc": [at(2)], "last_ts_utc": [at(4)]}
    ).cast({"first_ts_utc": pl.Datetime("us"), "last_ts_utc": pl.Datetime("us")})
    assert count_readings_in_spans(household_nights, spans) == 3
    elsewhere = spans.with_columns(household_id=pl.lit("C"))
    assert count_readings_in_spans(household_nights, elsewhere) == 0
