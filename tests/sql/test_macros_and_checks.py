"""Every named query answers as worked out by hand; every check finds what breaks it, only that."""

from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs
import pytest

from ml.schemas import QUARANTINE_RULES
from tasks import paths, queries, storage
from tests import small_home
from tests.small_home import NIGHTS

JAN_30, JAN_31, FEB_1, FEB_2 = NIGHTS


@pytest.fixture(autouse=True)
def small(home: Path) -> Path:
    small_home.write_small_home()
    return home


# The rows of each query over the home drawn in small_home, by the columns named.
ANSWERS: dict[str, tuple[dict[str, str], str, list[tuple[Any, ...]]]] = {
    "alert_load": (
        {},
        "night scored flagged flagged_per_1000",
        # B and D have no score, so 2 of 2 and 1 of 2 are flagged.
        [(FEB_2, 2, 2, 1000.0), (FEB_1, 2, 1, 500.0)],
    ),
    "anomalies_by_group": (
        {},
        "acorn_group tariff households flagged_households scored_nights flagged_nights "
        "flagged_per_1000",
        [
            (None, None, 1, 1, 2, 2, 1000.0),  # C
            ("Affluent", "Std", 2, 1, 2, 1, 500.0),  # A on one of two nights, D never scored
            ("Adversity", "ToU", 1, 0, 0, 0, None),  # B never scored
        ],
    ),
    "coverage_by_night": (
        {"first_night": "2014-01-31"},
        "night registered delivered readings scored cold_start incomplete missing flagged",
        [
            (FEB_2, 4, 3, 48 + 10 + 48, 1, 1, 1, 1, 2),
            (FEB_1, 4, 2, 48 + 48, 1, 1, 0, 2, 1),
            (JAN_31, 4, 1, None, None, None, None, None, None),
        ],
    ),
    "gaps_by_household": (
        {},
        "household_id first_utc last_utc readings missing",
        [
            # B from 04:30 on 30 Jan to the half-hour of 04:30 on 2 Feb: 3 * 48 + 1 - (39 + 10).
            ("B", datetime(2014, 1, 30, 4, 30), datetime(2014, 2, 2, 4, 30), 49, 96),
            ("A", datetime(2014, 1, 30), datetime(2014, 2, 2, 23, 30), 191, 1),
        ],
    ),
    "household_history": (
        {"household_id": "A"},
        "night status n_readings p_value rank is_anomaly reason",
        [
            (FEB_1, "scored", 48, 0.5, 2, False, None),
            (FEB_2, "scored", 48, pytest.approx(0.002), 2, True, "rise"),
        ],
    ),
    "lake_coverage": (
        {},
        "registered households first_night last_night household_nights readings missing_share",
        # 191 of A, 49 of B, 96 of C; 1 - 336 / (8 * 48).
        [(4, 3, JAN_30, FEB_2, 8, 336, 0.125)],
    ),
    "missing_nights": (
        {},
        "household_id first_night last_night nights",
        [("B", JAN_31, FEB_1, 2), ("C", JAN_30, JAN_31, 2), ("D", JAN_30, FEB_2, 4)],
    ),
    "open_episodes": (
        {},
        "household_id acorn_group first_night last_night nights excess_kwh reason",
        [("C", None, FEB_1, FEB_2, 2, 8.0, "spike")],
    ),
    "quarantine_by_rule": (
        {},
        "rule rows households files first_utc last_utc",
        [
            ("duplicate", 2, 2, 1, datetime(2014, 1, 30), datetime(2014, 1, 30, 5)),
            ("null", 1, 1, 1, datetime(2014, 1, 31, 1), datetime(2014, 1, 31, 1)),
        ],
    ),
    "recent_runs": (
        {"n": "1"},
        "verb state seconds first_night rows_in model_version",
        [("score", "completed", 1.5, FEB_1, None, "1")],
    ),
    "scores_of_night": (
        {},
        "household_id night rank status",
        [
            ("C", FEB_2, 1, "cold_start"),
            ("A", FEB_2, 2, "scored"),
            ("B", FEB_2, None, "incomplete"),
            ("D", FEB_2, None, "missing"),
        ],
    ),
    "top_anomalies": (
        {"n": "1"},
        "rank household_id reason start_utc excess_kwh actual_kwh expected_kwh evidence",
        [(1, "C", "spike", datetime(2014, 2, 2, 8), 4.0, 24.0, 20.0, 3.0)],
    ),
    "top_households": (
        {"first_night": "2014-02-01"},
        "household_id acorn_group reason first_night last_night nights excess_kwh evidence",
        [
            ("C", None, "spike", FEB_1, FEB_2, 2, 8.0, 3.0),
            ("A", "Affluent", "rise", FEB_2, FEB_2, 1, 4.0, 1.0),
        ],
    ),
}


