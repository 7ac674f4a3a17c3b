"""A training can be killed at any moment, is shared by processes, and registers nothing broken."""

import random
import subprocess
import sys
import time
import weakref
from datetime import date, timedelta
from pathlib import Path

import pytest
import torch

from ml.errors import UserError
from ml.fleet import Fleet
from ml.scoring.detector import Detector
from tasks import paths, registry
from tasks.fleet_loading import load_fleet
from tasks.model_files import load_detector, save_onnx
from tasks.training import fit_detector
from tasks.training_job import TrainParameters, resolve_last_night
from tests import fleets
from tests.lake_fixtures import copy_mlflow_database, write_lake
from tests.training_fixtures import build_quick_parameters, have_equal_weights

ROOT = Path(__file__).parents[2]
NIGHTS = 60
N_KILLS = 2
MARKED_LOSS = -1.0


def load_weights(key: str) -> dict[str, torch.Tensor]:
    return load_detector(paths.training_dir(key)).state_dict()


def start_training_process(parameters: TrainParameters) -> subprocess.Popen[bytes]:
    # Without the upgrade of the store, which is new and takes seconds to look through.
    command = (
        "from tasks.training import *; registry.prepare_store = lambda: None; "
        f"fit_detector(TrainParameters.model_validate_json({parameters.model_dump_json()!r}))"
    )
    return subprocess.Popen([sys.executable, "-c", command], cwd=ROOT)


def mark_checkpoint(checkpoint: Path) -> None:
    """Write into a checkpoint's history, so that a training shows that it went on from there."""
    state = torch.load(checkpoint, weights_only=True)
    state["history"][0]["train_loss"] = MARKED_LOSS
    torch.save(state, checkpoint)


