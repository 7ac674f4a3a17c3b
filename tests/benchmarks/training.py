"""Measures how fast training is on this machine's device, beside the loop the product grew from.

    .venv/bin/python -m tests.benchmarks.training [--households N] [--nights D] [--out FILE]

Trains on a simulated fleet: on a GPU the size of the real trial, 3.5 million household-nights, on a
CPU a small one, and with `torch.compile` once. Writes tables in Markdown.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import polars as pl
import torch
from cyclopts import App
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from ml.markdown import render_frame
from ml.models import DEFAULT_MODEL
from ml.models.base import Network, Windows, compute_log_readings
from ml.scoring.detector import Detector, DetectorConfig
from ml.training.data import TrainingDataModule, build_data_module
from ml.training.lightning_module import NetworkModule
from ml.training.parameters import FitParameters
from ml.training.trainer import build_trainer, suppress_expected_warnings
from tests import fleets
from tests.benchmarks.__main__ import TRIAL_CONFIG, TRIAL_HOUSEHOLDS

SEED_MODEL: Final = "conditional_autoencoder"
"""The model the project started from."""
MIN_READINGS: Final = 36
SEED_BATCH_SIZE: Final = 1024
"""Household-nights of a batch in the loop the project started from."""
SEED_EPOCHS: Final = 4
MIN_STEPS_PER_EPOCH: Final = 90
"""Steps of an epoch of the seed's network; with fewer its loss stays above that of its own loop."""
TRIAL_NIGHTS: Final = 3_500_000
"""Household-nights of the London trial: 5,567 households over 626 nights."""
N_TIMED_STEPS: Final = 3
"""Steps of which the fastest counts."""
DEVICE: Final = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

app = App(help="How fast training is on this machine's device.")
ResultRow = dict[str, Any]


