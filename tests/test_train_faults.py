"""Training ends well or says why it ended: killed, out of memory, not finite, among several."""

import random
import resource
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch

from flows.cli import main
from ml.errors import UserError
from ml.fleet import Fleet
from ml.scoring.detector import Detector
from ml.training.data import build_data_module
from ml.training.fit import FitResult, TrainerOptions, train_and_calibrate
from ml.training.lightning_module import NetworkModule
from ml.training.parameters import FitParameters
from ml.training.split import is_held_out
from ml.training.trainer import build_trainer, is_out_of_memory, suppress_expected_warnings
from ml.windows import FleetWindows
from tasks import paths, registry
from tasks.checkpoints import AtomicCheckpointIO, find_latest_checkpoint
from tasks.fleet_loading import load_fleet
from tasks.model_files import load_detector, save_onnx
from tasks.training import TrainParameters, fit_detector
from tests import fleets
from tests.lake_fixtures import copy_mlflow_database, write_lake

ROOT = Path(__file__).parents[1]
MIN_READINGS = 36
N_KILLS = 2
ENORMOUS_KWH = 3e38


def build_quick_parameters(model: str = fleets.TEST_MODEL, **overrides: float) -> FitParameters:
    given = {"max_epochs": 2, "batch_size": 64, "epoch_size": 512, "validation_size": 128}
    return FitParameters(model=model, **(given | overrides))


def train_on_fleet(fleet: Fleet, parameters: FitParameters, checkpoint_dir: Path) -> FitResult:
    return train_and_calibrate(fleet, parameters, MIN_READINGS, str(checkpoint_dir))


def load_weights(key: str) -> dict[str, torch.Tensor]:
    return load_detector(paths.training_dir(key)).state_dict()


def assert_equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def start_training_process(parameters: TrainParameters) -> subprocess.Popen[bytes]:
    command = (
        "from tasks.training import *; registry.prepare_store = lambda: None; "  # saves MLflow's import
        f"fit_detector(TrainParameters.model_validate_json({parameters.model_dump_json()!r}))"
    )
    return subprocess.Popen([sys.executable, "-c", command], cwd=ROOT)