def test_killed_training_resumes_to_same_weights(
    home: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kwh = fleets.simulate_readings_kwh(200, NIGHTS)
    write_lake(kwh)
    copy_mlflow_database(empty_store)
    parameters = TrainParameters(model=fleets.TEST_MODEL, max_epochs=40)
    process = start_training_process(parameters)
    while process.poll() is None and not list(home.glob("training/*/checkpoints/epoch=3.ckpt")):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    mark_checkpoint(next(home.glob("training/*/checkpoints/last.ckpt")))
    resumed = fit_detector(parameters)
    resumed_weights = load_weights(resumed.key)
    monkeypatch.setenv("METERWATCH_HOME", str(tmp_path / "undisturbed"))
    write_lake(kwh)
    copy_mlflow_database(empty_store)
    undisturbed = fit_detector(parameters)
    assert undisturbed.key == resumed.key
    assert resumed.epoch_metrics[0]["train_loss"] == MARKED_LOSS
    assert undisturbed.epoch_metrics[1:] == resumed.epoch_metrics[1:]
    assert have_equal_weights(load_weights(undisturbed.key), resumed_weights)


def test_training_killed_at_random_moments_ends_with_same_weights(
    home: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So small a fleet that most of the time goes into writing checkpoints."""
    parameters = TrainParameters(model="batchnorm_autoencoder", max_epochs=20)
    kwh = fleets.simulate_readings_kwh(40, NIGHTS)
    moment = random.Random(0)
    write_lake(kwh)
    copy_mlflow_database(empty_store)
    for _ in range(N_KILLS):
        process = start_training_process(parameters)
        before = list(home.glob("training/*/checkpoints/*"))
        while process.poll() is None and list(home.glob("training/*/checkpoints/*")) == before:
            time.sleep(0.005)
        time.sleep(moment.uniform(0, 0.4))
        process.kill()
        process.wait()
    resumed = fit_detector(parameters)
    resumed_weights = load_weights(resumed.key)
    monkeypatch.setenv("METERWATCH_HOME", str(tmp_path / "undisturbed"))
    write_lake(kwh)
    copy_mlflow_database(empty_store)
    undisturbed = fit_detector(parameters)
    assert resumed.epoch_metrics == undisturbed.epoch_metrics
    assert have_equal_weights(resumed_weights, load_weights(undisturbed.key))


def test_fitted_detector_of_another_release_counts_as_absent(
    home: Path, empty_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As of release 0.1.0: it has fields that are gone, and lacks some that there are now."""
    write_lake(fleets.simulate_readings_kwh(12, NIGHTS))
    copy_mlflow_database(empty_store)
    parameters = TrainParameters(model=fleets.TEST_MODEL, max_epochs=1)
    fitted = fit_detector(parameters)
    file = paths.fitted_detector_file(fitted.key)
    file.write_text('{"key": "0123456789abcdef", "lived_nights": 60}')
    again = fit_detector(parameters)
    assert again.epoch_metrics == fitted.epoch_metrics
    assert "is not of this release" in caplog.text
    assert fit_detector(parameters) == again


@pytest.mark.parametrize("model", [fleets.TEST_MODEL, "batchnorm_autoencoder", "history_network"])
def test_diverging_training_raises_and_registers_nothing(
    model: str, home: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lake(fleets.simulate_readings_kwh(24, 60))
    copy_mlflow_database(empty_store)
    monkeypatch.setattr(
        "tasks.training_job.FitParameters",
        lambda **_: build_quick_parameters(model, batch_size=64, learning_rate=1e30),
    )
    with pytest.raises(UserError, match=r"training stopped: \d of \d steps of epoch 1 had a loss"):
        fit_detector(TrainParameters(model=model))
    assert not list(home.glob("training/*/*.safetensors"))
    assert registry.find_champion_version() is None


def test_training_fleet_is_freed_before_export(
    home: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the full trial the readings are a third of what a training takes."""
    write_lake(fleets.simulate_readings_kwh(24, 60))
    copy_mlflow_database(empty_store)
    loaded = []
    held_at_export = []

    def load_and_reference(*span: date, only_reporting: bool) -> Fleet:
        fleet = load_fleet(*span, only_reporting=only_reporting)
        loaded.append(weakref.ref(fleet.kwh))
        return fleet

    def look_for_fleet_and_save(detector: Detector, directory: Path) -> None:
        held_at_export.append(loaded[0]())
        save_onnx(detector, directory)

    monkeypatch.setattr("tasks.training_job.load_fleet", load_and_reference)
    monkeypatch.setattr("tasks.training.save_onnx", look_for_fleet_and_save)
    assert fit_detector(TrainParameters(model=fleets.TEST_MODEL, max_epochs=1)).n_households == 24
    assert held_at_export == [None]


def test_two_processes_train_like_one(
    home: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draw shared out, the same validation: equal but for the order of sums."""
    parameters = TrainParameters(model=fleets.TEST_MODEL, max_epochs=3)
    kwh = fleets.simulate_readings_kwh(60, 60)
    histories = []
    for devices in ("1", "2"):
        monkeypatch.setenv("METERWATCH_HOME", str(tmp_path / devices))
        monkeypatch.setenv("METERWATCH_DEVICES", devices)
        write_lake(kwh)
        copy_mlflow_database(empty_store)
        fitted = fit_detector(parameters)
        assert fitted.resources.n_devices == int(devices)
        histories.append(fitted.epoch_metrics)
    for one, two in zip(*histories, strict=True):
        assert two == pytest.approx(one, rel=1e-3)


def test_last_training_night_is_limited_to_lake(home: Path) -> None:
    write_lake(fleets.simulate_readings_kwh(2, 40))
    assert resolve_last_night(TrainParameters()) == fleets.FIRST_NIGHT + timedelta(days=39)
    late = TrainParameters(until=fleets.FIRST_NIGHT + timedelta(days=99))
    assert resolve_last_night(late) == fleets.FIRST_NIGHT + timedelta(days=39)
    with pytest.raises(UserError, match="the lake begins on 2013-06-03, after 2013-06-02"):
        resolve_last_night(TrainParameters(until=fleets.FIRST_NIGHT - timedelta(days=1)))
