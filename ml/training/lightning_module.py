"""The training loop of every network: batches by index, Lightning modules, a trainer."""

import logging
import math
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
    EMAWeightAveraging,
    ModelCheckpoint,
    Timer,
)
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.memory import is_oom_error
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ml.errors import UserError
from ml.models import DEFAULT_MODEL, ModelName, import_network_class
from ml.models.base import Network, TrainingRecipe, Windows
from ml.windows import FleetWindows

GRADIENT_CLIP_NORM: Final = 1.0
MONITORED_METRIC: Final = "val_loss"
MAX_SKIPPED_STEPS: Final = 3
"""Steps of an epoch that may be skipped because their gradients are not finite."""
PROCESS_GROUP_TIMEOUT: Final = timedelta(minutes=10)
"""How long the processes of a team wait for one another."""

log = logging.getLogger(__name__)

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


class FitParameters(TrainingRecipe):
    """How a network is trained: its own recipe, except for what is given."""

    model: ModelName = DEFAULT_MODEL
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, values: Any) -> Any:
        """Fill in the model's own recipe."""
        if isinstance(values, cls):
            return values
        return import_network_class(values.get("model", DEFAULT_MODEL)).recipe.model_dump() | values


@dataclass(frozen=True)
class TrainingProcesses:
    """The processes, a device each, that train together, and which of them this is."""

    rank: int = 0
    n_processes: int = 1
    n_machines: int = 1


SINGLE_PROCESS: Final = TrainingProcesses()


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


def select_evenly(indices: Tensor, max_count: int) -> Tensor:
    """At most `max_count` of the indices `[N]`, evenly spread."""
    index = torch.linspace(0, len(indices) - 1, min(max_count, len(indices)), dtype=torch.float64)
    return indices[index.round().long()]


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


