"""An anomaly says what kind it is and where in the day it lies."""

import numpy as np
import pytest

from ml.reasons import longest_run, reasons, spans

EXPECTED = 0.2 + np.exp(-(((np.arange(48) - 36) / 4) ** 2))


def zeroed() -> np.ndarray:
    day = EXPECTED.copy()
    day[20:34] = 0
    return day


def stuck() -> np.ndarray:
    day = EXPECTED.copy()
    day[10:30] = 0.25
    return day


def spiky() -> np.ndarray:
    day = EXPECTED.copy()
    day[20] += 20
    return day


def loaded() -> np.ndarray:
    day = EXPECTED.copy()
    day[0:8] += 1.0
    return day


@pytest.mark.parametrize(
    ("actual", "reason"),
    [
        (zeroed(), "outage"),
        (stuck(), "stuck"),
        (spiky(), "spike"),
        (loaded(), "night_load"),
        (EXPECTED * 0.3, "drop"),
        (EXPECTED * 2.5, "rise"),
        (np.roll(EXPECTED, 16), "shifted"),
        (EXPECTED + 0.05 * np.sin(np.arange(48)), "unusual_shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_kind_is_named(actual: np.ndarray, reason: str) -> None:
    assert reasons(actual[None], EXPECTED[None]) == [reason]


def test_a_missing_half_hour_is_no_outage() -> None:
    gappy = EXPECTED.copy()
    gappy[20:34] = np.nan
    assert reasons(gappy[None], EXPECTED[None]) == ["unusual_shape"]


def test_the_span_is_the_block_that_deviates() -> None:
    residual = np.full((1, 48), 0.2)
    residual[0, 12:18] = -4.0
    start, end = spans(residual)
    assert (start.tolist(), end.tolist()) == ([12], [18])


def test_the_longest_run_counts_neighbours_alone() -> None:
    flags = np.array([[1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=bool)
    assert longest_run(flags).tolist() == [3, 0, 6]