@app.default
def main(
    households: int | None = None,
    nights: int | None = None,
    batches: tuple[int, ...] = (64, 1024) if DEVICE.type == "cuda" else (64,),
    out: Path = Path("data/speed/training.md"),
) -> None:
    """Time both loops and single steps; a window of the champion's model holds four nights."""
    on_gpu = DEVICE.type == "cuda"
    n_households = households or (TRIAL_HOUSEHOLDS if on_gpu else 60)
    n_nights = nights or (TRIAL_CONFIG["days"] if on_gpu else 90)
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(n_households, n_nights))
    loops = pl.DataFrame(
        [
            _print_row(_time_seed_loop(fleet)),
            *(_print_row(_time_our_loop(fleet, model)) for model in (SEED_MODEL, DEFAULT_MODEL)),
        ]
    )
    copy_gb_s = _measure_copy_gb_s()
    product_tflop_s = {name: _measure_product_tflop_s(dtype) for name, dtype in DTYPES.items()}
    steps = pl.DataFrame(
        [
            _print_row(
                _time_step(
                    fleet,
                    name,
                    batch,
                    is_compiled=compiled,
                    copy_gb_s=copy_gb_s,
                    product_tflop_s=product_tflop_s[name],
                )
            )
            for name in DTYPES
            for batch in batches
            for compiled in (False, True)
            if on_gpu or not compiled or (name, batch) == ("fp32", batches[-1])
        ]
    )
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    rates = ", ".join(f"{rate:.2f} TFLOP/s in {name}" for name, rate in product_tflop_s.items())
    report = (
        f"{device}: copies {copy_gb_s:.0f} GB/s; square matrices {rates}.\n\n"
        f"{n_households:,} households, {n_nights} nights.\n\n"
        f"{render_frame(loops)}\n\n{render_frame(steps)}\n"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(report)
    print(f"{report}\nwritten to {out}")


def _print_row(row: ResultRow) -> ResultRow:
    print(*(f"{name} {value}" for name, value in row.items()), sep=", ", flush=True)
    return row


def _build_training_data(
    fleet: fleets.Fleet, parameters: FitParameters
) -> tuple[Network, TrainingDataModule]:
    torch.manual_seed(0)
    network = Detector(DetectorConfig(model=parameters.model)).network
    return network, build_data_module(network, fleet, parameters, MIN_READINGS)


def _time_our_loop(fleet: fleets.Fleet, model: str) -> ResultRow:
    """Time epochs over all nights of the seed's network, or one of the champion's recipe."""
    parameters = (
        _seed_parameters(fleet) if model == SEED_MODEL else FitParameters(model=model, max_epochs=1)
    )
    network, data = _build_training_data(fleet, parameters)
    module = NetworkModule(network, parameters)
    with tempfile.TemporaryDirectory() as directory, suppress_expected_warnings():
        loop = build_trainer(parameters, directory)
        seconds = _time_call(lambda: loop.trainer.fit(module, datamodule=data))
    rows = data.train_dataloader().epoch_size * parameters.max_epochs
    return _build_loop_row(f"ours, {model}", rows, seconds, module.epoch_metrics[-1]["val_loss"])


def _seed_parameters(fleet: fleets.Fleet) -> FitParameters:
    """Return all nights an epoch, in batches as large as `MIN_STEPS_PER_EPOCH` allows.

    A step of so small a network costs a GPU the same whatever its batch.
    """
    nights = int((fleet.n_readings >= MIN_READINGS).sum())
    return FitParameters(
        model=SEED_MODEL,
        max_epochs=SEED_EPOCHS,
        epoch_size=nights,
        batch_size=max(1024, min(1 << 15, nights // MIN_STEPS_PER_EPOCH)),
        learning_rate=3e-2,
    )


def _time_seed_loop(fleet: fleets.Fleet) -> ResultRow:
    """Time a data loader over a data set, 1,024 at a time, the loss read at each step."""
    network, data = _build_training_data(fleet, FitParameters(model=SEED_MODEL))

    def standardize(places: Tensor) -> tuple[Tensor, Tensor]:
        windows = data.windows.gather_windows(places)
        x = network.reading_standardizer(compute_log_readings(windows))[:, -1]
        return x.nan_to_num(), network.condition_standardizer(windows.conditions).nan_to_num()

    x, conditions = standardize(data.train_indices)
    validation = [part.to(DEVICE) for part in standardize(data.validation_indices)]
    network.to(DEVICE)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    def reconstruction_error(x: Tensor, conditions: Tensor) -> Tensor:
        predicted = network.decode(network.encode(x, conditions), conditions)
        return ((predicted - x) ** 2).mean()

    def train() -> None:
        loader = DataLoader(TensorDataset(x, conditions), batch_size=SEED_BATCH_SIZE, shuffle=True)
        for _ in range(SEED_EPOCHS):
            for batch in loader:
                loss = reconstruction_error(*(part.to(DEVICE) for part in batch))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()

    seconds = _time_call(train)
    with torch.no_grad():
        return _build_loop_row(
            f"seed's loop, {SEED_MODEL}",
            SEED_EPOCHS * len(x),
            seconds,
            reconstruction_error(*validation).item(),
        )


def _build_loop_row(
    loop_name: str, n_household_nights: int, seconds: float, validation_loss: float
) -> ResultRow:
    return {
        "loop": loop_name,
        "household-nights": n_household_nights,
        "seconds": seconds,
        "a second": n_household_nights / seconds,
        "validation loss": validation_loss,
        "3.5 million, s": TRIAL_NIGHTS * seconds / n_household_nights,
    }


def _time_step(
    fleet: fleets.Fleet,
    precision: str,
    batch_size: int,
    *,
    is_compiled: bool,
    copy_gb_s: float,
    product_tflop_s: float,
) -> ResultRow:
    """Time the champion's step alone: gather, corrupt, forward, backward, optimizer."""
    parameters = FitParameters(model=DEFAULT_MODEL, batch_size=batch_size)
    network, data = _build_training_data(fleet, parameters)
    data.windows.move_to_device(DEVICE)
    network.to(DEVICE)
    optimizer = torch.optim.AdamW(network.parameters(), fused=precision != "fp16")
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=precision == "fp16")
    if is_compiled:
        # Corruptions and features before the heads are other operations at each step.
        network._apply_heads = torch.compile(network._apply_heads)
    mixed = torch.autocast(DEVICE.type, DTYPES[precision]) if precision != "fp32" else nullcontext()
    batches = _iter_random_batches(data, batch_size)

    def train_step() -> None:
        with mixed:
            loss = network.loss(next(batches))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    row = {"precision": precision, "batch": batch_size, "compiled": is_compiled}
    try:
        first = _time_call(train_step)
        seconds = min(_time_call(train_step) for _ in range(N_TIMED_STEPS))
    except Exception as error:  # a backend that cannot compile is a result
        return row | {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:60]}
    if is_compiled:
        return row | {"first step, s": first, "step, s": seconds, "windows/s": batch_size / seconds}
    with FlopCounterMode(display=False) as flops, _MemoryTraffic() as traffic:
        train_step()
    return row | {
        "first step, s": first,
        "step, s": seconds,
        "windows/s": batch_size / seconds,
        "of copying": traffic.moved_gb / seconds / copy_gb_s,
        "of products": flops.get_total_flops() / 1e12 / seconds / product_tflop_s,
        "failed": None,
    }


def _iter_random_batches(data: TrainingDataModule, batch_size: int) -> Iterator[Windows]:
    generator = torch.Generator().manual_seed(0)
    while True:
        drawn = torch.randint(len(data.train_indices), (batch_size,), generator=generator)
        yield data.windows.gather_windows(data.train_indices[drawn])


class _MemoryTraffic(TorchDispatchMode):
    """Counts what all operations read and write, as if nothing were cached between them."""

    moved_gb = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = tree_leaves((args, kwargs, out))
            moved = sum(each.nbytes for each in leaves if isinstance(each, Tensor))
            self.moved_gb += moved / 1e9
        return out


def _measure_copy_gb_s(size_gb: float = 0.25) -> float:
    source = torch.ones(int(size_gb * 1e9 / 4), device=DEVICE)
    target = torch.empty_like(source)
    return max(2 * source.nbytes / 1e9 / _time_call(lambda: target.copy_(source)) for _ in range(4))


def _measure_product_tflop_s(dtype: torch.dtype) -> float:
    size = 8192 if DEVICE.type == "cuda" else 512
    matrix = torch.ones(size, size, dtype=dtype, device=DEVICE)
    return max(2 * size**3 / 1e12 / _time_call(lambda: matrix @ matrix) for _ in range(4))


def _time_call(function: Callable[[], object]) -> float:
    _synchronize_device()
    started = time.perf_counter()
    function()
    _synchronize_device()
    return time.perf_counter() - started


def _synchronize_device() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    app()
