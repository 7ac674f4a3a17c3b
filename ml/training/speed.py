"""Measures how fast a network trains on the device at hand, and in how much memory.

By precision and batch size, on real steps of a copy: neither the network nor a random generator
changes. The clock is torch's benchmark timer, the device Lightning Fabric's choice.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import polars as pl
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.benchmark import Timer

from ml.models.base import Network
from ml.training.trainer import GRADIENT_CLIP_NORM, Precision
from ml.windows import FleetWindows

BATCH_SIZES: Final = (16, 64, 256, 1024, 4096)
"""Household-nights of a step that are tried, up to the largest batch of any recipe."""
MIN_TIMING_S: Final = 0.3
"""Seconds that the steps of one precision and batch size are timed. Chosen: all of them together
then take some seconds."""
MAX_STEP_S: Final = 0.1
"""Seconds of a step above which no larger batch is tried. Chosen, for the same reason: each batch
size is four times the one before."""
BYTES_PER_MB: Final = 1e6
SPEED_COLUMNS: Final = {
    "precision": pl.String,
    "batch_size": pl.Int64,
    "nights_per_second": pl.Float64,
    "saved_tensors_mb": pl.Float64,
    "peak_mb": pl.Float64,
}
"""Columns of `measure_training_speed`."""
SpeedRow = tuple[Precision, int, float, float, float | None]
"""A row of it."""


@dataclass(frozen=True)
class TrainingStep:
    """A training step over one batch, the household-nights `indices` `[N]` of the windows."""

    fabric: Fabric
    network: Network
    optimizer: torch.optim.Optimizer
    windows: FleetWindows
    indices: Tensor

    def loss(self) -> Tensor:
        """Gather the batch anew, move it to the device and return the network's loss of it."""
        batch = self.fabric.to_device(self.windows.gather_windows(self.indices))
        with self.fabric.autocast():
            return self.network.loss(batch)

    def run(self) -> None:
        """Do a step as training does it: forward, backward, clip, update."""
        self.fabric.backward(self.loss())
        self.fabric.clip_gradients(self.network, self.optimizer, max_norm=GRADIENT_CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()


def find_training_device() -> torch.device:
    """Return the device that training takes: a GPU where there is one."""
    return Fabric(accelerator="auto", devices=1).device


def measure_training_speed(
    network: Network, windows: FleetWindows, indices: Tensor
) -> pl.DataFrame:
    """Measure training steps, a row for each precision and batch size that the device can do.

    Columns: `precision`, `batch_size`, `nights_per_second`, `saved_tensors_mb` (tensors that the
    forward pass keeps for the backward one) and `peak_mb` (all that a step allocates at most; null
    unless on a GPU). Batches repeat the household-nights `indices` `[N]` where there are fewer.
    """
    with torch.random.fork_rng():
        rows = [
            row
            for precision in list_supported_precisions()
            for row in _measure_batch_sizes(network, precision, windows, indices)
        ]
    return pl.DataFrame(rows, schema=SPEED_COLUMNS, orient="row")


def list_supported_precisions() -> tuple[Precision, ...]:
    """Return full precision and the mixed ones that the device has; on a CPU bfloat16 alone."""
    if find_training_device().type != "cuda":
        return ("32-true", "bf16-mixed")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return ("32-true", "bf16-mixed", "16-mixed")
    return ("32-true", "16-mixed")


def _measure_batch_sizes(
    network: Network, precision: Precision, windows: FleetWindows, indices: Tensor
) -> Iterator[SpeedRow]:
    """Yield a row for each batch size, while a step is short and the device can do it."""
    for batch_size in BATCH_SIZES:
        batch = indices[torch.arange(batch_size) % len(indices)]
        step = _build_training_step(network, precision, windows, batch)
        try:
            saved_mb = _measure_saved_tensors_mb(step)
            peak_mb = _measure_peak_mb(step.run)
            step_s = _time_step_s(step.run)
        except RuntimeError:
            # Out of memory, or a layer that this device lacks in this precision (an LSTM in
            # bfloat16 on many CPUs).
            return
        yield precision, batch_size, batch_size / step_s, saved_mb, peak_mb
        if step_s > MAX_STEP_S:
            return


def _build_training_step(
    network: Network, precision: Precision, windows: FleetWindows, indices: Tensor
) -> TrainingStep:
    fabric = Fabric(accelerator="auto", devices=1, precision=precision)
    network_copy = copy.deepcopy(network).train()
    # As `NetworkModule` does.
    network_copy.single_precision_features = precision == "32-true" and fabric.device.type == "cpu"
    _, optimizer = fabric.setup(network_copy, torch.optim.AdamW(network_copy.parameters()))
    return TrainingStep(fabric, network_copy, optimizer, windows, indices)


def _time_step_s(run: Callable[[], None]) -> float:
    """Return the median seconds of a step, until its work on the device has ended."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=MIN_TIMING_S).median)


def _measure_saved_tensors_mb(step: TrainingStep) -> float:
    """Return the MB of tensors, weights left out, that forward keeps for the backward pass."""
    weights = {weight.untyped_storage().data_ptr() for weight in step.network.parameters()}
    saved_bytes = dict[int, int]()

    def count(tensor: Tensor) -> Tensor:
        # By storage: views of one tensor are saved several times and take its memory once.
        storage = tensor.untyped_storage()
        saved_bytes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        step.loss()
    return sum(n for address, n in saved_bytes.items() if address not in weights) / BYTES_PER_MB


def _measure_peak_mb(run: Callable[[], None]) -> float | None:
    """Return the most MB that a step takes beyond what was allocated before; None on a CPU."""
    if find_training_device().type != "cuda":
        return None
    # The first step allocates the optimizer's own state, which stays.
    run()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / BYTES_PER_MB
