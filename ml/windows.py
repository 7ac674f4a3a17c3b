"""A fleet as whole tensors, of which a batch of windows is one gather."""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from ml.features import Fleet, levels
from ml.models.network import Windows
from ml.peers import Peers
from ml.schemas import HALF_HOURS

RESIDENT_SHARE: Final = 0.5
"""Of an accelerator's free memory, the most that a fleet may take; the rest is for the steps."""


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
        self._kwh = torch.from_numpy(fleet.kwh.reshape(-1, HALF_HOURS))
        level = levels(fleet, min_readings)
        lends = lend and lead_nights > 0
        self._peers = Peers(fleet, level, lead_nights, min_readings) if lends else None
        self._level = torch.from_numpy(level.ravel())
        self._conditions = torch.from_numpy(fleet.conditions.reshape(-1, fleet.conditions.shape[2]))

    @property
    def device(self) -> torch.device:
        """Where the readings are, and so the windows that are taken."""
        return self._kwh.device

    def settle(self, device: torch.device) -> None:
        """Move to a GPU once for all batches, if half of its free memory holds the fleet."""
        parts = (self._kwh, self._level, self._conditions)
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if sum(part.nbytes for part in parts) < RESIDENT_SHARE * free:
                self._kwh, self._level, self._conditions = (part.to(device) for part in parts)

    def take(self, places: Tensor) -> Windows:
        """The windows of household-nights `[N]`, counted through the fleet's `[H, D]`."""
        at = places.to(self.device, non_blocking=True)
        kwh = self._kwh_of(places)
        if self._peers:
            self._peers.lend(kwh, places)
        return Windows(kwh, self._level.index_select(0, at), self._conditions.index_select(0, at))

    def _kwh_of(self, places: Tensor) -> Tensor:
        early = (places % self.shape[1] < self.lead_nights).nonzero()[:, 0]
        if len(early) == len(places):
            return self._early(places)
        height = (self.lead_nights + 1) * HALF_HOURS
        windows = self._kwh.as_strided(
            (len(self._kwh) - self.lead_nights, height), (HALF_HOURS, 1)
        )
        start = (places - self.lead_nights).clamp(min=0).to(self.device, non_blocking=True)
        kwh = windows.index_select(0, start).view(-1, self.lead_nights + 1, HALF_HOURS)
        if len(early):
            kwh[early.to(self.device, non_blocking=True)] = self._early(places[early])
        return kwh

    def _early(self, places: Tensor) -> Tensor:
        """Windows `[N, lead_nights + 1, 48]` that begin before the fleet's first night."""
        back = torch.arange(-self.lead_nights, 1)
        before = (places % self.shape[1])[:, None] + back < 0
        rows = (places[:, None] + back).clamp(min=0).to(self.device, non_blocking=True)
        kwh = self._kwh.index_select(0, rows.flatten()).view(*rows.shape, HALF_HOURS)
        return kwh.masked_fill_(before.to(self.device)[:, :, None], np.nan)
