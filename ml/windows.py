"""A fleet as whole tensors, of which a batch of windows is one gather."""

from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from ml.fleet import Fleet, usual_levels_kwh
from ml.models.base import Windows
from ml.peers import PeerImputer
from ml.schemas import HALF_HOURS

MAX_DEVICE_MEMORY_SHARE: Final = 0.5
"""Of an accelerator's free memory, the most that a fleet may take; the rest is for the steps."""


class FleetWindows:
    """The windows of every household-night of a fleet, `lead_nights` before each.

    Nights before the fleet's first are NaN, unless peers lend theirs. Nothing is copied until
    windows are taken.
    """

    def __init__(
        self,
        fleet: Fleet,
        context_nights: int,
        min_readings: int,
        *,
        borrow_from_peers: bool = False,
    ) -> None:
        self.context_nights = context_nights
        self.household_ids, self.nights = fleet.household_ids, fleet.nights
        self.shape = fleet.kwh.shape[:2]
        self._kwh = torch.from_numpy(fleet.kwh.reshape(-1, HALF_HOURS))
        self._transfer_stream: torch.cuda.Stream | None = None
        level = usual_levels_kwh(fleet, min_readings)
        lends = borrow_from_peers and context_nights > 0
        self._peer_imputer = (
            PeerImputer(fleet, level, context_nights, min_readings) if lends else None
        )
        self._level = torch.from_numpy(level.ravel())
        self._condition_group = torch.from_numpy(fleet.condition_group)
        self._conditions = torch.from_numpy(fleet.conditions)

    @property
    def placement(self) -> Literal["host", "device", "streamed"]:
        """Where the readings are: on the host, on a GPU, or sent to one batch by batch."""
        if self._transfer_stream is not None:
            return "streamed"
        return "host" if self._kwh.device.type == "cpu" else "device"

    def move_to_device(self, device: torch.device) -> None:
        """Give windows on this device from now on.

        A GPU takes the fleet once for all batches if half of its free memory holds it.
        """
        if device.type != "cuda":
            return
        parts = (self._kwh, self._level, self._condition_group, self._conditions)
        free, _ = torch.cuda.mem_get_info(device)
        if sum(part.nbytes for part in parts) < MAX_DEVICE_MEMORY_SHARE * free:
            there = (part.to(device) for part in parts)
            self._kwh, self._level, self._condition_group, self._conditions = there
        else:
            self._transfer_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def format_household_night(self, index: int) -> str:
        """What a person calls a household-night."""
        h, d = divmod(index, self.shape[1])
        return f"{self.household_ids[h]} on {self.nights[d]}"

    def gather_windows(self, indices: Tensor) -> Windows:
        """The windows of household-nights `[N]`, counted through the fleet's `[H, D]`."""
        kwh, at = self._gather_readings(indices), self._to_readings_device(indices)
        if self._peer_imputer:
            self._peer_imputer.impute_windows(kwh, indices)
        group = self._condition_group[at // self.shape[1]]
        conditions = self._conditions[group, at % self.shape[1]]
        return self._transfer_windows(Windows(kwh, self._level[at], conditions))

    def _to_readings_device(self, index: Tensor) -> Tensor:
        """An index where the readings are."""
        return index.to(self._kwh.device, non_blocking=True)

    def _transfer_windows(self, windows: Windows) -> Windows:
        """Windows of the host by way of pinned memory to the GPU, while that computes."""
        if self._transfer_stream is None:
            return windows
        device, now = (
            self._transfer_stream.device,
            torch.cuda.current_stream(self._transfer_stream.device),
        )
        with torch.cuda.stream(self._transfer_stream):
            there = Windows(*(part.pin_memory().to(device, non_blocking=True) for part in windows))
        now.wait_stream(self._transfer_stream)
        for part in there:
            part.record_stream(now)
        return there

    def _gather_readings(self, indices: Tensor) -> Tensor:
        early = (indices % self.shape[1] < self.context_nights).nonzero()[:, 0]
        if len(early) == len(indices):
            return self._gather_padded_readings(indices)
        height = (self.context_nights + 1) * HALF_HOURS
        windows = self._kwh.as_strided(
            (len(self._kwh) - self.context_nights, height), (HALF_HOURS, 1)
        )
        start = (indices - self.context_nights).clamp(min=0)
        kwh = windows.index_select(0, self._to_readings_device(start)).view(
            -1, self.context_nights + 1, HALF_HOURS
        )
        if len(early):
            kwh[self._to_readings_device(early)] = self._gather_padded_readings(indices[early])
        return kwh

    def _gather_padded_readings(self, indices: Tensor) -> Tensor:
        """Windows `[N, lead_nights + 1, 48]` that begin before the fleet's first night."""
        back = torch.arange(-self.context_nights, 1)
        before = (indices % self.shape[1])[:, None] + back < 0
        rows = (indices[:, None] + back).clamp(min=0)
        kwh = self._kwh.index_select(0, self._to_readings_device(rows.flatten())).view(
            *rows.shape, HALF_HOURS
        )
        return kwh.masked_fill_(self._to_readings_device(before)[:, :, None], np.nan)
