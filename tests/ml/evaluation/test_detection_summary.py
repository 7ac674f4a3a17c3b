"""Flags against injected anomalies, worked out by hand."""

from datetime import date

import polars as pl
import pytest

from ml.evaluation.detection_summary import summarize_detection

FIRST, SECOND = date(2014, 2, 1), date(2014, 2, 2)
# Household, night, flagged, scored.
SCORES = [
    ("A", FIRST, True, True),
    ("A", SECOND, False, True),
    ("B", FIRST, True, True),
    ("B", SECOND, False, True),
    ("C", FIRST, False, True),
    ("C", SECOND, False, False),
]
TRUTH = [("A", FIRST, "drop"), ("A", SECOND, "drop"), ("C", FIRST, "spike"), ("Z", FIRST, "spike")]


@pytest.fixture
def scores() -> pl.DataFrame:
    frame = pl.DataFrame(SCORES, ["household_id", "night", "is_anomaly", "scored"], orient="row")
    return frame.with_columns(score=pl.when("scored").then(1.0))


@pytest.fixture
def truth() -> pl.DataFrame:
    return pl.DataFrame(TRUTH, ["household_id", "night", "kind"], orient="row")


def test_summary_counts_households_and_nights_by_kind(
    scores: pl.DataFrame, truth: pl.DataFrame
) -> None:
    assert summarize_detection(scores, truth).counts_by_kind.rows() == [
        ("drop", 1, 1, 2, 1, 0.5),
        ("spike", 1, 0, 1, 0, 0.0),
        ("all", 2, 1, 3, 1, 1 / 3),
    ]


def test_flag_on_normal_night_is_false_alarm(scores: pl.DataFrame, truth: pl.DataFrame) -> None:
    result = summarize_detection(scores, truth)
    # Normal and scored: B on both nights. Flagged: A and B on the first night.
    assert (result.n_flagged, result.n_false_alarms, result.n_normal_nights) == (2, 1, 2)
    assert result.precision == 0.5
    assert result.false_alarms_per_1000 == 500


def test_precision_is_nan_without_flags(scores: pl.DataFrame, truth: pl.DataFrame) -> None:
    quiet = scores.with_columns(is_anomaly=False)
    assert str(summarize_detection(quiet, truth).precision) == "nan"
    assert summarize_detection(quiet, truth).false_alarms_per_1000 == 0
