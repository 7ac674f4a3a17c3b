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
"""Household-nights from which a network takes the scales of its inputs. Chosen: the standard error
of a mean is then below 1 % of the standard deviation, and with context they take 150 MB."""


class WindowBatches:
    """Batches of windows, gathered by index from a fleet; iterating once is an epoch.

    With a seed an epoch is a fresh draw of `epoch_size` household-nights without repetition, which
    depends on seed and epoch alone: a resumed training sees the batches that the stopped one would
    have seen. Without a seed it is the same evenly spread household-nights every time.

    A batch is cut into `shares_per_batch` shares, one for each process and gradient accumulation
    step. Processes take shares in turn; where they do not come out even, a process repeats the last
    share, since all must take the same number of steps.

    Not a `torch.utils.data.DataLoader` with a batch sampler and `batch_size=None`: measured on one
    CPU thread it needs 230 us for a batch of 64 windows without context where this needs 146 us,
    and 589 us against 491 us for 1,024; a whole step of such a network takes 2 ms.
    """

    batch_sampler: Final = None
    """Lightning asks every iterable for this before it looks for `sampler`."""

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
        """Draw from the household-nights `indices` `[N]`; see the class."""
        self.windows = windows
        self.indices = indices
        self.seed = seed
        self.epoch_size = min(epoch_size, len(indices))
        self.n_batches = -(-self.epoch_size // batch_size)
        self.shares_per_batch = shares_per_batch
        self.processes = processes
        self.epoch = 0

    @property
    def sampler(self) -> "WindowBatches":
        """Return itself: Lightning calls `dataloader.sampler.set_epoch` before each epoch."""
        return self

    @property
    def n_shares(self) -> int:
        """Return the number of shares of an epoch, those of all processes together."""
        return self.n_batches * self.shares_per_batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is drawn by the next iteration."""
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
        """Return the household-nights `[n]` of each batch of the epoch, of all processes."""
        # `tensor_split` makes them of nearly equal size. Cut at every `batch_size`, a last batch
        # of one could be left over, of which batch normalisation has no variance.
        return torch.tensor_split(self._draw_indices(), self.n_batches)

    def _draw_indices(self) -> Tensor:
        if self.seed is None:
            return select_evenly(self.indices, self.epoch_size)
        # 8 bits for the epoch: recipes have at most 100 of them.
        generator = torch.Generator().manual_seed((self.seed << 8) + self.epoch)
        order = torch.randperm(len(self.indices), generator=generator)
        return self.indices[order[: self.epoch_size]]


class TrainingDataModule(L.LightningDataModule):
    """The household-nights to learn from and those to validate on, as indices into windows.

    On each device a batch is learned from in `accumulation_steps` parts, one after another, whose
    gradients are added up.
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
        self.windows = windows
        self.train_indices = train_indices
        self.validation_indices = validation_indices
        self.parameters = parameters
        self.accumulation_steps = accumulation_steps
        self.processes = processes

    def setup(self, stage: str) -> None:  # noqa: ARG002 (Lightning's)
        """Move the windows to the device that Lightning chose."""
        assert self.trainer is not None
        self.windows.move_to_device(self.trainer.strategy.root_device)

    def train_dataloader(self) -> WindowBatches:
        """Return batches that are drawn anew every epoch."""
        return WindowBatches(
            self.windows,
            self.train_indices,
            self.parameters.batch_size,
            self.parameters.epoch_size,
            self.parameters.seed,
            shares_per_batch=self.accumulation_steps * self.processes.n_processes,
            processes=self.processes,
        )

    def val_dataloader(self) -> WindowBatches:
        """Return the same batches every epoch, of which a process takes every n-th whole."""
        return WindowBatches(
            self.windows,
            self.validation_indices,
            -(-self.parameters.batch_size // self.accumulation_steps),
            self.parameters.validation_size,
            None,
            processes=self.processes,
        )

    @property
    def device_batch_size(self) -> int:
        """Return the number of household-nights that a device learns from at once."""
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
    """Return the data module of a fleet, split by household, and set the network's input scales.

    Held-out households are validated on; all others are learned from. The scales come from those
    that are learned from, like the weights.

    Raises:
        UserError: no household-night of either side has enough readings.
    """
    windows = FleetWindows(fleet, network.context_nights, min_readings)
    held_out = is_held_out(fleet.household_ids)
    train = require_usable_household_nights(fleet, ~held_out, "to learn from", min_readings)
    validation = require_usable_household_nights(fleet, held_out, "held out", min_readings)
    network.fit_scales(windows.gather_windows(select_evenly(train, SCALE_SAMPLE_SIZE)))
    return TrainingDataModule(
        windows,
        train,
        validation,
        parameters,
        accumulation_steps=accumulation_steps,
        processes=processes,
    )
