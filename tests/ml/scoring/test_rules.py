"""The rules measure runs of repeated and zero readings against the household's habit."""

import numpy as np
import pytest

from ml.scoring.config import RuleConfig
from ml.scoring.rules import find_longest_run, longest_repeated_run, longest_zero_run
from tests import fleets

CONFIG = RuleConfig()
N_NIGHTS = 40


@pytest.fixture
def readings_kwh() -> np.ndarray:
    # Every reading differs from the one before.
    return np.tile(np.arange(1, 49, dtype=np.float32) / 10, (1, N_NIGHTS, 1))


def test_longest_run_of_flags_is_counted_in_half_hours(readings_kwh: np.ndarray) -> None:
    flags = np.zeros((1, N_NIGHTS, 48), dtype=bool)
    flags[0, 3, [0, 1, 2, 10, 11]] = True
    longest = find_longest_run(flags, fleets.build_fleet(readings_kwh), 36)
    assert longest[0, 3] == 3
    assert longest[0, 4] == 0


def test_run_of_zeros_is_compared_with_the_third_longest_before(readings_kwh: np.ndarray) -> None:
    readings_kwh[0, -1, :20] = 0
    readings_kwh[0, [5, 6, 35], :4] = 0
    run = longest_zero_run(fleets.build_fleet(readings_kwh), 36, CONFIG)
    # Of the 28 nights before the last only one has zeros, so the habit is 0.
    assert run[0, -1] == pytest.approx(np.log((20 + 2) / (0 + 2)))


def test_habitual_run_of_zeros_is_no_surprise(readings_kwh: np.ndarray) -> None:
    readings_kwh[0, :, :20] = 0
    run = longest_zero_run(fleets.build_fleet(readings_kwh), 36, CONFIG)
    assert run[0, -1] == pytest.approx(0)


def test_repeated_reading_counts_unless_it_is_zero(readings_kwh: np.ndarray) -> None:
    stuck, dead = readings_kwh.copy(), readings_kwh.copy()
    stuck[0, -1, :20] = 0.7
    dead[0, -1, :20] = 0
    assert longest_repeated_run(fleets.build_fleet(stuck), 36, CONFIG)[0, -1] > 2
    assert longest_repeated_run(fleets.build_fleet(dead), 36, CONFIG)[0, -1] == pytest.approx(0)


def test_night_with_too_few_readings_has_no_run(readings_kwh: np.ndarray) -> None:
    readings_kwh[0, -1, :20] = np.nan
    assert np.isnan(longest_zero_run(fleets.build_fleet(readings_kwh), 36, CONFIG)[0, -1])
