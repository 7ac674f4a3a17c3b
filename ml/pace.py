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

from ml.loop import CLIP_NORM, Precision
from ml.models.network import Network
from ml.windows import FleetWindows

BATCH_SIZES: Final = (16, 64, 256, 1024, 4096)
SECONDS: Final = 0.3
"""How long the steps of one precision and batch size are timed."""
LONGEST_STEP: Final = 0.1
"""Seconds of a step after which no larger batch is tried."""
MB: Final = 1e6
COLUMNS: Final = {
    "precision": pl.String,
    "batch_size": pl.Int64,
    "nights_per_second": pl.Float64,
    "kept_mb": pl.Float64,
    "peak_mb": pl.Float64,
}
Row = tuple[Precision, int, float, float, float | None]


@dataclass(frozen=True)
class Step:
    """A training step over one batch."""

    fabric: Fabric
    network: Network
    optimizer: torch.optim.Optimizer
    windows: FleetWindows
    places: Tensor

    def loss(self) -> Tensor:
        """Of the batch, gathered anew and moved to the device."""
        batch = self.fabric.to_device(self.windows.gather_windows(self.places))
        with self.fabric.autocast():
            return self.network.loss(batch)

    def run(self) -> None:
        """Forward, backward, clip, update."""
        self.fabric.backward(self.loss())
        self.fabric.clip_gradients(self.network, self.optimizer, max_norm=CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()


def device() -> torch.device:
    """The device that training takes."""
    return Fabric(accelerator="auto", devices=1).device


def paces(network: Network, windows: FleetWindows, places: Tensor) -> pl.DataFrame:
    """A row a precision and batch size, up to the batch whose step takes long.

    `precision`, `batch_size`, `nights_per_second`, `kept_mb` (tensors that wait for the backward
    pass) and `peak_mb` (all that a step allocates at most; null but on a GPU). Batches repeat the
    household-nights `[N]` where there are fewer.
    """
    with torch.random.fork_rng():
        rows = [
            row
            for precision in precisions()
            for row in _growing(network, precision, windows, places)
        ]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def precisions() -> tuple[Precision, ...]:
    """Full precision and the mixed ones that the device has; on a CPU bfloat16 alone."""
    if device().type != "cuda":
        return ("32-true", "bf16-mixed")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return ("32-true", "bf16-mixed", "16-mixed")
    return ("32-true", "16-mixed")


def _growing(
    network: Network, precision: Precision, windows: FleetWindows, places: Tensor
) -> Iterator[Row]:
    """One batch size after the other, while a step is short and the device can do it."""
    for batch_size in BATCH_SIZES:
        batch = places[torch.arange(batch_size) % len(places)]
        step = _step(network, precision, windows, batch)
        try:
            kept, peak, seconds = _kept_mb(step), _peak_mb(step.run), _seconds(step.run)
        except RuntimeError:
            # Out of memory, or a layer that this device lacks in this precision (an LSTM in
            # bfloat16 on many CPUs).
            return
        yield precision, batch_size, batch_size / seconds, kept, peak
        if seconds > LONGEST_STEP:
            return


def _step(network: Network, precision: Precision, windows: FleetWindows, places: Tensor) -> Step:
    fabric = Fabric(accelerator="auto", devices=1, precision=precision)
    twin = copy.deepcopy(network).train()
    _, optimizer = fabric.setup(twin, torch.optim.AdamW(twin.parameters()))
    return Step(fabric, twin, optimizer, windows, places)


def _seconds(run: Callable[[], None]) -> float:
    """Median over repetitions, the device's queue emptied."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=SECONDS).median)


def _kept_mb(step: Step) -> float:
    """What the forward pass keeps for the backward one, weights apart."""
    weights = {weight.untyped_storage().data_ptr() for weight in step.network.parameters()}
    kept = dict[int, int]()

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        step.loss()
    return sum(size for place, size in kept.items() if place not in weights) / MB


def _peak_mb(run: Callable[[], None]) -> float | None:
    """Most memory that a step takes beyond what lies on the GPU before it."""
    if device().type != "cuda":
        return None
    run()  # from the first step on the optimizer's own state lies there
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / MB
