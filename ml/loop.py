"""The training loop: batches by index, a Lightning module and data module, a trainer."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import lightning as L  # noqa: N812
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError

from ml.detector import ModelName

CLIP_NORM: Final = 1.0
MONITOR: Final = "val_mse"

Batch = tuple[Tensor, Tensor]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


class FitParameters(BaseModel):
    """How a network is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelName = "conditional_autoencoder"
    seed: int = Field(0, ge=0, lt=2**31)
    max_epochs: int = Field(20, ge=1, le=100)
    patience: int = Field(5, ge=1, description="epochs without a better validation before the end")
    batch_size: int = Field(1024, ge=1)
    epoch_size: int = Field(1 << 17, ge=1, description="most household-nights drawn an epoch")
    validation_size: int = Field(1 << 16, ge=1, description="most household-nights validated on")
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(1e-5, ge=0)


class IndexBatches:
    """Batches of whole tensors, taken by index tensors; an epoch draws anew from seed and epoch.

    Lightning calls `sampler.set_epoch` before each epoch, so a resumed training sees the batches
    that the stopped one would have seen. Without a seed: the same evenly spread rows every epoch.
    """

    batch_sampler: Final = None

    def __init__(self, rows: Batch, batch_size: int, size: int, seed: int | None) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.size = min(size, len(rows[0]))
        self.epoch = 0

    @property
    def sampler(self) -> "IndexBatches":
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for index in torch.split(self._order(), self.batch_size):
            yield self.rows[0][index], self.rows[1][index]

    def _order(self) -> Tensor:
        count = len(self.rows[0])
        if self.seed is None:
            return torch.linspace(0, count - 1, self.size, dtype=torch.float64).round().long()
        generator = torch.Generator().manual_seed((self.seed << 8) + self.epoch)
        return torch.randperm(count, generator=generator)[: self.size]


class NightsData(L.LightningDataModule):
    """Household-nights as whole tensors: readings `[N, 48]`, NaN where missing, and conditions."""

    def __init__(self, train: Batch, validation: Batch, parameters: FitParameters) -> None:
        super().__init__()
        self.train, self.validation, self.parameters = train, validation, parameters

    def train_dataloader(self) -> IndexBatches:
        """A fresh draw every epoch."""
        p = self.parameters
        return IndexBatches(self.train, p.batch_size, p.epoch_size, p.seed)

    def val_dataloader(self) -> IndexBatches:
        """The same household-nights every epoch."""
        p = self.parameters
        return IndexBatches(self.validation, 4 * p.batch_size, p.validation_size, seed=None)


class AutoencoderModule(L.LightningModule):
    """Trains a network to rebuild the half-hours that were observed."""

    def __init__(self, network: nn.Module, parameters: FitParameters) -> None:
        super().__init__()
        self.network, self.fit_parameters = network, parameters
        self.train_mse, self.train_mae = MeanSquaredError(), MeanAbsoluteError()
        self.val_mse, self.val_mae = MeanSquaredError(), MeanAbsoluteError()
        self.history: list[dict[str, float]] = []

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:
        """Rebuild standardised readings `[B, 48]`; a missing one is read as the mean, 0."""
        rebuilt: Tensor = self.network(torch.nan_to_num(x, nan=0.0), conditions)
        return rebuilt.float()

    def on_train_start(self) -> None:
        """Stay stopped where a training that is taken up again had run out of patience."""
        stopping = self.trainer.early_stopping_callback
        if isinstance(stopping, EarlyStopping) and stopping.wait_count >= stopping.patience:
            self.trainer.should_stop = True

    def training_step(self, batch: Batch) -> Tensor:
        """Mean squared error over observed half-hours."""
        rebuilt, observed = self._observed(batch)
        self.train_mse.update(rebuilt.detach(), observed)
        self.train_mae.update(rebuilt.detach(), observed)
        return nn.functional.mse_loss(rebuilt, observed)

    def validation_step(self, batch: Batch) -> None:
        """Measure as in training."""
        rebuilt, observed = self._observed(batch)
        self.val_mse.update(rebuilt, observed)
        self.val_mae.update(rebuilt, observed)

    def on_validation_epoch_end(self) -> None:
        """Log what early stopping watches."""
        self._log("val_mse", "val_mae")

    def on_train_epoch_end(self) -> None:
        """Close the epoch in the history, which travels in every checkpoint."""
        self._log("train_mse", "train_mae")
        figures = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.history.append({"epoch": self.current_epoch, "learning_rate": rate} | figures)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW under a cosine over all steps."""
        p, steps = self.fit_parameters, int(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=p.learning_rate, weight_decay=p.weight_decay
        )
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=steps, eta_min=p.learning_rate / 100
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history."""
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up again."""
        self.history = list(checkpoint["history"])

    def restore(self, path: str) -> int:
        """Give the network the weights of a checkpoint; its epoch."""
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        self.load_state_dict(checkpoint["state_dict"])
        return int(checkpoint["epoch"])

    def _observed(self, batch: Batch) -> Batch:
        x, conditions = batch
        observed = ~torch.isnan(x)
        return self(x, conditions)[observed], x[observed]

    def _log(self, *names: str) -> None:
        for name in names:
            metric = getattr(self, name)
            self.log(name, metric.compute(), prog_bar=True)
            metric.reset()


@dataclass(frozen=True)
class Loop:
    """A trainer with the callbacks that are asked afterwards."""

    trainer: L.Trainer
    checkpoints: ModelCheckpoint
    timer: Timer


def make_loop(parameters: FitParameters, directory: str, *, progress: bool) -> Loop:
    """A trainer that keeps the three best epochs and the last one in `directory`."""
    checkpoints = ModelCheckpoint(
        dirpath=directory,
        filename="{epoch}",
        monitor=MONITOR,
        save_top_k=3,
        save_last=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    timer, stopping = Timer(), EarlyStopping(MONITOR, patience=parameters.patience)
    trainer = L.Trainer(
        max_epochs=parameters.max_epochs,
        precision=precision(),
        gradient_clip_val=CLIP_NORM,
        deterministic=True,
        devices=1,
        callbacks=[stopping, timer, checkpoints],
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=progress,
        enable_model_summary=False,
    )
    return Loop(trainer, checkpoints, timer)


def precision() -> Precision:
    """Mixed precision in the best type that the hardware has."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if native else "16-mixed"
    return "32-true" if torch.backends.mps.is_available() else "bf16-mixed"


@contextmanager
def expected_warnings() -> Iterator[None]:
    """Silence what Lightning says of itself and what is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated"
        )
        # A training that is taken up again writes where the stopped one wrote.
        warnings.filterwarnings("ignore", message=r"Checkpoint directory .* is not empty")
        yield
