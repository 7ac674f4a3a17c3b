"""New households take context nights from similar ones until they have enough of their own."""

import numpy as np
import pytest
import torch

from ml.conditions import CONDITIONS
from ml.fleet import Fleet
from ml.peers import PeerConfig
from ml.scoring.config import ScoringConfig
from ml.scoring.corrections import cold_start_penalty
from ml.windows import FleetWindows
from tests import fleets

HOUSEHOLDS, NIGHTS, CONTEXT_NIGHTS = 24, 60, 40
PEERS = PeerConfig()
LAST = NIGHTS - 1


def build_flat_household(level_kwh: float) -> np.ndarray:
    return np.full((NIGHTS, 48), level_kwh, dtype=np.float32)


@pytest.fixture
def fleet() -> Fleet:
    """Households of 1 to 24 kWh a half-hour, the first dozen affluent; the first one is new."""
    fleet = fleets.build_fleet(
        np.stack([build_flat_household(1.0 + place) for place in range(HOUSEHOLDS)])
    )
    fleet.conditions[:, :, CONDITIONS.index("affluence")] = 0
    fleet.conditions[:12, :, CONDITIONS.index("affluence")] = 1
    fleet.kwh[0, :-1] = np.nan
    return fleet


def take_window(
    fleet: Fleet, household: int, *, night: int = LAST, has_peers: bool = True
) -> np.ndarray:
    windows = FleetWindows(fleet, CONTEXT_NIGHTS, 36, peer_config=PEERS if has_peers else None)
    return windows.gather_windows(torch.tensor([household * NIGHTS + night])).kwh[0].numpy()


def test_new_household_takes_peer_nights_before_its_first(fleet: Fleet) -> None:
    fleet.kwh[0, -8:] = 2.0
    imputed = take_window(fleet, 0)
    assert (imputed[-8:] == 2).all()
    # Scaled to its own level, flat peers all become 2.
    np.testing.assert_allclose(imputed[:-8], 2, rtol=1e-6)


def test_peers_come_from_own_group_and_alternate(fleet: Fleet) -> None:
    fleet.kwh[0, -8:-1] = 5.0
    marks = np.linspace(0.5, 1.5, 48, dtype=np.float32)
    affluent, others = range(1, 12), range(12, HOUSEHOLDS)
    for place in affluent:
        fleet.kwh[place] *= np.roll(marks, 2 * place)
    peaks = take_window(fleet, 0)[:-8].argmax(axis=1)
    peers = {(int(peak) - 47) % 48 // 2 for peak in peaks}
    # Levels 2 to 8 lie nearest to 5 by ratio, of places 1 to 11; nobody of another group.
    assert len(peers) == PEERS.max_peers
    assert not peers & set(others)
    assert 4 in peers


def test_household_without_nights_takes_nights_from_median_fleet_level(fleet: Fleet) -> None:
    imputed = take_window(fleet, 0)
    assert np.isfinite(imputed).all()
    assert 2 < np.median(imputed[:-1]) < HOUSEHOLDS


def test_household_with_enough_nights_takes_none(fleet: Fleet) -> None:
    fleet.kwh[0, -PEERS.min_own_nights - 1 :] = 2.0
    np.testing.assert_array_equal(take_window(fleet, 0), take_window(fleet, 0, has_peers=False))
    np.testing.assert_array_equal(take_window(fleet, 7), take_window(fleet, 7, has_peers=False))


def test_no_night_is_taken_when_all_households_are_new(fleet: Fleet) -> None:
    early = take_window(fleet, 3, night=10)
    np.testing.assert_array_equal(early, take_window(fleet, 3, night=10, has_peers=False))


def test_imputation_does_not_change_fleet_readings(fleet: Fleet) -> None:
    before = fleet.kwh.copy()
    take_window(fleet, 0)
    np.testing.assert_array_equal(fleet.kwh, before)


def test_cold_start_penalty_falls_to_zero(fleet: Fleet) -> None:
    fleet.kwh[0, 20:] = 2.0
    penalty = cold_start_penalty(fleet, 36, ScoringConfig())
    assert (np.diff(penalty[0, 20:48]) < 0).all()
    assert (penalty[0, 48:] == 0).all()
    assert (penalty[1:, 28:] == 0).all()
