"""An anomaly says what kind it is and where in the day it lies."""

from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ml.reasons import (
    CONTEXT_NIGHTS,
    classify_reasons,
    compute_run_lengths,
    explain_anomalies,
    find_deviating_spans,
    select_context_nights,
)
from ml.schemas import ANOMALY_REASONS

CLOCK = np.arange(48)
HALF_HOUR = timedelta(minutes=30)
EXPECTED = 0.2 + np.exp(-(((CLOCK - 36) / 4) ** 2)) + 0.4 * np.exp(-(((CLOCK - 15) / 2) ** 2))
QUIET_HOME = np.where((CLOCK > 30) & (CLOCK < 42), EXPECTED, 0.0)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(0, 0.25, shape)


PAST = (EXPECTED * noise(1, 28, 48)).round(3)
DAY = (EXPECTED * noise(2, 48)).round(3)


def at(hours: slice, kwh: float, day: np.ndarray = DAY) -> np.ndarray:
    changed = day.copy()
    changed[hours] = kwh
    return changed


def plus(hours: slice, kwh: float) -> np.ndarray:
    changed = DAY.copy()
    changed[hours] += kwh
    return changed


def caught_up() -> np.ndarray:
    day = at(slice(10, 22), 0)
    day[22] += DAY[10:22].sum()
    return day


def two_spikes() -> np.ndarray:
    day = plus(slice(5, 6), 4)
    day[40] += 3
    return day


KINDS = {
    "zero window": (at(slice(20, 34), 0), "outage"),
    "two hours and a half without": (at(slice(30, 35), 0), "outage"),
    "a day without": (DAY * 0, "outage"),
    "outage and catch-up": (caught_up(), "outage"),
    "held for a while": (at(slice(10, 30), 0.25), "stuck"),
    "held all day": (at(slice(0, 48), DAY.mean()), "stuck"),
    "held at a peak": (at(slice(20, 40), 1.5), "stuck"),
    "one spike": (plus(slice(20, 21), 5), "spike"),
    "an hour's spike": (plus(slice(20, 22), 3), "spike"),
    "two spikes": (two_spikes(), "spike"),
    "a load until morning": (plus(slice(0, 8), 1.0), "night_load"),
    "a load before midnight too": (plus(np.r_[0:9, 45:48], 1.0), "night_load"),
    "a third": (DAY * 0.3, "drop"),
    "hardly anything": ((0.02 * noise(3, 48)).round(3), "drop"),
    "a limit": (np.minimum(DAY, 0.3), "drop"),
    "twice": (DAY * 2.2, "rise"),
    "more all the time": (DAY + 0.3, "rise"),
    "a heater by day": (plus(slice(18, 32), 1.5), "rise"),
    "a clock eight hours late": (np.roll(DAY, 16), "shifted"),
    "a clock five hours early": (np.roll(DAY, -10), "shifted"),
    "backwards": (DAY[::-1], "shifted"),
    "peaks levelled": (0.5 * DAY + 0.5 * DAY.mean(), "unusual_shape"),
    "as ever": (DAY, "unusual_shape"),
}


@pytest.mark.parametrize(("actual", "reason"), KINDS.values(), ids=KINDS)
def test_each_kind_is_named(actual: np.ndarray, reason: str) -> None:
    assert classify_reasons(actual[None], EXPECTED[None], PAST[None]) == [reason]


