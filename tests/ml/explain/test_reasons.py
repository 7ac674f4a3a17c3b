"""An anomaly says what kind it is and where in the day it lies."""

from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ml.explain.config import DEFAULT_REASON_CONFIG
from ml.explain.reasons import (
    classify_reasons,
    explain_anomalies,
    find_deviating_spans,
    select_context_nights,
)
from ml.schemas import ANOMALY_REASONS

HALF_HOUR_INDEX = np.arange(48)
HALF_HOUR = timedelta(minutes=30)
EXPECTED_KWH = (
    0.2
    + np.exp(-(((HALF_HOUR_INDEX - 36) / 4) ** 2))
    + 0.4 * np.exp(-(((HALF_HOUR_INDEX - 15) / 2) ** 2))
)
EVENING_ONLY_KWH = np.where((HALF_HOUR_INDEX > 30) & (HALF_HOUR_INDEX < 42), EXPECTED_KWH, 0.0)


def draw_noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(0, 0.25, shape)


CONTEXT_KWH = (EXPECTED_KWH * draw_noise(1, 28, 48)).round(3)
ORDINARY_KWH = (EXPECTED_KWH * draw_noise(2, 48)).round(3)


def set_readings(half_hours: slice, kwh: float, profile: np.ndarray = ORDINARY_KWH) -> np.ndarray:
    changed = profile.copy()
    changed[half_hours] = kwh
    return changed


def add_load(half_hours: slice, kwh: float) -> np.ndarray:
    changed = ORDINARY_KWH.copy()
    changed[half_hours] += kwh
    return changed


def build_outage_with_catch_up() -> np.ndarray:
    day = set_readings(slice(10, 22), 0)
    day[22] += ORDINARY_KWH[10:22].sum()
    return day


def build_two_spikes() -> np.ndarray:
    day = add_load(slice(5, 6), 4)
    day[40] += 3
    return day


REASON_CASES = {
    "zero window": (set_readings(slice(20, 34), 0), "outage"),
    "two hours and a half without": (set_readings(slice(30, 35), 0), "outage"),
    "a day without": (ORDINARY_KWH * 0, "outage"),
    "outage and catch-up": (build_outage_with_catch_up(), "outage"),
    "held for a while": (set_readings(slice(10, 30), 0.25), "stuck"),
    "held all day": (set_readings(slice(0, 48), ORDINARY_KWH.mean()), "stuck"),
    "held at a peak": (set_readings(slice(20, 40), 1.5), "stuck"),
    "one spike": (add_load(slice(20, 21), 5), "spike"),
    "an hour's spike": (add_load(slice(20, 22), 3), "spike"),
    "two spikes": (build_two_spikes(), "spike"),
    "a load until morning": (add_load(slice(0, 8), 1.0), "night_load"),
    "a load before midnight too": (add_load(np.r_[0:9, 45:48], 1.0), "night_load"),
    "a third": (ORDINARY_KWH * 0.3, "drop"),
    "hardly anything": ((0.02 * draw_noise(3, 48)).round(3), "drop"),
    "a limit": (np.minimum(ORDINARY_KWH, 0.3), "drop"),
    "twice": (ORDINARY_KWH * 2.2, "rise"),
    "more all the time": (ORDINARY_KWH + 0.3, "rise"),
    "a heater by day": (add_load(slice(18, 32), 1.5), "rise"),
    "a clock eight hours late": (np.roll(ORDINARY_KWH, 16), "shifted"),
    "a clock five hours early": (np.roll(ORDINARY_KWH, -10), "shifted"),
    "backwards": (ORDINARY_KWH[::-1], "shifted"),
    "peaks levelled": (0.5 * ORDINARY_KWH + 0.5 * ORDINARY_KWH.mean(), "unusual_shape"),
    "as ever": (ORDINARY_KWH, "unusual_shape"),
}


@pytest.mark.parametrize(("actual", "reason"), REASON_CASES.values(), ids=REASON_CASES)
def test_anomaly_is_classified_by_its_reason(actual: np.ndarray, reason: str) -> None:
    assert classify_reasons(actual[None], EXPECTED_KWH[None], CONTEXT_KWH[None]) == [reason]