def test_every_named_query_has_an_expected_answer() -> None:
    assert ANSWERS.keys() == queries.list_queries().keys()


@pytest.mark.parametrize("name", ANSWERS)
def test_named_query_returns_the_expected_rows(name: str) -> None:
    given, columns, rows = ANSWERS[name]
    assert queries.run_query(name, given).select(columns.split()).rows() == rows


@pytest.mark.parametrize(
    ("name", "given", "column", "found"),
    [
        ("top_anomalies", {"night": "2014-02-01"}, "household_id", ["C"]),
        ("scores_of_night", {"night": "2014-02-01"}, "rank", [1, 2, None, None]),
        ("household_history", {"household_id": "A", "last_night": "2014-02-01"}, "night", [FEB_1]),
        ("coverage_by_night", {"n": "1"}, "night", [FEB_2]),
        ("missing_nights", {"household_id": "C"}, "household_id", ["C"]),
        # Without 2 Feb, B's last reading is 23:30 on 30 Jan: nothing is missing before it.
        ("gaps_by_household", {"last_night": "2014-02-01"}, "household_id", ["A"]),
        ("anomalies_by_group", {"last_night": "2014-02-01"}, "flagged_nights", [1, 0, 0]),
        ("alert_load", {"last_night": "2014-02-01"}, "night", [FEB_1]),
        ("open_episodes", {"limit": "0"}, "household_id", []),
    ],
)
def test_named_query_parameters_filter_the_rows(
    name: str, given: dict[str, str], column: str, found: list[Any]
) -> None:
    assert queries.run_query(name, given)[column].to_list() == found


def test_consistent_home_passes_every_check() -> None:
    assert {name: rows.height for name, rows in queries.run_checks().items() if rows.height} == {}


def _file(table: str, night: date) -> Path:
    return paths.home_dir() / f"tables/{table}/night={night}/{table}.parquet"


def _with(frame: pl.DataFrame, household: str, **values: object) -> pl.DataFrame:
    """The frame with other values for a household, also ones outside a vocabulary."""
    frame = frame.with_columns(cs.enum().cast(pl.String))
    chosen = pl.col("household_id") == household
    return frame.with_columns(
        pl.when(chosen).then(pl.lit(value, frame.schema[name])).otherwise(name).alias(name)
        for name, value in values.items()
    )


def _set(table: str, night: date, household: str, **values: object) -> Callable[[], None]:
    """Change a household's values in a night of a table, past the schema's guard."""

    def change() -> None:
        path = _file(table, night)
        storage.replace_parquet(path, _with(pl.read_parquet(path), household, **values))

    return change


def _drop(table: str, night: date, household: str) -> Callable[[], None]:
    def change() -> None:
        path = _file(table, night)
        storage.replace_parquet(
            path, pl.read_parquet(path).filter(pl.col("household_id") != household)
        )

    return change


def _twice(table: str, night: date, household: str) -> Callable[[], None]:
    def change() -> None:
        rows = pl.read_parquet(_file(table, night))
        again = rows.filter(pl.col("household_id") == household)
        storage.replace_parquet(_file(table, night), pl.concat([rows, again]))

    return change


