"""Batches are drawn from seed and epoch alone, and shared out among processes."""

import numpy as np
import pytest
import torch

from ml.training.data import WindowBatches
from ml.training.parameters import TrainingProcesses
from ml.windows import FleetWindows
from tests import fleets
from tests.training_fixtures import MIN_READINGS

HOUSEHOLDS, NIGHTS = 12, 60


@pytest.fixture(scope="module")
def numbered_windows() -> FleetWindows:
    """Windows whose first condition is the index of the household-night."""
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS))
    fleet.conditions[..., 0] = np.arange(HOUSEHOLDS * NIGHTS).reshape(HOUSEHOLDS, NIGHTS)
    return FleetWindows(fleet, 0, MIN_READINGS)


def list_epoch(batches: WindowBatches) -> list[list[int]]:
    return [batch.conditions[:, 0].int().tolist() for batch in batches]


def test_epoch_draws_each_household_night_once_in_reproducible_order(
    numbered_windows: FleetWindows,
) -> None:
    indices = torch.arange(5, 15)
    batches = WindowBatches(numbered_windows, indices, batch_size=4, epoch_size=100, seed=7)
    orders = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        orders.append([index for batch in list_epoch(batches) for index in batch])
    assert len(batches) == 3
    assert sorted(orders[0]) == indices.tolist()
    assert orders[0] == orders[2] != orders[1]


def test_batches_of_an_epoch_are_of_nearly_equal_size(numbered_windows: FleetWindows) -> None:
    """Cut at every four, nine household-nights would leave a batch of one."""
    batches = WindowBatches(numbered_windows, torch.arange(9), 4, epoch_size=9, seed=0)
    assert [len(batch) for batch in list_epoch(batches)] == [3, 3, 3]


def test_processes_share_a_batch_and_repeat_the_last_share(numbered_windows: FleetWindows) -> None:
    """Three batches of two shares: of four processes two have no share left in the second turn."""
    whole = WindowBatches(numbered_windows, torch.arange(12), 4, epoch_size=12, seed=3)
    taken = [
        list_epoch(
            WindowBatches(
                numbered_windows,
                torch.arange(12),
                4,
                epoch_size=12,
                seed=3,
                shares_per_batch=2,
                processes=TrainingProcesses(rank=rank, n_processes=4),
            )
        )
        for rank in range(4)
    ]
    shares = [share for turn in zip(*taken, strict=True) for share in turn]
    first_six = [index for share in shares[:6] for index in share]
    assert first_six == [index for batch in list_epoch(whole) for index in batch]
    assert shares[6:] == [shares[5], shares[5]]


def test_validation_batches_are_the_same_every_epoch(numbered_windows: FleetWindows) -> None:
    batches = WindowBatches(numbered_windows, torch.arange(100), 8, epoch_size=5, seed=None)
    first = list_epoch(batches)
    batches.set_epoch(1)
    assert list_epoch(batches) == first == [[0, 25, 50, 74, 99]]
