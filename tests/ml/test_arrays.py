"""Runs of true flags are measured within one night."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ml.arrays import compute_run_lengths, find_longest_runs


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
