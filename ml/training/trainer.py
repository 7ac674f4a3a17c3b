"""The Lightning trainer with its callbacks, and what it ran on."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

import lightning as L  # noqa: N812
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    Timer,
)
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.memory import is_oom_error
from pydantic import BaseModel, ConfigDict

from ml.training.data import TrainingDataModule
from ml.training.lightning_module import MONITORED_METRIC
from ml.training.parameters import SINGLE_PROCESS, FitParameters, TrainingProcesses

GRADIENT_CLIP_NORM: Final = 1.0
PROCESS_GROUP_TIMEOUT: Final = timedelta(minutes=10)
"""How long the processes of a team wait for one another."""
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


class TrainingResources(BaseModel):
    """What a training ran on, as it was found or pinned."""

    model_config = ConfigDict(frozen=True)

    device: str
    n_devices: int
    precision: Precision
    device_batch_size: int
    """Household-nights that a device learns from at once."""
    accumulation_steps: int
    """Of which a batch is made on each device, gradients added up."""
    n_threads: int
    readings_placement: Literal["host", "device", "streamed"]

    @classmethod
    def from_data_module(cls, data_module: TrainingDataModule) -> "TrainingResources":
        """Those of a training that has begun."""
        return cls(
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            n_devices=data_module.processes.n_processes,
            precision=choose_precision(),
            device_batch_size=data_module.device_batch_size,
            accumulation_steps=data_module.accumulation_steps,
            n_threads=torch.get_num_threads(),
            readings_placement=data_module.windows.placement,
        )


@dataclass(frozen=True)
class TrainerSetup:
    """A trainer with the callbacks that are asked afterwards."""

    trainer: L.Trainer
    checkpoint_callback: ModelCheckpoint
    timer: Timer


def build_trainer(
    parameters: FitParameters,
    checkpoint_dir: str,
    callbacks: Sequence[Callback] = (),
    *,
    accumulation_steps: int = 1,
    processes: TrainingProcesses = SINGLE_PROCESS,
    checkpoint_io: CheckpointIO | None = None,
) -> TrainerSetup:
    """A trainer that keeps the three best epochs and the last one in `checkpoint_dir`."""
    checkpoints = ModelCheckpoint(
        dirpath=checkpoint_dir,
        filename="{epoch}",
        monitor=MONITORED_METRIC,
        save_top_k=3,
        save_last=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    timer, stopping = Timer(), EarlyStopping(MONITORED_METRIC, patience=parameters.patience)
    # Lightning advertises and repeats itself at level INFO, from the trainer's constructor on.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.set_float32_matmul_precision("high")
    plugins: list[Any] = [] if checkpoint_io is None else [checkpoint_io]
    if processes.n_processes > 1:
        plugins.append(TorchElasticEnvironment())
    trainer = L.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=processes.n_processes // processes.n_machines,
        num_nodes=processes.n_machines,
        strategy="auto"
        if processes.n_processes == 1
        else DDPStrategy(timeout=PROCESS_GROUP_TIMEOUT),
        plugins=plugins,
        use_distributed_sampler=False,
        max_epochs=parameters.max_epochs,
        precision=choose_precision(),
        accumulate_grad_batches=accumulation_steps,
        gradient_clip_val=GRADIENT_CLIP_NORM,
        # Of a GPU's sums, some have no order that could be kept.
        deterministic="warn" if on_gpu else True,
        callbacks=[stopping, timer, checkpoints, *callbacks],
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return TrainerSetup(trainer, checkpoints, timer)


def choose_precision() -> Precision:
    """Mixed precision in the best type that a GPU has; a CPU is fastest in full precision."""
    if not torch.cuda.is_available():
        return "32-true"
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if native else "16-mixed"


def leave_process_group() -> None:
    """Leave the team, where there was one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_out_of_memory(error: Exception) -> bool:
    """Whether a step failed for want of memory, a GPU's or the machine's."""
    no_stack = str(error) == "can't start new thread"
    return isinstance(error, MemoryError) or is_oom_error(error) or no_stack


@contextmanager
def suppress_expected_warnings() -> Iterator[None]:
    """Silence what Lightning says of itself and what is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated"
        )
        # A training that is taken up again writes where the stopped one wrote.
        warnings.filterwarnings("ignore", message=r"Checkpoint directory .* is not empty")
        warnings.filterwarnings(
            "ignore", message=r".* does not have a deterministic implementation"
        )
        yield
