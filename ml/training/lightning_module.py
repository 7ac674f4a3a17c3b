"""The Lightning module that trains every network."""

import logging
import math
from typing import Any, Final

import lightning as L  # noqa: N812
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from ml.errors import UserError
from ml.models.base import Network, Windows
from ml.training.data import WindowBatches
from ml.training.parameters import SINGLE_PROCESS, FitParameters, TrainingProcesses

MONITORED_METRIC: Final = "val_loss"
"""Name of the validation loss, by which training stops early and the best weights are chosen."""
MAX_SKIPPED_STEPS: Final = 3
"""Steps of an epoch that may be skipped because their gradients are not finite. Chosen: a single
enormous reading spoils one batch an epoch, a training that diverges all of them."""
LEARNING_RATE_DECAY: Final = 100
"""The first learning rate over the last one of the cosine. Chosen: near the 0 at which Loshchilov
and Hutter (2017) end, without last steps that change nothing."""

log = logging.getLogger(__name__)


class NetworkModule(L.LightningModule):
    """Lowers the loss of a network and records the metrics of each epoch.

    What a loss draws depends on the seed and the step alone, so that a resumed training ends with
    the weights of an undisturbed one, to the last bit. A step whose gradients are not finite
    changes nothing. Losses and gradient norms stay on the device until an epoch ends: reading a
    number from a GPU would make it wait at every step.
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
        self.network = network
        self.fit_parameters = parameters
        self.accumulation_steps = accumulation_steps
        self.processes = processes
        self.epoch_metrics: list[dict[str, float]] = []
        """One mapping an epoch: `epoch`, `learning_rate`, `val_loss`, `train_loss`,
        `skipped_steps`."""
        self.batch_losses: list[Tensor] = []
        self.batch_sizes: list[int] = []
        self.gradient_norms: list[Tensor] = []
        self.running_statistics: list[Tensor] = []
        self.statistics_before_step: list[Tensor] = []
        self.mean_train_loss = 0.0
        self.n_skipped_steps = 0.0

    def on_train_start(self) -> None:
        """Find the running statistics; stop at once if a resumed training had already ended."""
        normalisers = [each for each in self.network.modules() if isinstance(each, nn.BatchNorm1d)]
        statistics = ((each.running_mean, each.running_var) for each in normalisers)
        self.running_statistics = [each for pair in statistics for each in pair if each is not None]
        self.network.single_precision_features = (
            self.trainer.precision == "32-true" and self.device.type == "cpu"
        )
        # Lightning restores the count of epochs without improvement but asks for it only after the
        # next epoch: killed before its registration, an ended training would train one more.
        stopping = self.trainer.early_stopping_callback
        if isinstance(stopping, EarlyStopping) and stopping.wait_count >= stopping.patience:
            self.trainer.should_stop = True

    def on_train_epoch_start(self) -> None:
        """Forget the losses and gradient norms of the epoch before."""
        self.gradient_norms = []
        self._reset_losses()

    def training_step(self, batch: Windows, batch_idx: int) -> Tensor:
        """Return the network's loss, a scalar, of one share of a batch."""
        part = batch_idx % self.accumulation_steps
        if part == 0:
            self.statistics_before_step = [each.clone() for each in self.running_statistics]
        share = (
            self.global_step * self.accumulation_steps + part
        ) * self.processes.n_processes + self.processes.rank
        # The share's number in the low 32 bits: no two seeds or shares draw alike.
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
        """Clip gradients by their norm; make the optimizer skip the step if it is not finite."""
        assert gradient_clip_val is not None
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)
        self.gradient_norms.append(norm)
        # A fused optimizer leaves the weights as they are where this attribute is 1. It is what a
        # gradient scaler sets, and the only way to skip a step on the GPU without waiting for the
        # norm; under "16-mixed" the optimizer is not fused and the scaler itself skips.
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        # Batch normalisation has already taken in the batch in its forward pass.
        for now, before in zip(self.running_statistics, self.statistics_before_step, strict=True):
            now.copy_(torch.where(norm.isfinite(), now, before))

    def on_validation_epoch_start(self) -> None:
        """Compute the epoch's training metrics before validation losses are recorded.

        Raises:
            UserError: too many steps were skipped.
        """
        self.n_skipped_steps = self._count_skipped_steps()
        self.mean_train_loss = self._mean_loss(skip_non_finite=True)
        self._reset_losses()

    def validation_step(self, batch: Windows, batch_idx: int) -> None:
        """Record the network's loss, which draws the same in every epoch."""
        batch_number = batch_idx * self.processes.n_processes + self.processes.rank
        with torch.random.fork_rng():
            self._seed_generators(batch_number)
            loss = self.network.loss(batch)
        # Where batches do not come out even among processes, the last one is repeated: see
        # `WindowBatches`. It counts once.
        if batch_number < self._get_batches("val_dataloaders").n_shares:
            self._record_loss(loss, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the mean validation loss.

        Raises:
            UserError: it is not finite.
        """
        loss = self._mean_loss(skip_non_finite=False)
        if not math.isfinite(loss):
            batches = self._get_batches("val_dataloaders").draw_batches()
            raise UserError(
                f"training stopped: the validation loss of epoch {self.current_epoch + 1} is not "
                f"finite; {self._describe_largest_reading(batches)}"
            )
        self.log(MONITORED_METRIC, loss, prog_bar=True, logger=False, sync_dist=True)

    def on_train_epoch_end(self) -> None:
        """Append the epoch's metrics to `epoch_metrics` and give them to the trainer's loggers."""
        # `logger=False` and a call of our own: Lightning would count steps of the optimizer where
        # readers of a curve want epochs, and knows nothing of the learning rate.
        self.log("train_loss", self.mean_train_loss, prog_bar=True, logger=False, sync_dist=True)
        self.log("skipped_steps", self.n_skipped_steps, logger=False, sync_dist=True)
        logged = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        metrics = {"epoch": self.current_epoch, "learning_rate": learning_rate} | logged
        self.epoch_metrics.append(metrics)
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.current_epoch)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW whose learning rate falls along a cosine over all steps."""
        n_steps = int(self.trainer.estimated_stepping_batches)
        first_rate = self.fit_parameters.learning_rate
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=first_rate,
            weight_decay=self.fit_parameters.weight_decay,
            # Under "16-mixed" gradients are scaled, and a fused optimizer would unscale them
            # itself, after they have been clipped.
            fused=self.trainer.precision != "16-mixed",
        )
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=n_steps, eta_min=first_rate / LEARNING_RATE_DECAY
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the metrics of past epochs into a checkpoint."""
        checkpoint["history"] = self.epoch_metrics

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the metrics of past epochs from a checkpoint."""
        self.epoch_metrics = list(checkpoint["history"])

    def _seed_generators(self, seed: int) -> None:
        """Seed the generators that a loss draws from.

        `torch.manual_seed` does the same for every backend and takes milliseconds, longer than the
        step of a small network.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _reset_losses(self) -> None:
        self.batch_losses = []
        self.batch_sizes = []

    def _record_loss(self, loss: Tensor, batch: Windows) -> None:
        """Remember a batch's loss and size until the epoch ends.

        Neither `self.log(on_epoch=True)`, which costs as much as the step of a small network, nor
        `torchmetrics.MeanMetric`: an update takes 84 us on a CPU where this takes 2 us, with the
        same mean; its NaN check makes a GPU wait, and without it (`nan_strategy="disable"`)
        torchmetrics 1.9 ignores the weights, here the sizes of batches.
        """
        self.batch_losses.append(loss.detach())
        self.batch_sizes.append(len(batch.level))

    def _mean_loss(self, *, skip_non_finite: bool) -> float:
        """Return the mean of the recorded losses over the rows of all processes; NaN if none."""
        none = torch.zeros(0, device=self.device)
        losses = (torch.stack(self.batch_losses) if self.batch_losses else none).double()
        rows = torch.tensor(self.batch_sizes, device=losses.device)
        is_counted = losses.isfinite() if skip_non_finite else torch.ones_like(losses).bool()
        loss_sum = torch.where(is_counted, losses * rows, 0.0).sum()
        row_count = (rows * is_counted).sum()
        total, count = self._sum_over_processes(torch.stack((loss_sum, row_count))).tolist()
        return total / count if count else math.nan

    def _count_skipped_steps(self) -> float:
        """Return how many steps of the epoch were skipped, and warn if any was.

        Raises:
            UserError: they are more than `MAX_SKIPPED_STEPS`, or all.
        """
        is_finite = torch.stack(self.batch_losses).isfinite().view(-1, self.accumulation_steps)
        is_skipped = ~is_finite.all(dim=1)
        # A gradient scaler begins with gradients that overflow, to find the largest useful scale.
        if self.trainer.precision != "16-mixed":
            is_skipped |= ~torch.stack(self.gradient_norms).isfinite()
        skipped = self._sum_over_processes(is_skipped.double()).nonzero()[:, 0].tolist()
        if skipped:
            drawn = self._get_batches("train_dataloader").draw_batches()
            description = (
                f"{len(skipped)} of {len(is_skipped)} steps of epoch {self.current_epoch + 1} "
                "had a loss or gradients that are not finite, "
                f"the first of them step {skipped[0] + 1}; "
                f"{self._describe_largest_reading((drawn[skipped[0]],))}"
            )
            if len(skipped) > MAX_SKIPPED_STEPS or len(skipped) == len(is_skipped):
                raise UserError(f"training stopped: {description}")
            log.warning("training steps were skipped: %s", description)
        return float(len(skipped))

    def _describe_largest_reading(self, index_batches: tuple[Tensor, ...]) -> str:
        """Return in words the largest reading among the windows of some batches."""
        windows = self._get_batches("train_dataloader").windows
        largest_kwh = [
            windows.gather_windows(indices).kwh.nan_to_num(nan=0.0).flatten(1).amax(1)
            for indices in index_batches
        ]
        kwh, place = torch.cat(largest_kwh).max(dim=0)
        night = windows.format_household_night(int(torch.cat(index_batches)[int(place)]))
        return f"the largest reading there is {kwh:.4g} kWh, at {night} or in the nights before it"

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        summed: Tensor = self.trainer.strategy.reduce(values, reduce_op="sum")
        return summed

    def _get_batches(self, dataloader_name: str) -> WindowBatches:
        batches = getattr(self.trainer, dataloader_name)
        assert isinstance(batches, WindowBatches)
        return batches
