"""A fleet as whole tensors, of which a batch of windows is one gather."""

from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from ml.features import Fleet, usual_levels_kwh
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
        self.household_ids, self.nights = fleet.household_ids, fleet.nights
        self.shape = fleet.kwh.shape[:2]
        self._kwh = torch.from_numpy(fleet.kwh.reshape(-1, HALF_HOURS))
        self._stream: torch.cuda.Stream | None = None
        level = usual_levels_kwh(fleet, min_readings)
        lends = lend and lead_nights > 0
        self._peers = Peers(fleet, level, lead_nights, min_readings) if lends else None
        self._level = torch.from_numpy(level.ravel())
        self._group = torch.from_numpy(fleet.condition_group)
        self._conditions = torch.from_numpy(fleet.conditions)

    @property
    def kept(self) -> Literal["host", "device", "streamed"]:
        """Where the readings are: on the host, on a GPU, or sent to one batch by batch."""
        if self._stream is not None:
            return "streamed"
        return "host" if self._kwh.device.type == "cpu" else "device"

    def settle(self, device: torch.device) -> None:
        """Give windows on this device from now on.

        A GPU takes the fleet once for all batches if half of its free memory holds it.
        """
        if device.type != "cuda":
            return
        parts = (self._kwh, self._level, self._group, self._conditions)
        free, _ = torch.cuda.mem_get_info(device)
        if sum(part.nbytes for part in parts) < RESIDENT_SHARE * free:
            there = (part.to(device) for part in parts)
            self._kwh, self._level, self._group, self._conditions = there
        else:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def name(self, place: int) -> str:
        """What a person calls a household-night."""
        h, d = divmod(place, self.shape[1])
        return f"{self.household_ids[h]} on {self.nights[d]}"

    def take(self, places: Tensor) -> Windows:
        """The windows of household-nights `[N]`, counted through the fleet's `[H, D]`."""
        kwh, at = self._kwh_of(places), self._there(places)
        if self._peers:
            self._peers.lend(kwh, places)
        group = self._group[at // self.shape[1]]
        conditions = self._conditions[group, at % self.shape[1]]
        return self._sent(Windows(kwh, self._level[at], conditions))

    def _there(self, index: Tensor) -> Tensor:
        """An index where the readings are."""
        return index.to(self._kwh.device, non_blocking=True)

    def _sent(self, windows: Windows) -> Windows:
        """Windows of the host by way of pinned memory to the GPU, while that computes."""
        if self._stream is None:
            return windows
        device, now = self._stream.device, torch.cuda.current_stream(self._stream.device)
        with torch.cuda.stream(self._stream):
            there = Windows(*(part.pin_memory().to(device, non_blocking=True) for part in windows))
        now.wait_stream(self._stream)
        for part in there:
            part.record_stream(now)
        return there

    def _kwh_of(self, places: Tensor) -> Tensor:
        early = (places % self.shape[1] < self.lead_nights).nonzero()[:, 0]
        if len(early) == len(places):
            return self._early(places)
        height = (self.lead_nights + 1) * HALF_HOURS
        windows = self._kwh.as_strided((len(self._kwh) - self.lead_nights, height), (HALF_HOURS, 1))
        start = (places - self.lead_nights).clamp(min=0)
        kwh = windows.index_select(0, self._there(start)).view(-1, self.lead_nights + 1, HALF_HOURS)
        if len(early):
            kwh[self._there(early)] = self._early(places[early])
        return kwh

    def _early(self, places: Tensor) -> Tensor:
        """Windows `[N, lead_nights + 1, 48]` that begin before the fleet's first night."""
        back = torch.arange(-self.lead_nights, 1)
        before = (places % self.shape[1])[:, None] + back < 0
        rows = (places[:, None] + back).clamp(min=0)
        kwh = self._kwh.index_select(0, self._there(rows.flatten())).view(*rows.shape, HALF_HOURS)
        return kwh.masked_fill_(self._there(before)[:, :, None], np.nan)