def _empty(table: str, night: date) -> Callable[[], None]:
    return lambda: storage.replace_parquet(
        _file(table, night), pl.read_parquet(_file(table, night)).clear()
    )


def _forget(household: str) -> None:
    rows = small_home.build_households().filter(pl.col("household_id") != household)
    storage.replace_reference_table("households", rows)


def _skip_a_night() -> None:
    later = date(2014, 2, 5)
    storage.replace_night(
        "scores", later, small_home.build_scores().head(4).with_columns(night=later)
    )


def _day(household: str, night: date, kwh: list[float | None], month: date) -> None:
    """Add a household-day to the file of a month."""
    path = paths.home_dir() / f"lake/days/month={month:%Y-%m}/days.parquet"
    rows = pl.read_parquet(path)
    day = (night, household, 48 - kwh.count(None), kwh)
    extra = pl.DataFrame([day], schema=rows.schema, orient="row")
    storage.replace_parquet(path, pl.concat([rows, extra]))


def _ledger(**values: int) -> Callable[[], None]:
    rows = small_home.build_delivery().with_columns(
        pl.lit(value, pl.Int64).alias(name) for name, value in values.items()
    )
    return lambda: storage.replace_ledger_entry("deliveries", "first", rows)


def _leave(path: str, table: str, night: date) -> Callable[[], None]:
    """Leave a copy of a night somewhere else among the results."""

    def change() -> None:
        storage.replace_parquet(paths.home_dir() / path, pl.read_parquet(_file(table, night)))

    return change


