"""Windows: household-nights with the nights before each, gathered from a whole fleet at once."""

from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from ml.fleet import DEFAULT_LEVEL_CONFIG, Fleet, LevelConfig, usual_levels_kwh
from ml.models.base import Windows
from ml.peers import PeerConfig, PeerImputer
from ml.schemas import HALF_HOURS

MAX_DEVICE_MEMORY_SHARE: Final = 0.5
"""Most of a GPU's free memory that a fleet may take; the rest is for training steps. Chosen."""


class FleetWindows:
    """The windows of every household-night of a fleet, `context_nights` before each.

    A household-night is counted by its index through the fleet's `[H, D]`. Nights before the
    fleet's first are NaN, unless peers fill them. Nothing is copied until windows are gathered.
    """

    def __init__(
        self,
        fleet: Fleet,
        context_nights: int,
        min_readings: int,
        *,
        level_config: LevelConfig = DEFAULT_LEVEL_CONFIG,
        peer_config: PeerConfig | None = None,
    ) -> None:
        """Compute levels; with a `peer_config` new households take nights from peers."""
        self.context_nights = context_nights
        self.household_ids = fleet.household_ids
        self.nights = fleet.nights
        self.shape = fleet.kwh.shape[:2]
        level_kwh = usual_levels_kwh(fleet, min_readings, level_config)
        self._peer_imputer: PeerImputer | None = None
        if peer_config is not None and context_nights > 0:
            self._peer_imputer = PeerImputer(
                fleet, level_kwh, context_nights, min_readings, peer_config
            )
        self._kwh = torch.from_numpy(fleet.kwh.reshape(-1, HALF_HOURS))
        self._level = torch.from_numpy(level_kwh.ravel())
        self._condition_group = torch.from_numpy(fleet.condition_group)
        self._conditions = torch.from_numpy(fleet.conditions)
        self._transfer_stream: torch.cuda.Stream | None = None

    @property
    def placement(self) -> Literal["host", "device", "streamed"]:
        """Where the readings are: on the host, on a GPU, or sent to one batch by batch."""
        if self._transfer_stream is not None:
            return "streamed"
        return "host" if self._kwh.device.type == "cpu" else "device"

    def move_to_device(self, device: torch.device) -> None:
        """Gather windows on this device from now on.

        A GPU takes the fleet once for all batches if half of its free memory holds it; otherwise
        each batch is sent to it. A CPU changes nothing.
        """
        if device.type != "cuda":
            return
        parts = (self._kwh, self._level, self._condition_group, self._conditions)
        free_bytes, _ = torch.cuda.mem_get_info(device)
        if sum(part.nbytes for part in parts) < MAX_DEVICE_MEMORY_SHARE * free_bytes:
            on_device = [part.to(device) for part in parts]
            self._kwh, self._level, self._condition_group, self._conditions = on_device
        else:
            self._transfer_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def format_household_night(self, index: int) -> str:
        """Return "household on night" of a place counted through `[H, D]`, for messages."""
        h, d = divmod(index, self.shape[1])
        return f"{self.household_ids[h]} on {self.nights[d]}"

    def gather_windows(self, indices: Tensor) -> Windows:
        """Return the windows of household-nights `[N]`, on the device of `move_to_device`."""
        kwh = self._gather_readings(indices)
        if self._peer_imputer is not None:
            self._peer_imputer.impute_windows(kwh, indices)
        places = self._to_readings_device(indices)
        group = self._condition_group[places // self.shape[1]]
        conditions = self._conditions[group, places % self.shape[1]]
        return self._transfer_windows(Windows(kwh, self._level[places], conditions))

    def _to_readings_device(self, indices: Tensor) -> Tensor:
        return indices.to(self._kwh.device, non_blocking=True)

    def _transfer_windows(self, windows: Windows) -> Windows:
        """Send windows through pinned memory to the GPU while it computes the batch before."""
        if self._transfer_stream is None:
            return windows
        device = self._transfer_stream.device
        computing_stream = torch.cuda.current_stream(device)
        with torch.cuda.stream(self._transfer_stream):
            sent = Windows(*(part.pin_memory().to(device, non_blocking=True) for part in windows))
        computing_stream.wait_stream(self._transfer_stream)
        for part in sent:
            # Otherwise the allocator could hand the memory to the next transfer while this batch
            # is still computed on.
            part.record_stream(computing_stream)
        return sent

    def _gather_readings(self, indices: Tensor) -> Tensor:
        """Return the readings `[N, context_nights + 1, 48]` of windows."""
        is_early = indices % self.shape[1] < self.context_nights
        early = is_early.nonzero()[:, 0]
        if len(early) == len(indices):
            return self._gather_padded_readings(indices)
        # A view in which row i holds the half-hours of profile i and of the context_nights after
        # it, so that a window is one contiguous row and a batch is one gather. Rows of a
        # household's first nights run on from the household before: they are replaced below.
        window_size = (self.context_nights + 1) * HALF_HOURS
        n_rows = len(self._kwh) - self.context_nights
        rows = self._kwh.as_strided((n_rows, window_size), (HALF_HOURS, 1))
        first_profile = (indices - self.context_nights).clamp(min=0)
        kwh = rows.index_select(0, self._to_readings_device(first_profile))
        kwh = kwh.view(-1, self.context_nights + 1, HALF_HOURS)
        if len(early):
            kwh[self._to_readings_device(early)] = self._gather_padded_readings(indices[early])
        return kwh

    def _gather_padded_readings(self, indices: Tensor) -> Tensor:
        """Return windows that begin before the fleet's first night, NaN there."""
        nights_back = torch.arange(-self.context_nights, 1)
        is_before_first = (indices % self.shape[1])[:, None] + nights_back < 0
        profiles = (indices[:, None] + nights_back).clamp(min=0)
        kwh = self._kwh.index_select(0, self._to_readings_device(profiles.flatten()))
        kwh = kwh.view(*profiles.shape, HALF_HOURS)
        return kwh.masked_fill_(self._to_readings_device(is_before_first)[:, :, None], np.nan)
