"""The training loop of every network: batches by index, Lightning modules, a trainer."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import lightning as L  # noqa: N812
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    Timer,
)
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from pydantic import Field, model_validator
from torch import Tensor

from ml.models import DEFAULT, ModelName, network_class
from ml.models.network import Network, Recipe, Windows
from ml.windows import FleetWindows

CLIP_NORM: Final = 1.0
MONITOR: Final = "val_loss"

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


class FitParameters(Recipe):
    """How a network is trained: its own recipe, except for what is given."""

    model: ModelName = DEFAULT
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="before")
    @classmethod
    def _of_the_model(cls, given: Any) -> Any:
        """Fill in the model's own recipe."""
        if isinstance(given, cls):
            return given
        return network_class(given.get("model", DEFAULT)).recipe.model_dump() | given


class IndexBatches:
    """Batches of a fleet's windows by place `[N]`; an epoch draws anew from seed and epoch.

    Lightning calls `sampler.set_epoch` before each epoch, so a resumed training sees the batches
    that the stopped one would have seen. Without a seed: the same evenly spread places every epoch.
    """

    batch_sampler: Final = None

    def __init__(
        self, windows: FleetWindows, places: Tensor, batch_size: int, size: int, seed: int | None
    ) -> None:
        self.windows, self.places = windows, places
        self.batch_size, self.seed = batch_size, seed
        self.size = min(size, len(places))
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

    def __iter__(self) -> Iterator[Windows]:
        # Of nearly equal size: batch normalisation fails on a last batch of one.
        for places in torch.tensor_split(self._order(), len(self)):
            yield self.windows.take(places)

    def _order(self) -> Tensor:
        if self.seed is None:
            return spread(self.places, self.size)
        generator = torch.Generator().manual_seed((self.seed << 8) + self.epoch)
        return self.places[torch.randperm(len(self.places), generator=generator)[: self.size]]


def spread(places: Tensor, size: int) -> Tensor:
    """At most `size` of the places `[N]`, evenly spread."""
    index = torch.linspace(0, len(places) - 1, min(size, len(places)), dtype=torch.float64)
    return places[index.round().long()]


class NightsData(L.LightningDataModule):
    """The household-nights of a fleet to learn from and to validate on, by their places."""

    def __init__(
        self, windows: FleetWindows, train: Tensor, validation: Tensor, parameters: FitParameters
    ) -> None:
        super().__init__()
        self.windows, self.parameters = windows, parameters
        self.train, self.validation = train, validation

    def train_dataloader(self) -> IndexBatches:
        """A fresh draw every epoch."""
        p = self.parameters
        return IndexBatches(self.windows, self.train, p.batch_size, p.epoch_size, p.seed)

    def val_dataloader(self) -> IndexBatches:
        """The same household-nights every epoch."""
        p = self.parameters
        return IndexBatches(
            self.windows, self.validation, p.batch_size, p.validation_size, seed=None
        )


class NetworkModule(L.LightningModule):
    """Lowers the loss of a network; what the loss draws is the same for a step however reached."""

    def __init__(self, network: Network, parameters: FitParameters) -> None:
        super().__init__()
        self.network, self.fit_parameters = network, parameters
        self.history: list[dict[str, float]] = []
        self.losses: dict[str, tuple[Tensor | float, int]] = {}

    def on_train_start(self) -> None:
        """Stay stopped where a training that is taken up again had run out of patience."""
        stopping = self.trainer.early_stopping_callback
        if isinstance(stopping, EarlyStopping) and stopping.wait_count >= stopping.patience:
            self.trainer.should_stop = True

    def training_step(self, batch: Windows) -> Tensor:
        """The network's loss, drawn from the seed and the step."""
        self._seed((self.fit_parameters.seed << 32) + self.global_step)
        loss = self.network.loss(batch)
        self._count("train_loss", loss, batch)
        return loss

    def validation_step(self, batch: Windows, batch_idx: int) -> None:
        """The network's loss, drawn alike in every epoch."""
        with torch.random.fork_rng():
            self._seed(batch_idx)
            self._count(MONITOR, self.network.loss(batch), batch)

    def on_validation_epoch_end(self) -> None:
        """The mean of the validation."""
        self._log(MONITOR)

    def on_train_epoch_end(self) -> None:
        """Close the epoch in the history, which travels in every checkpoint."""
        self._log("train_loss")
        figures = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.history.append({"epoch": self.current_epoch, "learning_rate": rate} | figures)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW under a cosine over all steps."""
        p, steps = self.fit_parameters, int(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=p.learning_rate,
            weight_decay=p.weight_decay,
            fused=precision() != "16-mixed",  # whose scaled gradients it cannot have clipped
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

    def _seed(self, seed: int) -> None:
        """Seed what a loss draws from, without `torch.manual_seed`'s milliseconds."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _count(self, name: str, loss: Tensor, batch: Windows) -> None:
        """Add up an epoch's loss here: Lightning's own books cost as much as a small step."""
        rows = len(batch.level)
        total, counted = self.losses.get(name, (0.0, 0))
        self.losses[name] = total + loss.detach() * rows, counted + rows

    def _log(self, name: str) -> None:
        """The mean of an epoch; one that is not finite ends the training."""
        total, rows = self.losses.pop(name)
        self.log(name, total / rows, prog_bar=True)


@dataclass(frozen=True)
class Loop:
    """A trainer with the callbacks that are asked afterwards."""

    trainer: L.Trainer
    checkpoints: ModelCheckpoint
    timer: Timer


def make_loop(
    parameters: FitParameters, directory: str, callbacks: Sequence[Callback] = ()
) -> Loop:
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
    averaging: list[Callback] = []
    if parameters.ema_decay is not None:
        averaging = [EMAWeightAveraging(decay=parameters.ema_decay)]
    trainer = L.Trainer(
        max_epochs=parameters.max_epochs,
        precision=precision(),
        gradient_clip_val=CLIP_NORM,
        deterministic=True,
        devices=1,
        callbacks=[*averaging, stopping, timer, checkpoints, *callbacks],
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return Loop(trainer, checkpoints, timer)


def precision() -> Precision:
    """Mixed precision in the best type that a GPU has; a CPU is fastest in full precision."""
    if not torch.cuda.is_available():
        return "32-true"
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if native else "16-mixed"


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
