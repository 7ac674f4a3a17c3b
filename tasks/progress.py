"""What a long job is at, on a terminal; nothing is shown where nobody watches."""

from typing import Any, Final, Self

import lightning as L  # noqa: N812
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status

SPEED_WINDOW_S: Final = 180.0
"""The last minutes, validations among them, tell the time left."""


def show_spinner(activity: str) -> Status:
    """A line that says what is done, as long as it is done."""
    return Console(stderr=True).status(f"{activity} ...")


class TrainingProgressBar(Callback):
    """One line for all epochs of a fit: how far, how good, how long still; then its calibration."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            speed_estimate_period=SPEED_WINDOW_S,
        )
        self.task_id = self.progress.add_task("preparing", total=None)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Begin, or go on where a training was stopped."""
        total, done = trainer.estimated_stepping_batches, trainer.global_step
        self.progress.reset(self.task_id, total=total, completed=done)

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Name the epoch, and how good the one before was."""
        name = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        if (loss := trainer.callback_metrics.get("val_loss")) is not None:
            name += f", validation loss {loss:.4f}"
        self.progress.update(self.task_id, description=name)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """A step further."""
        self.progress.update(self.task_id, completed=trainer.global_step)

    def on_fit_end(self, *_: Any) -> None:
        """What follows the epochs."""
        self.progress.reset(self.task_id, total=None, description="calibrating")
