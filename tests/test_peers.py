"""A new home is held against homes like it, and against itself as soon as there is something."""

import numpy as np
import pytest
import torch

from ml.features import CONDITIONS, Fleet
from ml.peers import ENOUGH_NIGHTS, PEERS
from ml.score import cold_start_penalty
from ml.windows import FleetWindows
from tests import fleets

HOMES, NIGHTS, LEAD = 24, 60, 40
LAST = NIGHTS - 1


def home(level: float) -> np.ndarray:
    return np.full((NIGHTS, 48), level, dtype=np.float32)


@pytest.fixture
def fleet() -> Fleet:
    """Homes of 1 to 24 kWh a half-hour, the first dozen affluent; the first home is new."""
    known = fleets.fleet(np.stack([home(1.0 + place) for place in range(HOMES)]))
    known.conditions[:, :, CONDITIONS.index("affluence")] = 0
    known.conditions[:12, :, CONDITIONS.index("affluence")] = 1
    known.kwh[0, :-1] = np.nan
    return known


def window(fleet: Fleet, household: int, *, night: int = LAST, lend: bool = True) -> np.ndarray:
    windows = FleetWindows(fleet, LEAD, 36, lend=lend)
    return windows.take(torch.tensor([household * NIGHTS + night])).kwh[0].numpy()


def test_a_home_of_a_week_borrows_the_nights_that_it_has_not_lived(fleet: Fleet) -> None:
    fleet.kwh[0, -8:] = 2.0
    lent = window(fleet, 0)
    assert (lent[-8:] == 2).all()
    # Scaled to its own level, flat peers all become 2.
    np.testing.assert_allclose(lent[:-8], 2, rtol=1e-6)


def test_peers_are_of_the_group_first_and_take_turns(fleet: Fleet) -> None:
    fleet.kwh[0, -8:-1] = 5.0
    marks = np.linspace(0.5, 1.5, 48, dtype=np.float32)
    affluent, others = range(1, 12), range(12, HOMES)
    for place in affluent:
        fleet.kwh[place] *= np.roll(marks, 2 * place)
    peaks = window(fleet, 0)[:-8].argmax(axis=1)
    lenders = {(int(peak) - 47) % 48 // 2 for peak in peaks}
    # Levels 2 to 8 lie nearest to 5 by ratio, of places 1 to 11; nobody of another group.
    assert len(lenders) == PEERS
    assert not lenders & set(others)
    assert 4 in lenders


def test_a_home_without_any_night_is_held_against_the_middle_of_the_fleet(fleet: Fleet) -> None:
    lent = window(fleet, 0)
    assert np.isfinite(lent).all()
    assert 2 < np.median(lent[:-1]) < HOMES


def test_a_home_that_has_lived_long_enough_borrows_nothing(fleet: Fleet) -> None:
    fleet.kwh[0, -ENOUGH_NIGHTS - 1 :] = 2.0
    np.testing.assert_array_equal(window(fleet, 0), window(fleet, 0, lend=False))
    np.testing.assert_array_equal(window(fleet, 7), window(fleet, 7, lend=False))


def test_where_all_are_new_nobody_lends(fleet: Fleet) -> None:
    early = window(fleet, 3, night=10)
    np.testing.assert_array_equal(early, window(fleet, 3, night=10, lend=False))


def test_lending_changes_no_reading_of_the_fleet(fleet: Fleet) -> None:
    before = fleet.kwh.copy()
    window(fleet, 0)
    np.testing.assert_array_equal(fleet.kwh, before)


def test_a_home_surprises_less_while_it_is_new(fleet: Fleet) -> None:
    fleet.kwh[0, 20:] = 2.0
    less = cold_start_penalty(fleet, 36)
    assert (np.diff(less[0, 20:48]) < 0).all()
    assert (less[0, 48:] == 0).all()
    assert (less[1:, 28:] == 0).all()
