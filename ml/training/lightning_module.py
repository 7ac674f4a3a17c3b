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
MAX_SKIPPED_STEPS: Final = 3
"""Steps of an epoch that may be skipped because their gradients are not finite."""
log = logging.getLogger(__name__)


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
        self.network.single_precision_features = (
            self.trainer.precision == "32-true" and self.device.type == "cpu"
        )
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
            fused=self.trainer.precision
            != "16-mixed",  # whose scaled gradients it cannot have clipped
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
