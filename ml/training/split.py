"""The split of a fleet: held-out households, calibration nights, usable household-nights."""

from datetime import date
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml.errors import UserError
from ml.fleet import Fleet
from ml.scoring.calibration import hash_household_ids

HELD_OUT_SHARE: Final = 1 / 8
CALIBRATION_NIGHTS: Final = 28
MIN_TRAINING_NIGHTS: Final = 28


def is_held_out(household_ids: list[str]) -> NDArray[np.bool_]:
    """Which households no network learns from, `[H]`: those whose hash falls under 1/8.

    It stays the same as a fleet grows; where none falls under it, the one of the smallest hash.
    """
    hashes = hash_household_ids(household_ids).view(np.uint64) / 2.0**64
    return hashes <= max(HELD_OUT_SHARE, hashes.min(initial=1.0))


def select_calibration_nights(nights: list[date]) -> slice:
    """The last nights of a history: 28, and a quarter of less than 112.

    Raises:
        UserError: there are fewer than `MIN_TRAINING_NIGHTS`.
    """
    count = len(nights)
    if count < MIN_TRAINING_NIGHTS:
        held = f"{count} up to {nights[-1]}" if nights else "none"
        raise UserError(
            f"training needs {MIN_TRAINING_NIGHTS} nights or more, the lake holds {held}"
        )
    return slice(count - min(CALIBRATION_NIGHTS, count // 4), count)


def select_held_out_households(fleet: Fleet) -> Fleet:
    """The households of a fleet that no network learns from."""
    return fleet.select_households(is_held_out(fleet.household_ids))


def select_nights_from(fleet: Fleet, first_index: int) -> Fleet:
    """The fleet's nights from `first_index` on, all of them where it is negative."""
    return fleet.select_nights(max(first_index, 0))


def usable_household_nights(fleet: Fleet, min_readings: int) -> Tensor:
    """All household-nights `[N]` with enough readings, counted through the fleet's `[H, D]`."""
    return torch.from_numpy(np.flatnonzero(fleet.n_readings >= min_readings))


def require_usable_household_nights(
    fleet: Fleet, household_mask: NDArray[np.bool_], purpose: str, min_readings: int
) -> Tensor:
    """The household-nights `[N]` with enough readings, counted through the fleet's `[H, D]`.

    Raises:
        UserError: there is none among these households.
    """
    usable = (fleet.n_readings >= min_readings) & household_mask[:, None]
    if not usable.any():
        first, last = fleet.nights[0], fleet.nights[-1]
        raise UserError(
            f"no household {purpose} has {min_readings} readings on a night {first} to {last}"
        )
    return torch.from_numpy(np.flatnonzero(usable))


def select_evenly(indices: Tensor, max_count: int) -> Tensor:
    """At most `max_count` of the indices `[N]`, evenly spread."""
    index = torch.linspace(0, len(indices) - 1, min(max_count, len(indices)), dtype=torch.float64)
    return indices[index.round().long()]
