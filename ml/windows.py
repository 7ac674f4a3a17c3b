"""A fleet as whole tensors, of which a batch of windows is one gather."""

import numpy as np
import torch
from torch import Tensor

from ml.features import Fleet, levels
from ml.models.network import Windows
from ml.peers import Peers
from ml.schemas import HALF_HOURS


class FleetWindows:
    """The windows of every household-night of a fleet, `lead_nights` before each.

    Nights before the fleet's first are NaN, unless peers lend theirs. Nothing is copied until
    windows are taken.
    """

    def __init__(
        self, fleet: Fleet, lead_nights: int, min_readings: int, *, lend: bool = False
    ) -> None:
        self.lead_nights = lead_nights
        self.shape = fleet.kwh.shape[:2]
        padded = np.pad(
            fleet.kwh, ((0, 0), (lead_nights, 0), (0, 0)), constant_values=np.float32(np.nan)
        )
        self._kwh = torch.from_numpy(padded)
        level = levels(fleet, min_readings)
        lends = lend and lead_nights > 0
        self._peers = Peers(fleet, level, lead_nights, min_readings) if lends else None
        self._level = torch.from_numpy(level.ravel())
        self._conditions = torch.from_numpy(fleet.conditions.reshape(-1, fleet.conditions.shape[2]))

    def take(self, places: Tensor) -> Windows:
        """The windows of household-nights `[N]`, counted through the fleet's `[H, D]`."""
        height = (self.lead_nights + 1) * HALF_HOURS
        start = places + places.div(self.shape[1], rounding_mode="floor") * self.lead_nights
        rows = self._kwh.numel() // HALF_HOURS - self.lead_nights
        kwh = self._kwh.as_strided((rows, height), (HALF_HOURS, 1)).index_select(0, start)
        kwh = kwh.view(-1, self.lead_nights + 1, HALF_HOURS)
        if self._peers:
            self._peers.lend(kwh, places)
        return Windows(
            kwh,
            self._level.index_select(0, places),
            self._conditions.index_select(0, places),
        )