@pytest.mark.parametrize(
    ("actual", "reason"),
    [
        (at(slice(20, 34), 0), "outage"),
        (at(slice(10, 30), 0.25), "stuck"),
        (plus(slice(20, 21), 20), "spike"),
        (plus(slice(0, 8), 1.0), "night_load"),
        (EXPECTED * 0.3, "drop"),
        (EXPECTED * 2.5, "rise"),
        (np.roll(EXPECTED, 16), "shifted"),
        (EXPECTED + 0.05 * np.sin(CLOCK), "unusual_shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_home_without_a_past_has_reasons_too(actual: np.ndarray, reason: str) -> None:
    assert classify_reasons(actual[None], EXPECTED[None]) == [reason]


def test_what_a_home_always_does_is_no_reason() -> None:
    """A home that is off for most of every day, and one that peaks every evening."""
    off = np.tile(QUIET_HOME, (28, 1))
    assert classify_reasons(2 * QUIET_HOME[None], QUIET_HOME[None], off[None]) == ["rise"]
    showering = PAST.copy()
    showering[:, 14] += 4
    assert classify_reasons(plus(slice(14, 15), 4)[None], EXPECTED[None], showering[None]) != [
        "spike"
    ]


def test_nights_of_the_same_fault_before_do_not_hide_it() -> None:
    faulty = PAST.copy()
    faulty[-13:] = np.roll(PAST[-13:], 16, axis=1)
    assert classify_reasons(np.roll(DAY, 16)[None], EXPECTED[None], faulty[None]) == ["shifted"]
    faulty[-13:] = 0
    assert classify_reasons(0 * DAY[None], EXPECTED[None], faulty[None]) == ["outage"]


def test_a_missing_half_hour_is_no_outage() -> None:
    gappy = at(slice(20, 34), np.nan, EXPECTED)
    assert classify_reasons(gappy[None], EXPECTED[None]) == ["unusual_shape"]


def test_missing_nights_of_the_past_count_for_nothing() -> None:
    gone = PAST.copy()
    gone[::2] = np.nan
    gone[1, 5:30] = np.nan
    assert classify_reasons(DAY[None] * 2.2, EXPECTED[None], gone[None]) == ["rise"]
    assert classify_reasons(DAY[None], EXPECTED[None], gone[None] * np.nan) == ["unusual_shape"]


def test_the_past_is_the_nights_before_and_no_other() -> None:
    kwh = np.arange(2 * 60 * 48, dtype=float).reshape(2, 60, 48)
    past = select_context_nights(kwh, np.array([1, 0]), np.array([50, 3]))
    assert (past[0] == kwh[1, 50 - CONTEXT_NIGHTS : 50]).all()
    assert (past[1, -3:] == kwh[0, :3]).all()
    assert np.isnan(past[1, :-3]).all()


readings = st.floats(0, 12, width=32) | st.just(float("nan"))


@given(
    actual=arrays.arrays(np.float32, (3, 48), elements=readings),
    expected=arrays.arrays(np.float32, (3, 48), elements=st.floats(0, 12, width=32)),
    past=arrays.arrays(np.float32, (3, 2, 48), elements=readings),
)
def test_any_night_has_a_reason_and_its_own(
    actual: np.ndarray, expected: np.ndarray, past: np.ndarray
) -> None:
    """Whatever is flagged beside it."""
    together = classify_reasons(actual, expected, past)
    assert set(together) <= set(ANOMALY_REASONS)
    assert together[1:2] == classify_reasons(actual[1:2], expected[1:2], past[1:2])


def explained(actual: np.ndarray, half_hour: np.ndarray) -> dict[str, object]:
    flagged = pl.DataFrame(
        {"night": [date(2014, 2, 1)], "actual_kwh": [0.0], "expected_kwh": [0.0]}
    )
    table = explain_anomalies(flagged, actual[None], EXPECTED[None], half_hour[None], PAST[None])
    return table.row(0, named=True)


@pytest.mark.parametrize(
    ("actual", "first", "last"),
    [
        (at(slice(20, 34), 0), 20, 34),
        (at(slice(10, 30), 0.25), 10, 30),
        (plus(slice(20, 22), 5), 20, 22),
    ],
    ids=["outage", "stuck", "spike"],
)
def test_a_rule_shows_its_own_half_hours(actual: np.ndarray, first: int, last: int) -> None:
    """Whatever the network makes of them."""
    row = explained(actual, half_hour=np.where(CLOCK < 5, 9.0, 0.0))
    midnight = datetime(2014, 2, 1)
    assert row["start_utc"] == midnight + first * HALF_HOUR
    assert row["end_utc"] == midnight + last * HALF_HOUR


def test_other_kinds_show_where_the_network_points() -> None:
    row = explained(DAY * 2.2, half_hour=np.where((CLOCK >= 30) & (CLOCK < 40), 9.0, -5.0))
    assert (row["start_utc"], row["end_utc"]) == (
        datetime(2014, 2, 1, 15),
        datetime(2014, 2, 1, 20),
    )
    assert row["excess_kwh"] == pytest.approx((DAY * 2.2 - EXPECTED).sum(), abs=1e-4)


@pytest.mark.parametrize("ordinary", [0.2, -4.0], ids=["deviation", "log odds"])
def test_the_span_is_the_block_that_deviates(ordinary: float) -> None:
    half_hour = np.full((1, 48), ordinary)
    half_hour[0, 12:18] = 4.0
    start, end = find_deviating_spans(half_hour)
    assert (start.tolist(), end.tolist()) == ([12], [18])


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_a_run_counts_neighbours_alone(flags: list[bool]) -> None:
    lengths = compute_run_lengths(np.array([flags]))[0]
    for place, flag in enumerate(flags):
        start = stop = place
        while flag and start > 0 and flags[start - 1]:
            start -= 1
        while flag and stop < len(flags) and flags[stop]:
            stop += 1
        assert lengths[place] == stop - start
