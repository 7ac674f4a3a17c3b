"""A fleet holds readings in their places, and its levels rest on earlier nights alone."""

from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.fleet import LEVEL_NIGHTS, build_fleet, count_usable_nights, usual_levels_kwh
from tests import fleets


@pytest.mark.seed_fault
def test_missing_half_hour_does_not_shift_others() -> None:
    readings = fleets.simulate_readings_kwh(1, 1)
    readings[0, 0, 7] = np.nan
    fleet = build_fleet(
        [fleets.build_household_nights(readings)],
        [fleets.FIRST_NIGHT],
        fleets.build_households(1),
        *fleets.empty_reference_tables(),
    )
    np.testing.assert_array_equal(fleet.kwh, readings)


def test_undelivered_profile_has_no_readings() -> None:
    readings = fleets.simulate_readings_kwh(2, 3)
    readings[1, 1] = np.nan
    nights = [fleets.FIRST_NIGHT + timedelta(days=i) for i in range(3)]
    fleet = build_fleet(
        [fleets.build_household_nights(readings)],
        nights,
        fleets.build_households(2),
        *fleets.empty_reference_tables(),
    )
    assert fleet.n_readings.tolist() == [[48, 48, 48], [48, 0, 48]]


@settings(max_examples=20, deadline=None)
@given(night=st.integers(30, 44), seed=st.integers(0, 99))
def test_bulk_levels_equal_single_night_levels(night: int, seed: int) -> None:
    readings = fleets.simulate_readings_kwh(4, 45, seed)
    readings[np.random.default_rng(seed).random(readings.shape) < 0.1] = np.nan
    bulk = usual_levels_kwh(fleets.build_fleet(readings), min_readings=36)
    start = night - LEVEL_NIGHTS
    past = fleets.build_fleet(
        readings[:, start : night + 1], fleets.FIRST_NIGHT + timedelta(days=start)
    )
    one = usual_levels_kwh(past, min_readings=36)
    np.testing.assert_array_equal(one[:, -1], bulk[:, night])


def test_usual_level_excludes_the_night_itself() -> None:
    readings = fleets.simulate_readings_kwh(2, 40)
    loud = readings.copy()
    loud[:, 39] *= 50
    level = usual_levels_kwh(fleets.build_fleet(readings), min_readings=36)
    level_before_loud_night = usual_levels_kwh(fleets.build_fleet(loud), min_readings=36)
    np.testing.assert_array_equal(level[:, 39], level_before_loud_night[:, 39])


def test_usual_level_follows_the_household_level() -> None:
    readings = fleets.simulate_readings_kwh(2, 40)
    level = usual_levels_kwh(fleets.build_fleet(readings), min_readings=36)
    tenfold = usual_levels_kwh(fleets.build_fleet(readings * 10), min_readings=36)
    np.testing.assert_allclose(10 * level, tenfold, rtol=1e-5)


def test_usual_level_is_never_below_its_minimum() -> None:
    fleet = fleets.build_fleet(np.zeros((1, 40, 48), dtype=np.float32))
    assert (usual_levels_kwh(fleet, min_readings=36) == np.float32(0.01)).all()


def test_usable_nights_are_those_before_with_enough_readings() -> None:
    readings = fleets.simulate_readings_kwh(1, 6)
    readings[0, 2, :20] = np.nan
    fleet = fleets.build_fleet(readings)
    assert count_usable_nights(fleet, 3, min_readings=36)[0].tolist() == [0, 1, 2, 2, 2, 2]
