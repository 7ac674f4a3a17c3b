"""Alerts at most 14 nights apart are one episode, in the table and in the calibration."""

from datetime import date, timedelta

import numpy as np
import polars as pl

from ml.episodes import SILENCE_NIGHTS, build_episodes, find_episode_starts
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


def test_alert_opens_an_episode_after_the_silence() -> None:
    is_alert = np.zeros((2, 40), dtype=bool)
    is_alert[0, [3, 5, 17, 33]] = True
    starts = find_episode_starts(is_alert)
    # 17 lies within 14 nights of 5, 33 lies 16 nights behind 17.
    assert np.flatnonzero(starts[0]).tolist() == [3, 33]
    assert not starts[1].any()


def test_silence_runs_from_the_last_alert_not_from_the_opening() -> None:
    is_alert = np.zeros((1, 21), dtype=bool)
    is_alert[0, [0, 10, 20]] = True
    assert find_episode_starts(is_alert).sum() == 1


def test_episode_starts_agree_with_the_episodes_table() -> None:
    is_alert = np.random.default_rng(0).random((30, 120)) < 0.05
    is_alert[0] = False
    h, d = np.nonzero(is_alert)
    flagged = pl.concat(
        [
            build_flagged_nights(f"h{row:02d}", d[h == row].tolist(), ["rise"] * (h == row).sum())
            for row in np.unique(h)
        ]
    )
    episodes = build_episodes(flagged, last_scored=FIRST_NIGHT + timedelta(days=119))
    row, night = np.nonzero(find_episode_starts(is_alert))
    opened = [
        (f"h{r:02d}", FIRST_NIGHT + timedelta(days=int(n))) for r, n in zip(row, night, strict=True)
    ]
    assert sorted(episodes.select("household_id", "first_night").rows()) == sorted(opened)
    assert SILENCE_NIGHTS == 14
