"""Shows on a terminal how far a long job is; shows nothing where standard error is no terminal."""

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

from ml.training.lightning_module import MONITORED_METRIC

SPEED_WINDOW_S: Final = 180.0
"""Seconds whose speed tells the time left. Chosen: long enough to hold a validation as well, which
advances no step."""


def show_spinner(activity: str) -> Status:
    """Return a context manager that shows `activity ...` while its block runs."""
    return Console(stderr=True).status(f"{activity} ...")


class TrainingProgressBar(Callback):
    """Shows one line for a fit: epochs, validation loss, time left; then that it is calibrated.

    A context manager, and a callback of the trainer while it is entered.
    """

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
        """Show no step as done, or those that a resumed training had done."""
        self.progress.reset(
            self.task_id,
            total=trainer.estimated_stepping_batches,
            completed=trainer.global_step,
        )

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Show the epoch's number, and the validation loss of the one before."""
        description = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        loss = trainer.callback_metrics.get(MONITORED_METRIC)
        if loss is not None:
            description += f", validation loss {loss:.4f}"
        self.progress.update(self.task_id, description=description)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Show the steps that are done."""
        self.progress.update(self.task_id, completed=trainer.global_step)

    def on_fit_end(self, *_: Any) -> None:
        """Show that the detector is calibrated, which takes a while after the last epoch."""
        self.progress.reset(self.task_id, total=None, description="calibrating")
