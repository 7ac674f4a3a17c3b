"""A training is shown in one MLflow run while it goes on, however often it is stopped."""

import logging
from pathlib import Path

import lightning as L  # noqa: N812
import pytest
from lightning.pytorch.callbacks import Callback
from mlflow import MlflowClient

from ml.training.fit import TrainerOptions, train_and_calibrate
from ml.training.parameters import FitParameters
from tasks import registry
from tasks.progress import TrainingProgressBar
from tasks.registry import RunDescription
from tasks.training import fit_detector, register_version
from tasks.training_job import TrainParameters
from tasks.training_log import MlflowTrainingLogger
from tests import fleets
from tests.lake_fixtures import copy_mlflow_database, write_lake

MIN_READINGS = 36
DESCRIPTION = RunDescription(run_name="a training", parameters={"seed": 0}, tags={"data": "abc"})
PARAMETERS = FitParameters(
    model=fleets.TEST_MODEL, max_epochs=3, batch_size=64, epoch_size=512, validation_size=128
)


@pytest.fixture
def client(home: Path, empty_store: Path) -> MlflowClient:
    copy_mlflow_database(empty_store)
    return MlflowClient(registry.resolve_store_uri(), registry.resolve_store_uri())


def find_training_runs(client: MlflowClient) -> list:
    experiment = client.get_experiment_by_name(registry.MODEL_NAME)
    return client.search_runs([experiment.experiment_id])


class MetricsReader(Callback):
    """Reads at the start of each epoch what MLflow shows of the ones before."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self.seen: list[list[float]] = []
        self.statuses: list[str] = []

    def on_train_epoch_start(self, trainer: L.Trainer, *_: object) -> None:
        history = self.client.get_metric_history(self.run_id, "val_loss")
        self.seen.append([metric.value for metric in history])
        self.statuses.append(self.client.get_run(self.run_id).info.status)


class StoppedError(Exception):
    pass


class StoppingProgressBar(TrainingProgressBar):
    """Stands in for a process that dies in the second epoch."""

    def on_train_epoch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.current_epoch > 0:
            raise StoppedError


def test_metrics_appear_in_mlflow_before_training_ends(
    client: MlflowClient, tmp_path: Path
) -> None:
    run_id = registry.open_training_run(DESCRIPTION)
    reader = MetricsReader(client, run_id)
    result = train_and_calibrate(
        fleets.build_fleet(fleets.simulate_readings_kwh(12, 60)),
        PARAMETERS,
        MIN_READINGS,
        str(tmp_path / "checkpoints"),
        options=TrainerOptions(callbacks=[reader], logger=MlflowTrainingLogger(run_id)),
    )
    losses = [epoch["val_loss"] for epoch in result.epoch_metrics]
    assert reader.seen == [[], losses[:1], losses[:2]]
    assert reader.statuses == ["RUNNING"] * 3
    logged = {
        name: [metric.step for metric in client.get_metric_history(run_id, name)]
        for name in client.get_run(run_id).data.metrics
    }
    names = {"epoch", "learning_rate", "val_loss", "train_loss", "skipped_steps"}
    assert logged == {name: [0, 1, 2] for name in names}


def test_stopped_training_is_registered_in_run_it_began_in(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lake(fleets.simulate_readings_kwh(12, 60))
    parameters = TrainParameters(model=fleets.TEST_MODEL, max_epochs=3, batch_size=64)
    with monkeypatch.context() as patched:
        patched.setattr("tasks.training.TrainingProgressBar", StoppingProgressBar)
        with pytest.raises(StoppedError):
            fit_detector(parameters)
    (stopped,) = find_training_runs(client)
    assert stopped.info.status == "FAILED"
    fitted = fit_detector(parameters)
    version = register_version(fitted)
    (run,) = find_training_runs(client)
    assert version.run_id == run.info.run_id == stopped.info.run_id
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(version.run_id, "val_loss")
    assert [metric.step for metric in history] == [0, 1, 2]
    assert [metric.value for metric in history] == [
        epoch["val_loss"] for epoch in fitted.epoch_metrics
    ]
    # Killed after the registration and before the comparison, a training registers nothing new.
    assert register_version(fitted) == version


def test_training_goes_on_while_mlflow_is_down(
    client: MlflowClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_id = registry.open_training_run(DESCRIPTION)
    log = MlflowTrainingLogger(run_id)
    with monkeypatch.context() as down:
        down.setenv("METERWATCH_MLFLOW_URI", f"sqlite:///{tmp_path}/none/mlflow.db")
        with caplog.at_level(logging.WARNING, logger="tasks.training_log"):
            log.log_metrics({"epoch": 0, "val_loss": 3.0}, step=0)
            log.log_metrics({"epoch": 1, "val_loss": 2.0}, step=1)
    (warning,) = caplog.messages
    assert "is down" in warning
    assert "the training goes on" in warning
    log.log_metrics({"epoch": 2, "val_loss": 1.0}, step=2)
    history = client.get_metric_history(run_id, "val_loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]


def test_repeated_epoch_is_logged_once(client: MlflowClient) -> None:
    """Killed between the end of an epoch and its checkpoint, a training repeats that epoch."""
    run_id = registry.open_training_run(DESCRIPTION)
    MlflowTrainingLogger(run_id).log_metrics({"epoch": 0, "val_loss": 3.0}, step=0)
    assert registry.open_training_run(DESCRIPTION, run_id) == run_id
    MlflowTrainingLogger(run_id).log_metrics({"epoch": 0, "val_loss": 3.0}, step=0)
    assert len(client.get_metric_history(run_id, "val_loss")) == 1


def test_run_of_another_store_is_replaced(client: MlflowClient) -> None:
    run_id = registry.open_training_run(DESCRIPTION, "0123456789abcdef0123456789abcdef")
    assert client.get_run(run_id).info.run_name == "a training"