def test_training_killed_at_random_moments_ends_with_same_weights(
    home: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So small a fleet that most of the time goes into writing checkpoints."""
    parameters = TrainParameters(model="batchnorm_autoencoder", max_epochs=20)
    kwh, moment = fleets.simulate_readings_kwh(40, 60), random.Random(0)
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
    found = load_weights(resumed.key)
    monkeypatch.setenv("METERWATCH_HOME", str(tmp_path / "undisturbed"))
    write_lake(kwh)
    copy_mlflow_database(empty_store)
    undisturbed = fit_detector(parameters)
    assert resumed.epoch_metrics == undisturbed.epoch_metrics
    assert_equal_weights(found, load_weights(undisturbed.key))


@pytest.mark.parametrize("damage", ["cut short", "one byte changed", "empty"])
def test_damaged_checkpoint_falls_back_to_earlier_one(damage: str, tmp_path: Path) -> None:
    known = fleets.build_fleet(fleets.simulate_readings_kwh(12, 60))
    undisturbed = train_and_calibrate(
        known,
        build_quick_parameters(),
        MIN_READINGS,
        str(tmp_path),
        options=TrainerOptions(checkpoint_io=AtomicCheckpointIO()),
    )
    last = tmp_path / "last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "cut short":
        del content[len(content) // 2 :]
    elif damage == "empty":
        content.clear()
    else:
        content[len(content) // 2] ^= 1
    last.write_bytes(content)
    earlier = find_latest_checkpoint(tmp_path)
    assert earlier == str(tmp_path / "epoch=1.ckpt")
    again = train_and_calibrate(
        known,
        build_quick_parameters(),
        MIN_READINGS,
        str(tmp_path),
        resume_from=earlier,
        options=TrainerOptions(checkpoint_io=AtomicCheckpointIO()),
    )
    assert_equal_weights(again.detector.state_dict(), undisturbed.detector.state_dict())


def test_training_restarts_without_intact_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"nothing of use")
    assert find_latest_checkpoint(tmp_path) is None
    assert not tmp_path.exists()
    assert "last.ckpt is damaged" in caplog.text


def test_infinite_reading_is_refused_with_household_and_night(tmp_path: Path) -> None:
    kwh = fleets.simulate_readings_kwh(12, 60)
    kwh[3, 5, 7] = np.inf
    with pytest.raises(UserError, match="an infinite reading of MAC000003 on 2013-06-08"):
        train_on_fleet(fleets.build_fleet(kwh), build_quick_parameters(), tmp_path)


def test_non_finite_step_is_skipped_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A reading that overflows spoils one batch an epoch, not the weights nor what is usual."""
    kwh = fleets.simulate_readings_kwh(24, 60)
    kwh[1, 59, 10] = ENORMOUS_KWH  # seen by the last night alone
    parameters = build_quick_parameters("history_network", batch_size=32, epoch_size=2048)
    result = train_on_fleet(fleets.build_fleet(kwh), parameters, tmp_path)
    assert [epoch["skipped_steps"] for epoch in result.epoch_metrics] == [1, 1]
    assert "1 of 44 steps of epoch 2 had a loss or gradients that are not finite" in caplog.text
    assert "3e+38 kWh, at MAC000001 on 2013-08-01" in caplog.text
    assert all(value.isfinite().all() for value in result.detector.state_dict().values())


@pytest.mark.parametrize("model", [fleets.TEST_MODEL, "batchnorm_autoencoder", "history_network"])
def test_diverging_training_raises_and_registers_nothing(
    model: str, home: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lake(fleets.simulate_readings_kwh(24, 60))
    copy_mlflow_database(empty_store)
    monkeypatch.setattr(
        "tasks.training.FitParameters",
        lambda **_: build_quick_parameters(model, batch_size=64, learning_rate=1e30),
    )
    with pytest.raises(UserError, match=r"training stopped: \d of \d steps of epoch 1 had a loss"):
        fit_detector(TrainParameters(model=model))
    assert not list(home.glob("training/*/*.safetensors"))
    assert registry.find_champion_version() is None


@pytest.mark.parametrize(
    ("apart", "said"),
    [
        (
            True,
            "training stopped: the validation loss of epoch 1 is not finite; .* 3e\\+38 kWh, at",
        ),
        (False, "training broke: calibration.half_hour_error_scale of the detector"),
    ],
)
def test_detector_with_non_finite_state_is_refused(apart: bool, said: str, tmp_path: Path) -> None:
    """A reading that overflows in a home held out, and in scales taken from a home learnt from."""
    known = fleets.build_fleet(fleets.simulate_readings_kwh(24, 70))
    known.kwh[np.flatnonzero(is_held_out(known.household_ids) == apart)[0], 69, 10] = ENORMOUS_KWH
    with np.errstate(over="ignore"), pytest.raises(UserError, match=said):
        train_on_fleet(known, build_quick_parameters(), tmp_path)


@contextmanager
def limit_address_space(extra_mb: int) -> Iterator[None]:
    """Let this process take so much more memory than it has."""
    kilobytes = next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmSize")
    )
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, ((kilobytes << 10) + (extra_mb << 20), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_out_of_memory_doubles_gradient_accumulation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The network whose batches take most; it has no statistics that parts would change."""
    known = fleets.build_fleet(fleets.simulate_readings_kwh(24, 60))
    parameters = build_quick_parameters("transformer", batch_size=512, max_epochs=1)
    with limit_address_space(400):
        result = train_on_fleet(known, parameters, tmp_path)
    assert result.resources.accumulation_steps > 1
    assert result.resources.device_batch_size == 512 // result.resources.accumulation_steps
    assert "out of memory with 512 household-nights at once" in caplog.text
    assert len(result.epoch_metrics) == 1


def test_training_fleet_is_freed_before_export(
    home: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the full trial the readings are a third of what a training takes."""
    write_lake(fleets.simulate_readings_kwh(24, 60))
    copy_mlflow_database(empty_store)
    loaded, kept = [], []

    def load_and_reference(*span: date, only_reporting: bool) -> Fleet:
        fleet = load_fleet(*span, only_reporting=only_reporting)
        loaded.append(weakref.ref(fleet.kwh))
        return fleet

    def record_fleet_and_save(detector: Detector, directory: Path) -> None:
        kept.append(loaded[0]())
        save_onnx(detector, directory)

    monkeypatch.setattr("tasks.training.load_fleet", load_and_reference)
    monkeypatch.setattr("tasks.training.save_onnx", record_fleet_and_save)
    assert fit_detector(TrainParameters(model=fleets.TEST_MODEL, max_epochs=1)).n_households == 24
    assert kept == [None]


def test_failed_thread_start_counts_as_out_of_memory() -> None:
    done = Event()

    def start_many() -> None:
        for _ in range(64):
            Thread(target=done.wait).start()

    try:
        with limit_address_space(64), pytest.raises(RuntimeError) as raised:
            start_many()
    finally:
        done.set()
    assert is_out_of_memory(raised.value)


def test_out_of_memory_is_reported_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with limit_address_space(200):
        status = main(["simulate", str(tmp_path / "fleet"), "--households", "512", "--days=1000"])
    assert status == 1
    assert capfd.readouterr().err.startswith("meterwatch: too little memory: Unable to allocate")


def test_gradient_accumulation_equals_whole_batch(tmp_path: Path) -> None:
    """Same rows, same number of steps, gradients added up; the seed's network draws nothing."""
    known, networks = fleets.build_fleet(fleets.simulate_readings_kwh(24, 60)), []
    for parts in (1, 4):
        network = fleets.build_untrained_detector(known).network
        data = build_data_module(network, known, build_quick_parameters(), MIN_READINGS, parts)
        loop = build_trainer(
            build_quick_parameters(), str(tmp_path / str(parts)), accumulation_steps=parts
        )
        with suppress_expected_warnings():
            loop.trainer.fit(
                NetworkModule(network, build_quick_parameters(), accumulation_steps=parts),
                datamodule=data,
            )
        assert loop.trainer.global_step == 2 * 8
        networks.append(network)
    for whole, summed in zip(*(each.parameters() for each in networks), strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-3, atol=1e-4)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_gpu_windows_equal_host_windows(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept there, or sent batch by batch where they do not fit."""
    monkeypatch.setattr("ml.windows.MAX_DEVICE_MEMORY_SHARE", share)
    known, places = fleets.build_fleet(fleets.simulate_readings_kwh(4, 60)), torch.arange(240)
    on_gpu, host = (FleetWindows(known, 45, MIN_READINGS) for _ in range(2))
    on_gpu.move_to_device(torch.device("cuda"))
    assert on_gpu.placement == ("device" if share else "streamed")
    for one, other in zip(on_gpu.gather_windows(places), host.gather_windows(places), strict=True):
        assert one.is_cuda
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=0, equal_nan=True)