# check, what breaks it, the columns that tell, and exactly the rows that it must show
BREAKS: list[tuple[str, Callable[[], None], str, list[tuple[Any, ...]]]] = [
    (
        "anomalies_have_scores",
        _drop("anomalies", FEB_2, "A"),
        "night household_id problem",
        [(FEB_2, "A", "not in anomalies")],
    ),
    (
        "anomalies_have_scores",
        _set("scores", FEB_1, "C", is_anomaly=False, reason=None),
        "night household_id problem",
        [(FEB_1, "C", "not in scores")],
    ),
    (
        "anomalies_have_scores",
        _twice("anomalies", FEB_1, "C"),
        "night household_id problem",
        [(FEB_1, "C", "not in scores")],
    ),
    (
        "anomalies_have_scores",
        _set("anomalies", FEB_2, "A", reason="drop"),
        "household_id reason problem",
        [("A", "drop", "not in scores"), ("A", "rise", "not in anomalies")],
    ),
    (
        "anomalies_complete",
        _set("anomalies", FEB_2, "A", expected_kwh=[0.5] * 47),
        "night household_id n_expected",
        [(FEB_2, "A", 47)],
    ),
    (
        "anomalies_complete",
        _set("anomalies", FEB_2, "A", end_utc=datetime(2014, 2, 3, 0, 30)),
        "night household_id",
        [(FEB_2, "A")],
    ),
    (
        "household_nights_unique",
        lambda: _day("A", FEB_1, small_home.FLAT_PROFILE_KWH, month=FEB_1),
        "night household_id rows months",
        [(FEB_1, "A", 2, ["2014-02"])],
    ),
    (
        "household_nights_unique",
        lambda: _day("B", FEB_1, small_home.FLAT_PROFILE_KWH, month=JAN_30),
        "night household_id rows months",
        [(FEB_1, "B", 1, ["2014-01"])],
    ),
    (
        "episodes_cover_anomalies",
        _empty("episodes", FEB_2),
        "household_id night problem",
        [("A", FEB_2, "0 episodes hold this night")],
    ),
    (
        "episodes_cover_anomalies",
        _set("episodes", FEB_1, "C", nights=3),
        "household_id night problem",
        [("C", FEB_1, "2 anomalies in an episode of 3")],
    ),
    (
        "episodes_cover_anomalies",
        _twice("episodes", FEB_2, "A"),
        "household_id night problem",
        [
            ("A", FEB_2, "2 anomalies in an episode of 1"),
            ("A", FEB_2, "2 episodes hold this night"),
        ],
    ),
    (
        "episodes_cover_anomalies",
        _set("episodes", FEB_2, "A", last_night=date(2014, 2, 9)),
        "household_id night problem",
        [("A", FEB_2, "an episode begins or ends on a night without anomaly")],
    ),
    (
        "files_in_place",
        _leave("tables/scores/night=2014-02-01/part-1.parquet", "scores", FEB_1),
        "problem",
        [("foreign file",)],
    ),
    (
        "files_in_place",
        _leave("tables/scores/night=2014-02-03/scores.parquet", "scores", FEB_2),
        "problem",
        [("rows of another night",)],
    ),
    (
        "flagged_ranked_first",
        _set("scores", FEB_2, "C", is_anomaly=False),
        "night household_id rank first_unflagged_rank",
        [(FEB_2, "A", 2, 1)],
    ),
    (
        "scored_nights_contiguous",
        _skip_a_night,
        "first_night last_night nights",
        [(date(2014, 2, 3), date(2014, 2, 4), 2)],
    ),
    (
        "ranks_contiguous",
        _set("scores", FEB_2, "A", rank=3),
        "night household_id rank expected_rank",
        [(FEB_2, "A", 3, 2)],
    ),
    (
        "ranks_contiguous",
        _set("scores", FEB_2, "A", rank=1),
        "night household_id rank expected_rank",
        # A comes before C, so C is the one expected second.
        [(FEB_2, "C", 1, 2)],
    ),
    (
        "ranks_contiguous",
        _set("scores", FEB_2, "C", rank=None),
        "household_id rank expected_rank",
        [("A", 2, 1), ("C", None, 2)],
    ),
    (
        "readings_within_limits",
        lambda: _day("D", FEB_1, [12.5, *[0.5] * 47], month=FEB_1),
        "night household_id peak_kwh",
        [(FEB_1, "D", 12.5)],
    ),
    (
        "readings_within_limits",
        lambda: _day("D", FEB_1, [-0.5, *[0.5] * 47], month=FEB_1),
        "night household_id min_kwh",
        [(FEB_1, "D", -0.5)],
    ),
    (
        "readings_within_limits",
        lambda: _day("D", FEB_1, [None] * 48, month=FEB_1),
        "night household_id n_readings",
        [(FEB_1, "D", 0)],
    ),
    (
        "rows_add_up",
        _ledger(rows_in=340),
        "file rows_in rows_kept rows_quarantined quarantined",
        [("all files", 340, 336, 3, 3), ("block.csv", 340, 336, 3, 3)],
    ),
    (
        "rows_add_up",
        _ledger(rows_kept=335, rows_quarantined=4),
        "file rows_in rows_kept rows_quarantined quarantined",
        [("block.csv", 339, 335, 4, 3)],
    ),
    (
        "rows_add_up",
        lambda: storage.replace_ledger_entry(
            "quarantine", "lost", small_home.build_quarantine().head(1)
        ),
        "file delivery rows_in rows_kept quarantined",
        # Its file is known, its delivery is not; 339 in, 336 readings and 3 + 1 rows quarantined.
        [("all files", None, 339, 336, 4), (None, "lost", None, None, 0)],
    ),
    (
        "rows_add_up",
        lambda: _day("D", FEB_1, [0.5] * 47 + [None], month=FEB_1),
        "file rows_in rows_kept rows_quarantined",
        # 47 readings that nobody delivered.
        [("all files", 339, 336 + 47, 3)],
    ),
    (
        "scores_of_every_household",
        _drop("scores", FEB_2, "D"),
        "night household_id problem",
        [(FEB_2, "D", "no row")],
    ),
    (
        "scores_of_every_household",
        _drop("scores", FEB_1, "B"),
        "night household_id problem",
        # B delivered on 30 January already.
        [(FEB_1, "B", "no row")],
    ),
    (
        "scores_of_every_household",
        _twice("scores", FEB_1, "B"),
        "night household_id problem",
        [(FEB_1, "B", "repeated")],
    ),
    (
        "scores_of_every_household",
        lambda: _forget("D"),
        "night household_id problem",
        [(FEB_1, "D", "not registered"), (FEB_2, "D", "not registered")],
    ),
    *(
        (
            "scores_within_bounds",
            _set("scores", FEB_2, household, **values),
            "night household_id problem",
            [(FEB_2, household, problem)],
        )
        for household, values, problem in [
            (
                "A",
                {"status": "odd"},
                "unknown status, scored against status, flagged against status",
            ),
            ("A", {"n_readings": 49}, "n_readings out of bounds"),
            ("A", {"n_readings": 0}, "n_readings against status"),
            ("D", {"n_readings": 1}, "n_readings against status"),
            ("A", {"score": None}, "no score"),
            ("A", {"score": float("inf")}, "no score"),
            ("A", {"p_value": 1.5}, "p_value out of bounds"),
            ("A", {"p_value": float("nan")}, "p_value out of bounds"),
            ("A", {"evidence": -1.0}, "evidence out of bounds"),
            ("B", {"score": 1.0}, "scored against status"),
            ("B", {"rank": 3}, "scored against status"),
            ("B", {"is_anomaly": True, "reason": "drop"}, "flagged against status"),
            ("A", {"is_anomaly": None}, "flagged against status"),
            ("A", {"reason": None}, "reason against flag"),
            ("A", {"is_anomaly": False}, "reason against flag"),
        ]
    ),
]


