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
"""Share of the households that no network learns from. Chosen: of the full trial 696, whose nights
fill the calibration set, while seven eighths are left to learn from."""
CALIBRATION_NIGHTS: Final = 28
"""Last nights on which versions are compared. Chosen: four whole weeks, as near as can be to the
nights that the better version will score."""
MIN_TRAINING_NIGHTS: Final = 28
"""Fewest nights of a fleet to train on. Chosen: every weekday is then seen four times, and the
quarter that versions are compared on is one week."""


def is_held_out(household_ids: list[str]) -> NDArray[np.bool_]:
    """Return which households no network learns from, `[H]`: those whose hash is below 1/8.

    A hash, so that a household stays on its side as the fleet grows or is reordered. If no hash is
    below 1/8, the household with the smallest one is held out.
    """
    hashes = hash_household_ids(household_ids).view(np.uint64) / 2.0**64
    return hashes <= max(HELD_OUT_SHARE, hashes.min(initial=1.0))


def select_held_out_households(fleet: Fleet) -> Fleet:
    """Return the fleet of the households that no network learns from."""
    return fleet.select_households(is_held_out(fleet.household_ids))


def select_calibration_nights(nights: list[date]) -> slice:
    """Return which of a fleet's nights versions are compared on.

    The last 28, but at most a quarter of them, so that a short history keeps most of its nights as
    context.

    Raises:
        UserError: there are fewer than `MIN_TRAINING_NIGHTS`.
    """
    n_nights = len(nights)
    if n_nights < MIN_TRAINING_NIGHTS:
        held = f"{n_nights} up to {nights[-1]}" if nights else "none"
        raise UserError(
            f"training needs {MIN_TRAINING_NIGHTS} nights or more, the lake holds {held}"
        )
    return slice(n_nights - min(CALIBRATION_NIGHTS, n_nights // 4), n_nights)


def select_nights_from(fleet: Fleet, first_index: int) -> Fleet:
    """Return the fleet from its night number `first_index` on; from its first if negative."""
    return fleet.select_nights(max(first_index, 0))


def usable_household_nights(fleet: Fleet, min_readings: int) -> Tensor:
    """Return the indices `[N]` of household-nights with enough readings, into the flat `[H, D]`."""
    return torch.from_numpy(np.flatnonzero(fleet.n_readings >= min_readings))


def require_usable_household_nights(
    fleet: Fleet, household_mask: NDArray[np.bool_], purpose: str, min_readings: int
) -> Tensor:
    """Return the usable household-nights `[N]` of the households in `household_mask` `[H]`.

    Indices as of `usable_household_nights`. `purpose` says in the error what they were wanted for.

    Raises:
        UserError: there is none among these households.
    """
    is_usable = (fleet.n_readings >= min_readings) & household_mask[:, None]
    if not is_usable.any():
        raise UserError(
            f"no household {purpose} has {min_readings} readings on a night "
            f"{fleet.nights[0]} to {fleet.nights[-1]}"
        )
    return torch.from_numpy(np.flatnonzero(is_usable))


def select_evenly(indices: Tensor, max_count: int) -> Tensor:
    """Return at most `max_count` of the indices `[N]`, evenly spread from the first to the last."""
    count = min(max_count, len(indices))
    # Double: a float32 holds whole numbers to 16.7 million only, and a fleet may have more nights.
    positions = torch.linspace(0, len(indices) - 1, count, dtype=torch.float64)
    return indices[positions.round().long()]
