"""Reasons name a flagged night by the household's own nights; spans show where it deviates."""

from collections.abc import Callable
from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ml.arrays import BoolArray
from ml.explain.config import DEFAULT_REASON_CONFIG, ReasonConfig
from ml.explain.reasons import (
    REASON_RULES,
    FlaggedNights,
    classify_reasons,
    explain_anomalies,
    find_deviating_spans,
    is_capped,
    is_drop,
    is_night_load,
    is_outage,
    is_rise,
    is_shifted,
    is_spike,
    is_stuck,
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
    "a limited supply": (np.minimum(ORDINARY_KWH, 0.3), "drop"),
    "twice": (ORDINARY_KWH * 2.2, "rise"),
    "more all the time": (ORDINARY_KWH + 0.3, "rise"),
    "a heater by day": (add_load(slice(18, 32), 1.5), "rise"),
    "a clock eight hours late": (np.roll(ORDINARY_KWH, 16), "shifted"),
    "a clock five hours early": (np.roll(ORDINARY_KWH, -10), "shifted"),
    "backwards": (ORDINARY_KWH[::-1], "shifted"),
    "peaks levelled": (0.5 * ORDINARY_KWH + 0.5 * ORDINARY_KWH.mean(), "unusual_shape"),
    "an ordinary day": (ORDINARY_KWH, "unusual_shape"),
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


def test_household_that_is_off_for_most_of_every_day_has_no_outage() -> None:
    context = np.tile(EVENING_ONLY_KWH, (28, 1))
    reasons = classify_reasons(2 * EVENING_ONLY_KWH[None], EVENING_ONLY_KWH[None], context[None])
    assert reasons == ["rise"]


def test_household_that_peaks_every_morning_has_no_spike() -> None:
    context = CONTEXT_KWH.copy()
    context[:, 14] += 4
    actual = add_load(slice(14, 15), 4)
    assert classify_reasons(actual[None], EXPECTED_KWH[None], context[None]) != ["spike"]


def test_reason_persists_after_earlier_nights_of_the_same_fault() -> None:
    context = CONTEXT_KWH.copy()
    context[-13:] = np.roll(CONTEXT_KWH[-13:], 16, axis=1)
    assert classify_reasons(np.roll(ORDINARY_KWH, 16)[None], EXPECTED_KWH[None], context[None]) == [
        "shifted"
    ]
    context[-13:] = 0
    assert classify_reasons(0 * ORDINARY_KWH[None], EXPECTED_KWH[None], context[None]) == ["outage"]


def test_missing_half_hours_are_not_an_outage() -> None:
    incomplete = set_readings(slice(20, 34), np.nan, EXPECTED_KWH)
    assert classify_reasons(incomplete[None], EXPECTED_KWH[None]) == ["unusual_shape"]


def test_missing_context_nights_are_ignored() -> None:
    context = CONTEXT_KWH.copy()
    context[::2] = np.nan
    context[1, 5:30] = np.nan
    assert classify_reasons(ORDINARY_KWH[None] * 2.2, EXPECTED_KWH[None], context[None]) == ["rise"]
    assert classify_reasons(ORDINARY_KWH[None], EXPECTED_KWH[None], context[None] * np.nan) == [
        "unusual_shape"
    ]


def test_context_nights_are_the_nights_directly_before() -> None:
    kwh = np.arange(2 * 60 * 48, dtype=float).reshape(2, 60, 48)
    context = select_context_nights(kwh, np.array([1, 0]), np.array([50, 3]))
    assert (context[0] == kwh[1, 50 - DEFAULT_REASON_CONFIG.context_nights : 50]).all()
    assert (context[1, -3:] == kwh[0, :3]).all()
    assert np.isnan(context[1, :-3]).all()
    config = ReasonConfig(context_nights=7)
    last_week = select_context_nights(kwh, np.array([1]), np.array([50]), config)
    assert (last_week[0] == kwh[1, 43:50]).all()


reading_values = st.floats(0, 12, width=32) | st.just(float("nan"))


@given(
    actual=arrays.arrays(np.float32, (3, 48), elements=reading_values),
    expected=arrays.arrays(np.float32, (3, 48), elements=st.floats(0, 12, width=32)),
    context=arrays.arrays(np.float32, (3, 2, 48), elements=reading_values),
)
def test_reason_does_not_depend_on_other_flagged_nights(
    actual: np.ndarray, expected: np.ndarray, context: np.ndarray
) -> None:
    together = classify_reasons(actual, expected, context)
    assert set(together) <= set(ANOMALY_REASONS)
    assert together[1:2] == classify_reasons(actual[1:2], expected[1:2], context[1:2])


def explain_profile(actual: np.ndarray, half_hour_scores: np.ndarray) -> dict[str, object]:
    flagged = pl.DataFrame(
        {"night": [date(2014, 2, 1)], "actual_kwh": [0.0], "expected_kwh": [0.0]}
    )
    table = explain_anomalies(
        flagged, actual[None], EXPECTED_KWH[None], half_hour_scores[None], CONTEXT_KWH[None]
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
    # The detector's own half-hour scores point elsewhere.
    row = explain_profile(actual, half_hour_scores=np.where(HALF_HOUR_INDEX < 5, 9.0, 0.0))
    midnight = datetime(2014, 2, 1)
    assert row["start_utc"] == midnight + first * HALF_HOUR
    assert row["end_utc"] == midnight + last * HALF_HOUR


def test_span_of_other_reasons_follows_the_half_hour_scores() -> None:
    row = explain_profile(
        ORDINARY_KWH * 2.2,
        half_hour_scores=np.where((HALF_HOUR_INDEX >= 30) & (HALF_HOUR_INDEX < 40), 9.0, -5.0),
    )
    assert (row["start_utc"], row["end_utc"]) == (
        datetime(2014, 2, 1, 15),
        datetime(2014, 2, 1, 20),
    )
    assert row["excess_kwh"] == pytest.approx((ORDINARY_KWH * 2.2 - EXPECTED_KWH).sum(), abs=1e-4)


@pytest.mark.parametrize("ordinary", [0.2, -4.0], ids=["deviation", "log odds"])
def test_span_is_the_block_that_deviates_most(ordinary: float) -> None:
    half_hour_scores = np.full((1, 48), ordinary)
    half_hour_scores[0, 12:18] = 4.0
    start, end = find_deviating_spans(half_hour_scores, min_half_hour_score=1.0)
    assert (start.tolist(), end.tolist()) == ([12], [18])


def test_span_goes_on_across_a_missing_half_hour_and_not_across_an_ordinary_one() -> None:
    half_hour_scores = np.zeros((2, 48))
    half_hour_scores[:, 10:14] = 3.0
    half_hour_scores[:, 15:18] = 3.0
    half_hour_scores[0, 14] = np.nan
    half_hour_scores[1, 14] = -9.0
    start, end = find_deviating_spans(half_hour_scores, min_half_hour_score=1.0)
    assert (start.tolist(), end.tolist()) == ([10, 10], [18, 14])


def test_span_is_the_highest_half_hour_where_none_deviates() -> None:
    half_hour_scores = np.full((1, 48), 0.2)
    half_hour_scores[0, 30] = 0.5
    start, end = find_deviating_spans(half_hour_scores, min_half_hour_score=1.0)
    assert (start.tolist(), end.tolist()) == ([30], [31])


def test_span_of_two_outages_is_the_longer_one() -> None:
    actual = set_readings(slice(4, 10), 0, set_readings(slice(20, 34), 0))
    row = explain_profile(actual, half_hour_scores=np.zeros(48))
    assert row["start_utc"] == datetime(2014, 2, 1, 10)
    assert row["end_utc"] == datetime(2014, 2, 1, 17)


def test_missing_half_hour_is_null_and_has_no_excess() -> None:
    actual = ORDINARY_KWH * 2.2
    actual[5] = np.nan
    row = explain_profile(actual, half_hour_scores=np.where(np.isnan(actual), np.nan, 2.0))
    profile, half_hour_score = row["actual_kwh"], row["half_hour_score"]
    assert isinstance(profile, list)
    assert isinstance(half_hour_score, list)
    assert profile[5] is None
    assert half_hour_score[5] is None
    assert profile[4] == pytest.approx(actual[4])
    assert row["excess_kwh"] == pytest.approx(np.nansum(actual - EXPECTED_KWH), abs=1e-4)


# One rule each, at its threshold. Without context nights the expected profile is what is usual:
# about 1 kWh in every half-hour, 49.1 kWh a day, and no reading twice.
STEADY_KWH = 1 + (HALF_HOUR_INDEX * 7 % 48) / 1000
IS_NIGHT = (HALF_HOUR_INDEX < 14) | (HALF_HOUR_INDEX >= 44)
EVENING_PEAK_KWH = STEADY_KWH + ((HALF_HOUR_INDEX >= 30) & (HALF_HOUR_INDEX < 36))


def build_night(
    actual: np.ndarray,
    expected: np.ndarray = STEADY_KWH,
    context: np.ndarray | None = None,
    config: ReasonConfig = DEFAULT_REASON_CONFIG,
) -> FlaggedNights:
    nights_before = None if context is None else context[None]
    return FlaggedNights.from_profiles(actual[None], expected[None], nights_before, 36, config)


def holds(
    rule: Callable[[FlaggedNights], BoolArray],
    actual: np.ndarray,
    expected: np.ndarray = STEADY_KWH,
    context: np.ndarray | None = None,
) -> bool:
    return bool(rule(build_night(actual, expected, context))[0])


def add_to_steady(half_hours: slice | np.ndarray, kwh: float) -> np.ndarray:
    changed = STEADY_KWH.copy()
    changed[half_hours] += kwh
    return changed


def set_in_steady(half_hours: slice, kwh: float) -> np.ndarray:
    return set_readings(half_hours, kwh, STEADY_KWH)


def repeat_nights(profile: np.ndarray) -> np.ndarray:
    return np.tile(profile, (5, 1))


def test_outage_is_two_hours_without_consumption() -> None:
    assert holds(is_outage, set_in_steady(slice(20, 24), 0.002))
    assert not holds(is_outage, set_in_steady(slice(20, 23), 0.002))
    assert not holds(is_outage, set_in_steady(slice(20, 24), 0.003))


def test_outage_exceeds_the_usual_one_by_an_hour_and_a_half() -> None:
    context = repeat_nights(set_in_steady(slice(0, 6), 0))
    assert holds(is_outage, set_in_steady(slice(20, 29), 0), STEADY_KWH, context)
    assert not holds(is_outage, set_in_steady(slice(20, 28), 0), STEADY_KWH, context)


def test_outage_needs_a_twentieth_of_the_expected_energy() -> None:
    actual = set_in_steady(slice(20, 24), 0)
    # 0.593 kWh in each of the 4 half-hours is 5 % of the day then.
    assert holds(is_outage, actual, set_in_steady(slice(20, 24), 0.61))
    assert not holds(is_outage, actual, set_in_steady(slice(20, 24), 0.58))


def test_outage_does_not_go_on_across_missing_half_hours() -> None:
    actual = set_in_steady(slice(20, 26), 0)
    actual[23] = np.nan
    assert not holds(is_outage, actual)


def test_capped_day_lies_below_four_fifths_of_the_usual_peak() -> None:
    limit_kwh = 0.8 * EVENING_PEAK_KWH.max()
    below = np.minimum(EVENING_PEAK_KWH, limit_kwh - 0.001)
    above = np.minimum(EVENING_PEAK_KWH, limit_kwh + 0.001)
    assert holds(is_capped, below, EVENING_PEAK_KWH)
    assert not holds(is_capped, above, EVENING_PEAK_KWH)


def test_capped_day_reads_its_highest_value_three_times() -> None:
    assert holds(is_capped, set_in_steady(slice(30, 33), 1.5), EVENING_PEAK_KWH)
    assert not holds(is_capped, set_in_steady(slice(30, 32), 1.5), EVENING_PEAK_KWH)


def test_one_run_at_the_highest_reading_is_capped_below_five_hours() -> None:
    assert holds(is_capped, set_in_steady(slice(30, 39), 1.5), EVENING_PEAK_KWH)
    assert not holds(is_capped, set_in_steady(slice(30, 40), 1.5), EVENING_PEAK_KWH)
    # On a day far below what was expected, a limited supply may read its limit for longer.
    on_low_day = set_readings(slice(30, 40), 1.5, 0.2 * STEADY_KWH)
    assert holds(is_capped, on_low_day, EVENING_PEAK_KWH)


def test_flat_day_is_not_capped() -> None:
    assert not holds(is_capped, np.full(48, 0.5), EVENING_PEAK_KWH)


def test_stuck_reading_repeats_for_five_hours() -> None:
    assert holds(is_stuck, set_in_steady(slice(20, 30), 0.7))
    assert not holds(is_stuck, set_in_steady(slice(20, 29), 0.7))
    assert not holds(is_stuck, set_in_steady(slice(20, 30), 0.0))


def test_stuck_reading_repeats_three_times_as_long_as_usual() -> None:
    context = repeat_nights(set_in_steady(slice(0, 4), 0.3))
    assert holds(is_stuck, set_in_steady(slice(20, 32), 0.7), STEADY_KWH, context)
    assert not holds(is_stuck, set_in_steady(slice(20, 31), 0.7), STEADY_KWH, context)


def test_spike_lasts_an_hour_and_a_half_at_most() -> None:
    assert holds(is_spike, add_to_steady(slice(20, 23), 2.0))
    assert not holds(is_spike, add_to_steady(slice(20, 24), 2.0))


def test_spike_exceeds_a_tenth_of_the_expected_energy() -> None:
    # 10 % of the day is 4.9 kWh.
    assert holds(is_spike, add_to_steady(slice(20, 21), 4.95))
    assert not holds(is_spike, add_to_steady(slice(20, 21), 4.85))


def test_spike_exceeds_the_usual_high_peak_by_three_tenths() -> None:
    expected = add_to_steady(slice(40, 41), 7.0)
    peak_kwh = expected.max()
    assert holds(is_spike, set_readings(slice(20, 21), 1.31 * peak_kwh, expected), expected)
    assert not holds(is_spike, set_readings(slice(20, 21), 1.29 * peak_kwh, expected), expected)


def test_usual_high_peak_is_that_of_a_tenth_of_the_nights() -> None:
    context = np.tile(STEADY_KWH, (41, 1))
    actual = add_to_steady(slice(20, 21), 7.0)
    context[:4, 20] += 7.0
    assert holds(is_spike, actual, STEADY_KWH, context)
    context[:5, 20] = actual[20]
    assert not holds(is_spike, actual, STEADY_KWH, context)


def test_spike_outweighs_the_rest_of_the_change() -> None:
    spike = add_to_steady(slice(20, 21), 6.0)
    rest = np.where(HALF_HOUR_INDEX < 20, 1 / 20, 0.0)
    assert holds(is_spike, spike + 5.9 * rest)
    assert not holds(is_spike, spike + 6.1 * rest)


def test_night_load_exceeds_its_share_of_the_expected_energy() -> None:
    # 15 % of the day is 7.37 kWh, in 18 half-hours 0.41 kWh each.
    assert holds(is_night_load, STEADY_KWH + 0.42 * IS_NIGHT)
    assert not holds(is_night_load, STEADY_KWH + 0.40 * IS_NIGHT)


def test_night_load_is_twice_the_excess_by_day() -> None:
    # 9 kWh at night, 4.5 kWh in the 30 half-hours of the day at the threshold.
    loaded = STEADY_KWH + 0.5 * IS_NIGHT
    assert holds(is_night_load, loaded + 0.14 * ~IS_NIGHT)
    assert not holds(is_night_load, loaded + 0.16 * ~IS_NIGHT)


def test_night_load_is_four_times_what_is_missing() -> None:
    loaded = STEADY_KWH + 0.5 * IS_NIGHT
    assert holds(is_night_load, loaded - 0.07 * ~IS_NIGHT)
    assert not holds(is_night_load, loaded - 0.08 * ~IS_NIGHT)


@pytest.mark.parametrize(
    ("half_hour", "is_night"), [(43, False), (44, True), (13, True), (14, False)], ids=str
)
def test_night_load_lies_between_22_and_07(half_hour: int, is_night: bool) -> None:
    actual = add_to_steady(slice(half_hour, half_hour + 1), 8.0)
    assert holds(is_night_load, actual) is is_night


def test_night_hours_may_begin_after_midnight() -> None:
    config = ReasonConfig(night_load_start_half_hour=0, night_load_end_half_hour=12)
    early = build_night(add_to_steady(slice(0, 12), 1.0), config=config)
    late = build_night(add_to_steady(slice(36, 48), 1.0), config=config)
    assert is_night_load(early).tolist() == [True]
    assert is_night_load(late).tolist() == [False]


@pytest.mark.parametrize("half_hours", [3, -3, 16], ids=str)
def test_shifted_day_is_turned_by_an_hour_and_a_half_or_more(half_hours: int) -> None:
    assert holds(is_shifted, np.roll(ORDINARY_KWH, half_hours), EXPECTED_KWH, CONTEXT_KWH)


def test_day_turned_by_half_an_hour_or_not_at_all_is_not_shifted() -> None:
    assert not holds(is_shifted, ORDINARY_KWH, EXPECTED_KWH, CONTEXT_KWH)
    assert not holds(is_shifted, np.roll(ORDINARY_KWH, 1), EXPECTED_KWH, CONTEXT_KWH)


def test_day_that_no_turn_makes_usual_is_not_shifted() -> None:
    turned = np.roll(ORDINARY_KWH, 16)
    assert not holds(is_shifted, 3 * turned, EXPECTED_KWH, CONTEXT_KWH)


def test_rise_and_drop_change_the_energy_by_the_same_factor() -> None:
    assert holds(is_rise, 1.36 * STEADY_KWH)
    assert not holds(is_rise, 1.34 * STEADY_KWH)
    assert holds(is_drop, STEADY_KWH / 1.36)
    assert not holds(is_drop, STEADY_KWH / 1.34)


def test_missing_half_hours_count_as_expected_energy() -> None:
    actual = STEADY_KWH.copy()
    actual[10:34] = np.nan
    assert not holds(is_drop, actual)


def test_context_night_with_too_few_readings_says_nothing() -> None:
    actual = add_to_steady(slice(20, 21), 7.0)
    # With the same peak the night before, it is no spike.
    context = actual[None].copy()
    context[0, :12] = np.nan
    assert not holds(is_spike, actual, STEADY_KWH, context)
    context[0, 12] = np.nan
    assert holds(is_spike, actual, STEADY_KWH, context)


def test_every_reason_has_a_rule_and_the_last_names_every_night() -> None:
    assert {rule.reason for rule in REASON_RULES} == set(ANOMALY_REASONS)
    assert REASON_RULES[-1].holds(build_night(STEADY_KWH)).tolist() == [True]
