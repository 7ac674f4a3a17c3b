"""Batches of household-nights for training and validation, and the data module that makes them."""

from collections.abc import Iterator
from typing import Final

import lightning as L  # noqa: N812
import torch
from torch import Tensor

from ml.fleet import Fleet
from ml.models.base import Network, Windows
from ml.training.parameters import SINGLE_PROCESS, FitParameters, TrainingProcesses
from ml.training.split import is_held_out, require_usable_household_nights, select_evenly
from ml.windows import FleetWindows

SCALE_SAMPLE_SIZE: Final = 1 << 14


class WindowBatches:
    """Batches of a fleet's windows by place `[N]`; an epoch draws anew from seed and epoch.

    Lightning calls `sampler.set_epoch` before each epoch, so a resumed training sees the batches
    that the stopped one would have seen. Without a seed: the same evenly spread places every epoch.
    A batch is cut into `shares_per_batch` shares, which a team's processes take in turn; where they do not come
    out even, the last one stands in.
    """

    batch_sampler: Final = None

    def __init__(
        self,
        windows: FleetWindows,
        indices: Tensor,
        batch_size: int,
        epoch_size: int,
        seed: int | None,
        *,
        shares_per_batch: int = 1,
        processes: TrainingProcesses = SINGLE_PROCESS,
    ) -> None:
        self.windows, self.indices, self.seed = windows, indices, seed
        self.epoch_size = min(epoch_size, len(indices))
        self.n_batches = -(-self.epoch_size // batch_size)
        self.shares_per_batch, self.processes = shares_per_batch, processes
        self.epoch = 0

    @property
    def sampler(self) -> "WindowBatches":
        """Where Lightning looks for `set_epoch`."""
        return self

    @property
    def n_shares(self) -> int:
        """How many shares there are in an epoch, all processes' together."""
        return self.n_batches * self.shares_per_batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.n_shares // self.processes.n_processes)

    def __iter__(self) -> Iterator[Windows]:
        batches = self.draw_batches()
        for turn in range(len(self)):
            share = min(turn * self.processes.n_processes + self.processes.rank, self.n_shares - 1)
            batch, part = divmod(share, self.shares_per_batch)
            yield self.windows.gather_windows(
                torch.tensor_split(batches[batch], self.shares_per_batch)[part]
            )

    def draw_batches(self) -> tuple[Tensor, ...]:
        """The places of each batch of the epoch."""
        # Of nearly equal size: batch normalisation fails on a last batch of one.
        return torch.tensor_split(self._draw_indices(), self.n_batches)

    def _draw_indices(self) -> Tensor:
        if self.seed is None:
            return select_evenly(self.indices, self.epoch_size)
        generator = torch.Generator().manual_seed((self.seed << 8) + self.epoch)
        return self.indices[
            torch.randperm(len(self.indices), generator=generator)[: self.epoch_size]
        ]


class TrainingDataModule(L.LightningDataModule):
    """The household-nights of a fleet to learn from and to validate on, by their places.

    A batch is learned from in `accumulation_steps` parts, one after another, their gradients added up.
    """

    def __init__(
        self,
        windows: FleetWindows,
        train_indices: Tensor,
        validation_indices: Tensor,
        parameters: FitParameters,
        *,
        accumulation_steps: int = 1,
        processes: TrainingProcesses = SINGLE_PROCESS,
    ) -> None:
        super().__init__()
        self.windows, self.parameters = windows, parameters
        self.train_indices, self.validation_indices = train_indices, validation_indices
        self.accumulation_steps, self.processes = accumulation_steps, processes

    def setup(self, stage: str) -> None:  # noqa: ARG002 (Lightning's)
        """Give batches on the device that Lightning chose."""
        assert self.trainer is not None
        self.windows.move_to_device(self.trainer.strategy.root_device)

    def train_dataloader(self) -> WindowBatches:
        """A fresh draw every epoch."""
        p, cuts = self.parameters, self.accumulation_steps * self.processes.n_processes
        drawn = (p.batch_size, p.epoch_size, p.seed)
        return WindowBatches(
            self.windows,
            self.train_indices,
            *drawn,
            shares_per_batch=cuts,
            processes=self.processes,
        )

    def val_dataloader(self) -> WindowBatches:
        """The same household-nights every epoch; a process takes whole batches."""
        p = self.parameters
        drawn = (-(-p.batch_size // self.accumulation_steps), p.validation_size, None)
        return WindowBatches(
            self.windows, self.validation_indices, *drawn, processes=self.processes
        )

    @property
    def device_batch_size(self) -> int:
        """The household-nights that a device learns from at once."""
        batches = self.train_dataloader()
        return -(-batches.epoch_size // batches.n_shares)


def build_data_module(
    network: Network,
    fleet: Fleet,
    parameters: FitParameters,
    min_readings: int,
    accumulation_steps: int = 1,
    processes: TrainingProcesses = SINGLE_PROCESS,
) -> TrainingDataModule:
    """Split by household, and give the network the scales of what it will learn from.

    Raises:
        UserError: no household-night of either side has enough readings.
    """
    windows = FleetWindows(fleet, network.context_nights, min_readings)
    apart = is_held_out(fleet.household_ids)
    train = require_usable_household_nights(fleet, ~apart, "to learn from", min_readings)
    validation = require_usable_household_nights(fleet, apart, "held out", min_readings)
    network.fit_scales(windows.gather_windows(select_evenly(train, SCALE_SAMPLE_SIZE)))
    return TrainingDataModule(
        windows,
        train,
        validation,
        parameters,
        accumulation_steps=accumulation_steps,
        processes=processes,
    )
