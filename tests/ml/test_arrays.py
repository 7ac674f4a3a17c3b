"""Medians leave NaN out; runs of true flags are measured within one night."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ml.arrays import (
    compute_run_lengths,
    find_longest_runs,
    median_and_mad,
    rolling_windows,
)


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_run_length_counts_only_adjacent_half_hours(flags: list[bool]) -> None:
    lengths = compute_run_lengths(np.array([flags]))[0]
    for place, flag in enumerate(flags):
        start = stop = place
        while flag and start > 0 and flags[start - 1]:
            start -= 1
        while flag and stop < len(flags) and flags[stop]:
            stop += 1
        assert lengths[place] == stop - start


@given(arrays.arrays(np.bool_, (2, 3, 8)))
def test_longest_run_is_the_greatest_run_length_of_each_night(flags: np.ndarray) -> None:
    longest = find_longest_runs(flags)
    assert (longest == compute_run_lengths(flags).max(axis=-1)).all()
    assert longest.dtype == np.int_


def test_run_does_not_go_on_into_the_next_night() -> None:
    flags = np.array([[False, True, True], [True, True, False]])
    assert find_longest_runs(flags).tolist() == [2, 2]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.one_of(st.just(np.nan), st.floats(-5, 5)), min_size=5, max_size=5)).filter(
        bool
    )
)
def test_median_equals_numpy(rows: list[list[float]]) -> None:
    windows = np.array(rows)
    median, _ = median_and_mad(windows)
    for row, found in zip(windows, median, strict=True):
        expected = np.nanmedian(row) if np.isfinite(row).any() else np.nan
        np.testing.assert_array_equal(found, expected)


def test_rolling_windows_hold_the_nights_before_not_the_night_itself() -> None:
    windows = rolling_windows(np.array([[1.0, 2.0, 3.0, 4.0]]), 2)
    expected = [[[np.nan, np.nan], [np.nan, 1], [1, 2], [2, 3]]]
    np.testing.assert_array_equal(windows, expected)