@pytest.mark.parametrize(
    ("actual", "reason"),
    [
        (set_readings(slice(20, 34), 0), "outage"),
        (set_readings(slice(10, 30), 0.25), "stuck"),
        (add_load(slice(20, 21), 20), "spike"),
        (add_load(slice(0, 8), 1.0), "night_load"),
        (EXPECTED_KWH * 0.3, "drop"),
        (EXPECTED_KWH * 2.5, "rise"),
        (np.roll(EXPECTED_KWH, 16), "shifted"),
        (EXPECTED_KWH + 0.05 * np.sin(HALF_HOUR_INDEX), "unusual_shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reason_is_found_without_context_nights(actual: np.ndarray, reason: str) -> None:
    assert classify_reasons(actual[None], EXPECTED_KWH[None]) == [reason]


def test_habitual_behaviour_is_not_a_reason() -> None:
    """A home that is off for most of every day, and one that peaks every evening."""
    off = np.tile(EVENING_ONLY_KWH, (28, 1))
    assert classify_reasons(2 * EVENING_ONLY_KWH[None], EVENING_ONLY_KWH[None], off[None]) == [
        "rise"
    ]
    showering = CONTEXT_KWH.copy()
    showering[:, 14] += 4
    assert classify_reasons(
        add_load(slice(14, 15), 4)[None], EXPECTED_KWH[None], showering[None]
    ) != ["spike"]


def test_reason_persists_after_earlier_nights_of_the_same_fault() -> None:
    faulty = CONTEXT_KWH.copy()
    faulty[-13:] = np.roll(CONTEXT_KWH[-13:], 16, axis=1)
    assert classify_reasons(np.roll(ORDINARY_KWH, 16)[None], EXPECTED_KWH[None], faulty[None]) == [
        "shifted"
    ]
    faulty[-13:] = 0
    assert classify_reasons(0 * ORDINARY_KWH[None], EXPECTED_KWH[None], faulty[None]) == ["outage"]


def test_missing_half_hours_are_not_an_outage() -> None:
    gappy = set_readings(slice(20, 34), np.nan, EXPECTED_KWH)
    assert classify_reasons(gappy[None], EXPECTED_KWH[None]) == ["unusual_shape"]


def test_missing_context_nights_are_ignored() -> None:
    gone = CONTEXT_KWH.copy()
    gone[::2] = np.nan
    gone[1, 5:30] = np.nan
    assert classify_reasons(ORDINARY_KWH[None] * 2.2, EXPECTED_KWH[None], gone[None]) == ["rise"]
    assert classify_reasons(ORDINARY_KWH[None], EXPECTED_KWH[None], gone[None] * np.nan) == [
        "unusual_shape"
    ]


def test_context_nights_are_the_nights_directly_before() -> None:
    kwh = np.arange(2 * 60 * 48, dtype=float).reshape(2, 60, 48)
    past = select_context_nights(kwh, np.array([1, 0]), np.array([50, 3]))
    assert (past[0] == kwh[1, 50 - DEFAULT_REASON_CONFIG.context_nights : 50]).all()
    assert (past[1, -3:] == kwh[0, :3]).all()
    assert np.isnan(past[1, :-3]).all()


reading_values = st.floats(0, 12, width=32) | st.just(float("nan"))


@given(
    actual=arrays.arrays(np.float32, (3, 48), elements=reading_values),
    expected=arrays.arrays(np.float32, (3, 48), elements=st.floats(0, 12, width=32)),
    past=arrays.arrays(np.float32, (3, 2, 48), elements=reading_values),
)
def test_reason_does_not_depend_on_other_flagged_nights(
    actual: np.ndarray, expected: np.ndarray, past: np.ndarray
) -> None:
    """Whatever is flagged beside it."""
    together = classify_reasons(actual, expected, past)
    assert set(together) <= set(ANOMALY_REASONS)
    assert together[1:2] == classify_reasons(actual[1:2], expected[1:2], past[1:2])


def explain_profile(actual: np.ndarray, half_hour: np.ndarray) -> dict[str, object]:
    flagged = pl.DataFrame(
        {"night": [date(2014, 2, 1)], "actual_kwh": [0.0], "expected_kwh": [0.0]}
    )
    table = explain_anomalies(
        flagged, actual[None], EXPECTED_KWH[None], half_hour[None], CONTEXT_KWH[None]
    )
    return table.row(0, named=True)


@pytest.mark.parametrize(
    ("actual", "first", "last"),
    [
        (set_readings(slice(20, 34), 0), 20, 34),
        (set_readings(slice(10, 30), 0.25), 10, 30),
        (add_load(slice(20, 22), 5), 20, 22),
    ],
    ids=["outage", "stuck", "spike"],
)
def test_span_of_a_rule_is_the_half_hours_that_meet_it(
    actual: np.ndarray, first: int, last: int
) -> None:
    """Whatever the network makes of them."""
    row = explain_profile(actual, half_hour=np.where(HALF_HOUR_INDEX < 5, 9.0, 0.0))
    midnight = datetime(2014, 2, 1)
    assert row["start_utc"] == midnight + first * HALF_HOUR
    assert row["end_utc"] == midnight + last * HALF_HOUR


def test_span_of_other_reasons_follows_the_half_hour_scores() -> None:
    row = explain_profile(
        ORDINARY_KWH * 2.2,
        half_hour=np.where((HALF_HOUR_INDEX >= 30) & (HALF_HOUR_INDEX < 40), 9.0, -5.0),
    )
    assert (row["start_utc"], row["end_utc"]) == (
        datetime(2014, 2, 1, 15),
        datetime(2014, 2, 1, 20),
    )
    assert row["excess_kwh"] == pytest.approx((ORDINARY_KWH * 2.2 - EXPECTED_KWH).sum(), abs=1e-4)


@pytest.mark.parametrize("ordinary", [0.2, -4.0], ids=["deviation", "log odds"])
def test_span_is_the_block_that_deviates_most(ordinary: float) -> None:
    half_hour = np.full((1, 48), ordinary)
    half_hour[0, 12:18] = 4.0
    start, end = find_deviating_spans(half_hour, min_half_hour_score=1.0)
    assert (start.tolist(), end.tolist()) == ([12], [18])
