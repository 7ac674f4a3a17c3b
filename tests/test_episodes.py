"""One open case a household: nights join until a fortnight passes in silence."""

from datetime import date, timedelta

import polars as pl

from ml.episodes import build_episodes
from ml.schemas import ANOMALY_REASONS

FIRST = date(2013, 6, 1)


def flagged(household_id: str, offsets: list[int], reasons: list[str]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "household_id": [household_id] * len(offsets),
            "night": pl.Series([FIRST + timedelta(days=i) for i in offsets], dtype=pl.Date),
            "excess_kwh": pl.Series([1.5] * len(offsets), dtype=pl.Float32),
            "reason": pl.Series(reasons, dtype=pl.Enum(ANOMALY_REASONS)),
        }
    )


def test_nights_join_up_to_a_fortnight_apart() -> None:
    table = flagged("a", [0, 1, 15, 30], ["rise", "spike", "spike", "drop"])
    found = build_episodes(table, last_scored=FIRST + timedelta(days=30))
    # 15 is 14 nights after 1 and joins; 30 is 15 nights after 15 and opens a new case.
    assert found.rows() == [
        ("a", FIRST, FIRST + timedelta(days=15), 3, 4.5, "spike", False),
        ("a", FIRST + timedelta(days=30), FIRST + timedelta(days=30), 1, 1.5, "drop", True),
    ]


def test_households_do_not_join() -> None:
    both = pl.concat([flagged("a", [0], ["rise"]), flagged("b", [1], ["rise"])])
    assert build_episodes(both, last_scored=FIRST)["nights"].to_list() == [1, 1]


def test_the_order_of_the_rows_does_not_matter() -> None:
    table = flagged("a", [0, 5, 9], ["rise", "drop", "rise"])
    found = build_episodes(table, last_scored=FIRST)
    assert found.equals(build_episodes(table.reverse(), last_scored=FIRST))


def test_no_anomalies_make_no_episodes() -> None:
    assert len(build_episodes(flagged("a", [], []), last_scored=FIRST)) == 0
