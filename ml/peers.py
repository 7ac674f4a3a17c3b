"""What a household's first weeks are judged by: nights of its peers in place of its own.

A household that has lived few nights borrows the others from households of its Acorn group and
tariff, those of the nearest level first and several in turn, so that no one's habit is taken for
its own; what is borrowed is scaled to its level.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml.arrays import FloatArray
from ml.fleet import Fleet, count_usable_nights

MAX_PEERS: Final = 7
MIN_OWN_NIGHTS: Final = 28
"""A household with as many usable nights before a night borrows none."""
# How many times as high a level may be before a household of another group is nearer.
OTHER_GROUP_LEVEL_RATIO: Final = 2.0


class PeerImputer:
    """The households of a fleet that lend nights to those that are new; `level` `[H, D]` in kWh."""

    def __init__(
        self, fleet: Fleet, level: FloatArray, context_nights: int, min_readings: int
    ) -> None:
        self.kwh, self.context_nights = fleet.kwh, context_nights
        self.is_usable = fleet.n_readings >= min_readings
        self.n_usable_nights = count_usable_nights(fleet, context_nights, min_readings)
        self.is_new = self.n_usable_nights < min(MIN_OWN_NIGHTS, context_nights)
        self.needs_peers = self.is_new & ~self.is_new.all(axis=0)
        self.level = level
        self.price_signal = fleet.get_condition("price_signal")
        self.affluence = np.nan_to_num(fleet.get_condition("affluence")[:, 0], nan=9)

    def impute_windows(self, windows: Tensor, indices: Tensor) -> None:
        """Fill the nights that new households have not lived, in place.

        `windows` `[N, lead_nights + 1, 48]`, of household-nights `[N]` counted through `[H, D]`.
        """
        h, d = np.unravel_index(indices.numpy(), self.is_usable.shape)
        for row in np.flatnonzero(self.needs_peers[h, d]):
            self._impute_window(windows[row], int(h[row]), int(d[row]))

    def _impute_window(self, window: Tensor, household_index: int, night_index: int) -> None:
        lag = np.arange(self.context_nights, 0, -1)
        lag = lag[lag <= night_index]
        lag = lag[~self.is_usable[household_index, night_index - lag]]
        level = self.level[household_index, night_index]
        if not self.n_usable_nights[household_index, night_index]:
            level = np.median(self.level[:, night_index])
        peers = self._select_nearest_peers(household_index, night_index, float(level))
        peer = peers[lag % len(peers)]
        share = level / self.level[peer, night_index]
        lent = (self.kwh[peer, night_index - lag] * share[:, None]).astype(np.float32)
        window[torch.from_numpy(self.context_nights - lag)] = torch.from_numpy(lent)

    def _select_nearest_peers(
        self, household_index: int, night_index: int, level: float
    ) -> NDArray[np.int_]:
        """Households that have lived long enough, the most alike first."""
        lenders = np.flatnonzero(~self.is_new[:, night_index])
        prices = self.price_signal[:, max(0, night_index - self.context_nights) : night_index + 1]
        group = np.stack((self.affluence, (prices != 0).any(axis=1)), axis=1)
        far = np.abs(np.log(self.level[lenders, night_index] / level))
        far += np.log(OTHER_GROUP_LEVEL_RATIO) * (group[lenders] != group[household_index]).any(
            axis=1
        )
        nearest: NDArray[np.int_] = lenders[np.argsort(far, kind="stable")[:MAX_PEERS]]
        return nearest
