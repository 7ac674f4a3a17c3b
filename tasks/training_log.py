"""Shows a training in its MLflow run while it goes on."""

import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger

from tasks import registry

log = logging.getLogger(__name__)


class MlflowTrainingLogger(Logger):
    """Adds the metrics of each epoch to a training's run when the epoch ends.

    A training does not depend on it: while MLflow is down, metrics wait for the next epoch or for
    the registration of the version.

    Lightning's own `MLFlowLogger` does not serve here. An outage raises and ends the training; its
    steps are batches; a resumed training that repeats an epoch logs it twice; and it ends the run
    when the last epoch has, before the version is registered.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id
        self._logged_epochs: set[int] | None = None
        self._waiting: dict[int, Mapping[str, float]] = {}
        self._is_down = False
        self._has_failed = False

    @property
    def name(self) -> str:
        """Return the experiment's name."""
        return registry.MODEL_NAME

    @property
    def version(self) -> str:
        """Return the run's id."""
        return self.run_id

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: parameters are logged when the run is created."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send an epoch's metrics to the run, after those that an outage has held back.

        `step` is the epoch.

        An epoch that the run already has is left out: it was repeated from a checkpoint.
        """
        assert step is not None
        self._waiting[step] = metrics
        try:
            self._send_waiting()
            self._is_down = False
        except registry.StoreDownError as outage:
            # Once an outage, however many epochs it lasts.
            if not self._is_down:
                log.warning("%s; the training goes on, and is shown once MLflow answers", outage)
            self._is_down = True

    def finalize(self, status: str) -> None:
        """Mark the run as failed if `status` is; registration ends a run that succeeded."""
        if status != "failed":
            return
        self._has_failed = True
        try:
            registry.set_run_status(self.run_id, "FAILED")
        except registry.StoreDownError as outage:
            log.warning("%s; run %s is not marked as failed", outage, self.run_id)

    def _send_waiting(self) -> None:
        if self._logged_epochs is None:
            self._logged_epochs = registry.find_logged_epochs(self.run_id)
        if self._has_failed:
            # Out of memory, then tried again in smaller parts.
            registry.set_run_status(self.run_id, "RUNNING")
            self._has_failed = False
        new = {
            epoch: metrics
            for epoch, metrics in self._waiting.items()
            if epoch not in self._logged_epochs
        }
        if new:
            registry.log_epoch_metrics(self.run_id, new)
        self._logged_epochs |= new.keys()
        self._waiting = {}