class NetworkModule(L.LightningModule):
    """Lowers the loss of a network; what the loss draws is the same for a step however reached.

    A step whose gradients are not finite changes nothing. Whether there was one is asked once an
    epoch, so that a GPU never waits.
    """

    def __init__(
        self,
        network: Network,
        parameters: FitParameters,
        *,
        accumulation_steps: int = 1,
        processes: TrainingProcesses = SINGLE_PROCESS,
    ) -> None:
        super().__init__()
        self.network, self.fit_parameters = network, parameters
        self.accumulation_steps, self.processes = accumulation_steps, processes
        self.epoch_metrics: list[dict[str, float]] = []
        self.batch_losses: list[Tensor] = []
        self.batch_sizes: list[int] = []
        self.gradient_norms: list[Tensor] = []
        self.running_statistics: list[Tensor] = []
        self.statistics_before_step: list[Tensor] = []
        self.mean_train_loss = self.n_skipped_steps = 0.0

    def on_train_start(self) -> None:
        """Stay stopped where a training that is taken up again had run out of patience."""
        normalisers = [each for each in self.network.modules() if isinstance(each, nn.BatchNorm1d)]
        statistics = ((each.running_mean, each.running_var) for each in normalisers)
        self.running_statistics = [each for pair in statistics for each in pair if each is not None]
        stopping = self.trainer.early_stopping_callback
        if isinstance(stopping, EarlyStopping) and stopping.wait_count >= stopping.patience:
            self.trainer.should_stop = True

    def on_train_epoch_start(self) -> None:
        """Begin new books."""
        self.gradient_norms = []
        self._reset_losses()

    def training_step(self, batch: Windows, batch_idx: int) -> Tensor:
        """The network's loss, drawn from the seed and the step."""
        part = batch_idx % self.accumulation_steps
        if part == 0:
            self.statistics_before_step = [each.clone() for each in self.running_statistics]
        share = (
            self.global_step * self.accumulation_steps + part
        ) * self.processes.n_processes + self.processes.rank
        self._seed_generators((self.fit_parameters.seed << 32) + share)
        loss = self.network.loss(batch)
        self._record_loss(loss, batch)
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,  # noqa: ARG002 (Lightning's)
    ) -> None:
        """Clip by the norm; where it is not finite, let the optimizer skip the step."""
        assert gradient_clip_val is not None
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)
        self.gradient_norms.append(norm)
        # What a gradient scaler would tell a fused optimizer; one that is not fused has a scaler.
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        for now, before in zip(self.running_statistics, self.statistics_before_step, strict=True):
            now.copy_(torch.where(norm.isfinite(), now, before))

    def on_validation_epoch_start(self) -> None:
        """Close the books of the training before those of the validation are begun."""
        self.n_skipped_steps, self.mean_train_loss = (
            self._count_skipped_steps(),
            self._mean_loss(skip_non_finite=True),
        )
        self._reset_losses()

    def validation_step(self, batch: Windows, batch_idx: int) -> None:
        """The network's loss, drawn alike in every epoch."""
        number = batch_idx * self.processes.n_processes + self.processes.rank
        with torch.random.fork_rng():
            self._seed_generators(number)
            loss = self.network.loss(batch)
        if number < self._get_batches("val_dataloaders").n_shares:
            self._record_loss(loss, batch)

    def on_validation_epoch_end(self) -> None:
        """The mean of the validation.

        Raises:
            UserError: it is not finite.
        """
        loss = self._mean_loss(skip_non_finite=False)
        if not math.isfinite(loss):
            raise UserError(
                f"training stopped: the validation loss of epoch {self.current_epoch + 1} is not "
                f"finite; {self._describe_largest_reading(self._get_batches('val_dataloaders').draw_batches())}"
            )
        self.log(MONITORED_METRIC, loss, prog_bar=True, sync_dist=True)

    def on_train_epoch_end(self) -> None:
        """Close the epoch in the history, which travels in every checkpoint."""
        self.log("train_loss", self.mean_train_loss, prog_bar=True, sync_dist=True)
        self.log("skipped_steps", self.n_skipped_steps, sync_dist=True)
        figures = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.epoch_metrics.append({"epoch": self.current_epoch, "learning_rate": rate} | figures)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW under a cosine over all steps."""
        p, steps = self.fit_parameters, int(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=p.learning_rate,
            weight_decay=p.weight_decay,
            fused=choose_precision() != "16-mixed",  # whose scaled gradients it cannot have clipped
        )
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=steps, eta_min=p.learning_rate / 100
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history."""
        checkpoint["history"] = self.epoch_metrics

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up again."""
        self.epoch_metrics = list(checkpoint["history"])

    def restore_weights(self, checkpoint_path: str) -> int:
        """Give the network the weights of a checkpoint; its epoch."""
        checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
        self.load_state_dict(checkpoint["state_dict"])
        return int(checkpoint["epoch"])

    def _seed_generators(self, seed: int) -> None:
        """Seed what a loss draws from, without `torch.manual_seed`'s milliseconds."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _reset_losses(self) -> None:
        self.batch_losses, self.batch_sizes = [], []

    def _record_loss(self, loss: Tensor, batch: Windows) -> None:
        """Keep a loss here: Lightning's own books cost as much as a small step."""
        self.batch_losses.append(loss.detach())
        self.batch_sizes.append(len(batch.level))

    def _mean_loss(self, *, skip_non_finite: bool) -> float:
        """The mean loss of the rows of all processes; what is not finite may be left out."""
        none = torch.zeros(0, device=self.device)
        losses = (torch.stack(self.batch_losses) if self.batch_losses else none).double()
        rows = torch.tensor(self.batch_sizes, device=losses.device)
        counted = losses.isfinite() if skip_non_finite else torch.ones_like(losses).bool()
        total = torch.where(counted, losses * rows, 0.0).sum()
        total, count = self._sum_over_processes(
            torch.stack((total, (rows * counted).sum()))
        ).tolist()
        return total / count if count else math.nan

    def _count_skipped_steps(self) -> float:
        """How many steps of the epoch were skipped.

        Raises:
            UserError: they are more than `MAX_SKIPPED_STEPS`, or all.
        """
        wrong = ~torch.stack(self.batch_losses).isfinite().view(-1, self.accumulation_steps).all(
            dim=1
        )
        if self.trainer.precision != "16-mixed":  # whose scaler tries out how far it can go
            wrong |= ~torch.stack(self.gradient_norms).isfinite()
        steps = self._sum_over_processes(wrong.double()).nonzero()[:, 0].tolist()
        if steps:
            drawn = self._get_batches("train_dataloader").draw_batches()
            said = (
                f"{len(steps)} of {len(wrong)} steps of epoch {self.current_epoch + 1} had a loss "
                f"or gradients that are not finite, the first of them step {steps[0] + 1}; "
                f"{self._describe_largest_reading((drawn[steps[0]],))}"
            )
            if len(steps) > MAX_SKIPPED_STEPS or len(steps) == len(wrong):
                raise UserError(f"training stopped: {said}")
            log.warning("skipped: %s", said)
        return float(len(steps))

    def _describe_largest_reading(self, index_batches: tuple[Tensor, ...]) -> str:
        """Which of the household-nights of some batches has the largest reading in its windows."""
        windows = self._get_batches("train_dataloader").windows
        most = [
            windows.gather_windows(places).kwh.nan_to_num(nan=0.0).flatten(1).amax(1)
            for places in index_batches
        ]
        kwh, place = torch.cat(most).max(dim=0)
        at = windows.format_household_night(int(torch.cat(index_batches)[int(place)]))
        return f"the largest reading there is {kwh:.4g} kWh, at {at} or in the nights before it"

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        summed: Tensor = self.trainer.strategy.reduce(values, reduce_op="sum")
        return summed

    def _get_batches(self, dataloader_name: str) -> WindowBatches:
        batches = getattr(self.trainer, dataloader_name)
        assert isinstance(batches, WindowBatches)
        return batches


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
    averaging: list[Callback] = []
    if parameters.ema_decay is not None:
        averaging = [EMAWeightAveraging(decay=parameters.ema_decay)]
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
        callbacks=[*averaging, stopping, timer, checkpoints, *callbacks],
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