def test_every_check_has_a_violation_case() -> None:
    assert {check for check, *_ in BREAKS} == queries.list_checks().keys()


@pytest.mark.parametrize(
    ("name", "change", "columns", "rows"),
    BREAKS,
    ids=[f"{check}-{number}" for number, (check, *_) in enumerate(BREAKS)],
)
def test_check_returns_exactly_the_offending_rows(
    name: str, change: Callable[[], None], columns: str, rows: list[tuple[Any, ...]]
) -> None:
    change()
    broken = queries.run_checks()[name]
    assert broken.select(columns.split()).rows() == rows
    if queries.list_checks()[name].takes_since:
        later = broken.filter(pl.col("night") >= FEB_2)
        assert queries.run_checks(FEB_2)[name].equals(later)


def test_household_registered_later_needs_no_earlier_score_row() -> None:
    joined = small_home.build_table(storage.TABLE_SCHEMAS["households"], [("E", None, None, None)])
    storage.replace_reference_table(
        "households", pl.concat([small_home.build_households(), joined])
    )
    rows = queries.run_checks()["scores_of_every_household"].rows()
    assert rows == [(FEB_2, "E", "no row")]


@pytest.mark.parametrize("name", ["later.csv", "block.csv"])
def test_rows_add_up_with_superseded_readings_of_earlier_files(name: str) -> None:
    # A later file of three rows: two stand in the lake instead of two of A's, one is a duplicate.
    entry = small_home.build_delivery().with_columns(
        delivery=pl.lit("second"),
        file=pl.lit(name),
        rows_in=pl.lit(3, pl.Int64),
        rows_kept=pl.lit(2, pl.Int64),
        rows_quarantined=pl.lit(1, pl.Int64),
    )
    aside = small_home.build_quarantine().with_columns(
        file=pl.Series(["block.csv", "block.csv", name]),
        rule=pl.Series(["superseded", "superseded", "duplicate"], dtype=pl.Enum(QUARANTINE_RULES)),
    )
    storage.replace_ledger_entry("deliveries", "second", entry)
    storage.replace_ledger_entry("quarantine", "second", aside)
    assert queries.run_checks()["rows_add_up"].rows() == []
