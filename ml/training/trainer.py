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
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.memory import is_oom_error
from pydantic import BaseModel, ConfigDict, Field

from ml.training.data import TrainingDataModule
from ml.training.lightning_module import MONITORED_METRIC
from ml.training.parameters import SINGLE_PROCESS, FitParameters, TrainingProcesses

GRADIENT_CLIP_NORM: Final = 1.0
"""Largest norm of all gradients together. Chosen: the customary 1, as for transformers."""
N_BEST_CHECKPOINTS: Final = 3
"""Best epochs whose checkpoints stay beside the last one. Chosen: if the last one is damaged,
training goes on from one of these."""
PROCESS_GROUP_TIMEOUT: Final = timedelta(minutes=10)
"""How long data parallel processes wait for one another. Chosen: longer than the slowest of them
takes to load the fleet, short enough that a lost process is noticed the same night."""

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""Precisions that networks are trained in, in Lightning's names."""


class TrainingResources(BaseModel):
    """What a training ran on, recorded with the version."""

    model_config = ConfigDict(frozen=True)

    device: str = Field(description="name of the GPU, or CPU")
    n_devices: int
    precision: Precision
    device_batch_size: int = Field(description="household-nights a device learns from at once")
    accumulation_steps: int = Field(
        description="parts of a batch that a device learns from in turn, their gradients added up"
    )
    n_threads: int = Field(description="threads of torch in this process")
    readings_placement: Literal["host", "device", "streamed"]

    @classmethod
    def from_data_module(cls, data_module: TrainingDataModule) -> "TrainingResources":
        """Return the resources of a training that has begun."""
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
    """A trainer, and those of its callbacks that are asked after the fit."""

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
    logger: Logger | None = None,
) -> TrainerSetup:
    """Return a trainer that stops early and keeps checkpoints in `checkpoint_dir`.

    It runs on all GPUs that `processes` stand for, otherwise on the CPU. `logger` is given the
    metrics of each epoch. The clock (`Timer`), the hardware and the moments of writing checkpoints
    are Lightning's; how a checkpoint is written and read is the caller's `checkpoint_io`.
    """
    checkpoints = ModelCheckpoint(
        dirpath=checkpoint_dir,
        filename="{epoch}",
        monitor=MONITORED_METRIC,
        save_top_k=N_BEST_CHECKPOINTS,
        save_last=True,
        # After the epoch's metrics are in the module: they travel in the checkpoint.
        save_on_train_epoch_end=True,
        # A resumed training must replace the files of the stopped one, not write beside them.
        enable_version_counter=False,
    )
    timer = Timer()
    stopping = EarlyStopping(MONITORED_METRIC, patience=parameters.patience)
    # Lightning advertises itself and repeats its settings at level INFO, from here on.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    is_on_gpu = torch.cuda.is_available()
    if is_on_gpu:
        # Let what autocast leaves in float32 use TF32; otherwise torch warns that it does not.
        torch.set_float32_matmul_precision("high")
    plugins: list[Any] = []
    if checkpoint_io is not None:
        plugins.append(checkpoint_io)
    if processes.n_processes > 1:
        plugins.append(TorchElasticEnvironment())
    trainer = L.Trainer(
        accelerator="gpu" if is_on_gpu else "cpu",
        devices=processes.n_processes // processes.n_machines,
        num_nodes=processes.n_machines,
        strategy="auto"
        if processes.n_processes == 1
        else DDPStrategy(timeout=PROCESS_GROUP_TIMEOUT),
        plugins=plugins,
        # Batches share themselves out among processes: see `WindowBatches`.
        use_distributed_sampler=False,
        max_epochs=parameters.max_epochs,
        precision=choose_precision(),
        accumulate_grad_batches=accumulation_steps,
        gradient_clip_val=GRADIENT_CLIP_NORM,
        # Some sums on a GPU have no deterministic implementation; True would raise there.
        deterministic="warn" if is_on_gpu else True,
        callbacks=[stopping, timer, checkpoints, *callbacks],
        logger=logger or False,
        # Metrics are logged by epoch only; with a logger any other number costs time at each step
        # and a warning where an epoch has fewer steps.
        log_every_n_steps=0,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return TrainerSetup(trainer, checkpoints, timer)


def choose_precision() -> Precision:
    """Return the precision to train in on this machine.

    Mixed precision on a GPU, in bfloat16 where it has that natively; full precision on a CPU, which
    is fastest so.
    """
    if not torch.cuda.is_available():
        return "32-true"
    is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if is_native else "16-mixed"


def leave_process_group() -> None:
    """Leave the group of data parallel processes, if this process is in one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means too little memory, of a GPU or of the machine."""
    # Python's words where there is no room for the stack of another thread.
    has_no_stack = str(error) == "can't start new thread"
    return isinstance(error, MemoryError) or is_oom_error(error) or has_no_stack


@contextmanager
def suppress_expected_warnings() -> Iterator[None]:
    """Ignore warnings of Lightning about itself and about what is meant to be so here."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated"
        )
        # A resumed training writes where the stopped one wrote.
        warnings.filterwarnings("ignore", message=r"Checkpoint directory .* is not empty")
        warnings.filterwarnings(
            "ignore", message=r".* does not have a deterministic implementation"
        )
        yield
