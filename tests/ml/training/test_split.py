"""The split holds households out by hash and nights by time."""

from datetime import timedelta

import numpy as np
import pytest
import torch

from ml.errors import UserError
from ml.training.split import (
    is_held_out,
    require_usable_household_nights,
    select_calibration_nights,
    select_evenly,
    usable_household_nights,
)
from tests import fleets


def test_held_out_eighth_is_stable_as_fleet_grows() -> None:
    ids = [f"MAC{i:06d}" for i in range(4000)]
    held_out = is_held_out(ids)
    # 4,000 draws of 1/8: a mean of 500, a standard error of 21.
    assert 400 < held_out.sum() < 600
    assert is_held_out(ids[:500]).tolist() == held_out[:500].tolist()
    assert is_held_out(ids[::-1]).tolist() == held_out[::-1].tolist()


def test_small_fleet_holds_out_one_household() -> None:
    trained = [
        f"MAC{i:06d}" for i in np.flatnonzero(~is_held_out([f"MAC{i:06d}" for i in range(9)]))
    ]
    assert is_held_out(trained).sum() == 1
    assert is_held_out([]).tolist() == []


def test_calibration_nights_are_last_four_weeks_or_a_quarter() -> None:
    nights = [fleets.FIRST_NIGHT + timedelta(days=day) for day in range(365)]
    assert select_calibration_nights(nights) == slice(337, 365)
    assert select_calibration_nights(nights[:60]) == slice(45, 60)


@pytest.mark.parametrize("count", [0, 27])
def test_too_few_nights_raise_with_required_count(count: int) -> None:
    with pytest.raises(UserError, match=r"needs 28 nights or more, the lake holds (none|27 up to)"):
        select_calibration_nights(
            [fleets.FIRST_NIGHT + timedelta(days=day) for day in range(count)]
        )


def test_usable_household_nights_have_enough_readings() -> None:
    kwh = np.ones((2, 3, 48), dtype=np.float32)
    kwh[0, 1, :13] = np.nan  # 35 readings
    kwh[1, 2, :12] = np.nan  # 36 readings
    fleet = fleets.build_fleet(kwh)
    assert usable_household_nights(fleet, 36).tolist() == [0, 2, 3, 4, 5]
    mask = np.array([True, False])
    assert require_usable_household_nights(fleet, mask, "held out", 36).tolist() == [0, 2]
    with pytest.raises(UserError, match="no household held out has 49 readings on a night 2013-"):
        require_usable_household_nights(fleet, mask, "held out", 49)


def test_evenly_selected_indices_include_first_and_last() -> None:
    indices = torch.arange(10, 21)
    assert select_evenly(indices, 3).tolist() == [10, 15, 20]
    assert select_evenly(indices, 100).tolist() == indices.tolist()
