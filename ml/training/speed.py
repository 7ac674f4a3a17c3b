"""How fast a network trains on the device at hand, and in how much memory, by precision and batch.

Real steps of a copy; neither the network nor a random generator is touched.
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
MIN_TIMING_S: Final = 0.3
"""How long the steps of one precision and batch size are timed."""
MAX_STEP_S: Final = 0.1
"""Seconds of a step after which no larger batch is tried."""
BYTES_PER_MB: Final = 1e6
SPEED_COLUMNS: Final = {
    "precision": pl.String,
    "batch_size": pl.Int64,
    "nights_per_second": pl.Float64,
    "saved_tensors_mb": pl.Float64,
    "peak_mb": pl.Float64,
}
SpeedRow = tuple[Precision, int, float, float, float | None]


@dataclass(frozen=True)
class TrainingStep:
    """A training step over one batch."""

    fabric: Fabric
    network: Network
    optimizer: torch.optim.Optimizer
    windows: FleetWindows
    indices: Tensor

    def loss(self) -> Tensor:
        """Of the batch, gathered anew and moved to the device."""
        batch = self.fabric.to_device(self.windows.gather_windows(self.indices))
        with self.fabric.autocast():
            return self.network.loss(batch)

    def run(self) -> None:
        """Forward, backward, clip, update."""
        self.fabric.backward(self.loss())
        self.fabric.clip_gradients(self.network, self.optimizer, max_norm=GRADIENT_CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()


def find_training_device() -> torch.device:
    """The device that training takes."""
    return Fabric(accelerator="auto", devices=1).device


def measure_training_speed(
    network: Network, windows: FleetWindows, indices: Tensor
) -> pl.DataFrame:
    """A row a precision and batch size, up to the batch whose step takes long.

    `precision`, `batch_size`, `nights_per_second`, `saved_tensors_mb` (tensors that wait for the backward
    pass) and `peak_mb` (all that a step allocates at most; null but on a GPU). Batches repeat the
    household-nights `[N]` where there are fewer.
    """
    with torch.random.fork_rng():
        rows = [
            row
            for precision in list_supported_precisions()
            for row in _measure_batch_sizes(network, precision, windows, indices)
        ]
    return pl.DataFrame(rows, schema=SPEED_COLUMNS, orient="row")


def list_supported_precisions() -> tuple[Precision, ...]:
    """Full precision and the mixed ones that the device has; on a CPU bfloat16 alone."""
    if find_training_device().type != "cuda":
        return ("32-true", "bf16-mixed")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return ("32-true", "bf16-mixed", "16-mixed")
    return ("32-true", "16-mixed")


def _measure_batch_sizes(
    network: Network, precision: Precision, windows: FleetWindows, indices: Tensor
) -> Iterator[SpeedRow]:
    """One batch size after the other, while a step is short and the device can do it."""
    for batch_size in BATCH_SIZES:
        batch = indices[torch.arange(batch_size) % len(indices)]
        step = _build_training_step(network, precision, windows, batch)
        try:
            kept, peak, seconds = (
                _measure_saved_tensors_mb(step),
                _measure_peak_mb(step.run),
                _time_step_s(step.run),
            )
        except RuntimeError:
            # Out of memory, or a layer that this device lacks in this precision (an LSTM in
            # bfloat16 on many CPUs).
            return
        yield precision, batch_size, batch_size / seconds, kept, peak
        if seconds > MAX_STEP_S:
            return


def _build_training_step(
    network: Network, precision: Precision, windows: FleetWindows, indices: Tensor
) -> TrainingStep:
    fabric = Fabric(accelerator="auto", devices=1, precision=precision)
    twin = copy.deepcopy(network).train()
    # As the training loop does.
    twin.single_precision_features = precision == "32-true" and fabric.device.type == "cpu"
    _, optimizer = fabric.setup(twin, torch.optim.AdamW(twin.parameters()))
    return TrainingStep(fabric, twin, optimizer, windows, indices)


def _time_step_s(run: Callable[[], None]) -> float:
    """Median over repetitions, the device's queue emptied."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=MIN_TIMING_S).median)


def _measure_saved_tensors_mb(step: TrainingStep) -> float:
    """What the forward pass keeps for the backward one, weights apart."""
    weights = {weight.untyped_storage().data_ptr() for weight in step.network.parameters()}
    kept = dict[int, int]()

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        step.loss()
    return sum(size for place, size in kept.items() if place not in weights) / BYTES_PER_MB


def _measure_peak_mb(run: Callable[[], None]) -> float | None:
    """Most memory that a step takes beyond what lies on the GPU before it."""
    if find_training_device().type != "cuda":
        return None
    run()  # from the first step on the optimizer's own state lies there
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / BYTES_PER_MB
