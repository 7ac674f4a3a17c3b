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

from ml.features import Fleet, FloatArray, count_usable_nights

PEERS: Final = 7
ENOUGH_NIGHTS: Final = 28
"""A household with as many usable nights before a night borrows none."""
# How many times as high a level may be before a household of another group is nearer.
OTHER_GROUP: Final = 2.0


class Peers:
    """The households of a fleet that lend nights to those that are new; `level` `[H, D]` in kWh."""

    def __init__(
        self, fleet: Fleet, level: FloatArray, lead_nights: int, min_readings: int
    ) -> None:
        self.kwh, self.lead_nights = fleet.kwh, lead_nights
        self.usable = fleet.n_readings >= min_readings
        self.lived = count_usable_nights(fleet, lead_nights, min_readings)
        self.is_new = self.lived < min(ENOUGH_NIGHTS, lead_nights)
        self.borrows = self.is_new & ~self.is_new.all(axis=0)
        self.level = level
        self.prices = fleet.get_condition("price_signal")
        self.affluence = np.nan_to_num(fleet.get_condition("affluence")[:, 0], nan=9)

    def lend(self, windows: Tensor, places: Tensor) -> None:
        """Fill the nights that new households have not lived, in place.

        `windows` `[N, lead_nights + 1, 48]`, of household-nights `[N]` counted through `[H, D]`.
        """
        h, d = np.unravel_index(places.numpy(), self.usable.shape)
        for row in np.flatnonzero(self.borrows[h, d]):
            self._fill(windows[row], int(h[row]), int(d[row]))

    def _fill(self, window: Tensor, household: int, night: int) -> None:
        lag = np.arange(self.lead_nights, 0, -1)
        lag = lag[lag <= night]
        lag = lag[~self.usable[household, night - lag]]
        level = self.level[household, night]
        if not self.lived[household, night]:
            level = np.median(self.level[:, night])
        peers = self._nearest(household, night, float(level))
        peer = peers[lag % len(peers)]
        share = level / self.level[peer, night]
        lent = (self.kwh[peer, night - lag] * share[:, None]).astype(np.float32)
        window[torch.from_numpy(self.lead_nights - lag)] = torch.from_numpy(lent)

    def _nearest(self, household: int, night: int, level: float) -> NDArray[np.int_]:
        """Households that have lived long enough, the most alike first."""
        lenders = np.flatnonzero(~self.is_new[:, night])
        prices = self.prices[:, max(0, night - self.lead_nights) : night + 1]
        group = np.stack((self.affluence, (prices != 0).any(axis=1)), axis=1)
        far = np.abs(np.log(self.level[lenders, night] / level))
        far += np.log(OTHER_GROUP) * (group[lenders] != group[household]).any(axis=1)
        nearest: NDArray[np.int_] = lenders[np.argsort(far, kind="stable")[:PEERS]]
        return nearest
