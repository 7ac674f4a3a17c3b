"""One open case a household: nights join until a fortnight passes in silence."""

from datetime import date, timedelta

import polars as pl

from ml.episodes import build_episodes
from ml.schemas import ANOMALY_REASONS

FIRST_NIGHT = date(2013, 6, 1)


def build_flagged_nights(household_id: str, offsets: list[int], reasons: list[str]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "household_id": [household_id] * len(offsets),
            "night": pl.Series([FIRST_NIGHT + timedelta(days=i) for i in offsets], dtype=pl.Date),
            "excess_kwh": pl.Series([1.5] * len(offsets), dtype=pl.Float32),
            "reason": pl.Series(reasons, dtype=pl.Enum(ANOMALY_REASONS)),
        }
    )


def test_flagged_nights_join_up_to_silence_nights_apart() -> None:
    table = build_flagged_nights("a", [0, 1, 15, 30], ["rise", "spike", "spike", "drop"])
    found = build_episodes(table, last_scored=FIRST_NIGHT + timedelta(days=30))
    # 15 is 14 nights after 1 and joins; 30 is 15 nights after 15 and opens a new case.
    assert found.rows() == [
        ("a", FIRST_NIGHT, FIRST_NIGHT + timedelta(days=15), 3, 4.5, "spike", False),
        (
            "a",
            FIRST_NIGHT + timedelta(days=30),
            FIRST_NIGHT + timedelta(days=30),
            1,
            1.5,
            "drop",
            True,
        ),
    ]


def test_episodes_do_not_join_households() -> None:
    both = pl.concat(
        [build_flagged_nights("a", [0], ["rise"]), build_flagged_nights("b", [1], ["rise"])]
    )
    assert build_episodes(both, last_scored=FIRST_NIGHT)["nights"].to_list() == [1, 1]


def test_episodes_do_not_depend_on_row_order() -> None:
    table = build_flagged_nights("a", [0, 5, 9], ["rise", "drop", "rise"])
    found = build_episodes(table, last_scored=FIRST_NIGHT)
    assert found.equals(build_episodes(table.reverse(), last_scored=FIRST_NIGHT))


def test_no_anomalies_give_no_episodes() -> None:
    assert len(build_episodes(build_flagged_nights("a", [], []), last_scored=FIRST_NIGHT)) == 0
