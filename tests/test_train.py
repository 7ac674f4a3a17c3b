"""Training learns from the right nights alone, keeps its best weights, and can be stopped."""

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ml.errors import UserError
from ml.fleet import scale_fleet
from ml.scoring.detector import Detector, DetectorConfig
from ml.training.data import WindowBatches, build_data_module
from ml.training.fit import compute_validation_error_kwh, train_and_calibrate
from ml.training.parameters import FitParameters
from ml.training.split import is_held_out, select_calibration_nights
from ml.windows import FleetWindows
from tasks import paths, storage
from tasks.fleet_loading import load_fleet
from tasks.model_files import load_detector
from tasks.provenance import fingerprint_fleet
from tasks.training import TrainParameters, fit_detector, resolve_last_night
from tests import fleets
from tests.lake_fixtures import copy_mlflow_database, write_lake

MIN_READINGS = 36
HOUSEHOLDS, NIGHTS = 12, 60
QUICK_PARAMETERS = FitParameters(model=fleets.TEST_MODEL, max_epochs=3, batch_size=64)
MARKED_LOSS = -1.0


@pytest.fixture(scope="module")
def readings() -> np.ndarray:
    kwh = fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS)
    kwh[1, 4, 10:13] = np.nan
    kwh[2, 7:9] = np.nan
    return kwh


def get_weights(detector: Detector) -> dict[str, Tensor]:
    return detector.state_dict()


def have_equal_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


def test_held_out_eighth_is_stable_as_fleet_grows() -> None:
    ids = [f"MAC{i:06d}" for i in range(4000)]
    apart = is_held_out(ids)
    # 4,000 draws of 1/8: a mean of 500, a standard error of 21.
    assert 400 < apart.sum() < 600
    assert is_held_out(ids[:500]).tolist() == apart[:500].tolist()
    assert is_held_out(ids[::-1]).tolist() == apart[::-1].tolist()


def test_small_fleet_holds_out_one_household() -> None:
    trained = [
        f"MAC{i:06d}" for i in np.flatnonzero(~is_held_out([f"MAC{i:06d}" for i in range(9)]))
    ]
    assert is_held_out(trained).sum() == 1
    assert is_held_out([]).tolist() == []


def test_calibration_nights_are_last_four_weeks_or_a_quarter() -> None:
    nights = [fleets.FIRST_NIGHT + timedelta(days=day) for day in range(365)]
    assert select_calibration_nights(nights) == slice(337, 365)
    assert select_calibration_nights(nights[:60]) == slice(45, 60)


@pytest.mark.parametrize("count", [0, 27])
def test_too_few_nights_raise_with_required_count(count: int) -> None:
    with pytest.raises(UserError, match=r"needs 28 nights or more, the lake holds (none|27 up to)"):
        select_calibration_nights(
            [fleets.FIRST_NIGHT + timedelta(days=day) for day in range(count)]
        )


@pytest.mark.parametrize(("silent", "purpose"), [(True, "held out"), (False, "to learn from")])
def test_training_without_usable_readings_raises_user_error(
    silent: bool, purpose: str, readings: np.ndarray, tmp_path: Path
) -> None:
    known = fleets.build_fleet(readings.copy())
    known.kwh[is_held_out(known.household_ids) == silent] = np.nan
    said = f"no household {purpose} has 36 readings on a night 2013-06-03 to"
    with pytest.raises(UserError, match=said):
        train_and_calibrate(known, QUICK_PARAMETERS, MIN_READINGS, str(tmp_path))


@pytest.mark.seed_fault
def test_held_out_households_do_not_influence_scales_or_weights(
    readings: np.ndarray, tmp_path: Path
) -> None:
    """A random split of rows, or scales of the batch at hand, would see the others' nights."""
    known = fleets.build_fleet(readings)
    apart = is_held_out(known.household_ids)
    other = fleets.build_fleet(readings.copy())
    other.kwh[apart] *= np.linspace(1, 9, 48, dtype=np.float32)
    one, two = (
        train_and_calibrate(fleet, QUICK_PARAMETERS, MIN_READINGS, str(tmp_path / name)).detector
        for name, fleet in (("as-is", known), ("other", other))
    )
    seen = scale_fleet(known, MIN_READINGS).log_readings[~apart]
    rows = np.isfinite(readings[~apart]).sum(axis=2) >= MIN_READINGS
    np.testing.assert_allclose(one.network.reading_standardizer.mean, np.nanmean(seen[rows], axis=0), rtol=1e-5)
    assert have_equal_weights(one.network.state_dict(), two.network.state_dict())
    assert not torch.equal(one.calibration.reference_scores, two.calibration.reference_scores)


@pytest.mark.seed_fault
def test_network_output_does_not_depend_on_batch(readings: np.ndarray) -> None:
    """z-scores of the batch being scored would make zeros of a single night."""
    known = fleets.build_fleet(readings)
    network = fleets.build_detector(known).network.double()
    windows = FleetWindows(known, 0, MIN_READINGS).gather_windows(torch.arange(100))
    alone, among = (
        network(type(windows)(*(part[:rows].double() for part in windows))) for rows in (1, 100)
    )
    torch.testing.assert_close(alone.log_odds[0], among.log_odds[0], rtol=1e-12, atol=0)


def test_epoch_draws_each_household_night_once_in_reproducible_order(readings: np.ndarray) -> None:
    known = fleets.build_fleet(readings)
    known.conditions[..., 0] = np.arange(HOUSEHOLDS * NIGHTS).reshape(HOUSEHOLDS, NIGHTS)
    windows, places = FleetWindows(known, 0, MIN_READINGS), torch.arange(5, 15)
    batches = WindowBatches(windows, places, batch_size=4, epoch_size=100, seed=7)
    orders = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        orders.append(torch.cat([batch.conditions[:, 0] for batch in batches]).tolist())
    assert len(batches) == 3
    assert sorted(orders[0]) == places.tolist()
    assert orders[0] == orders[2] != orders[1]


def test_missing_readings_leave_weights_finite(tmp_path: Path) -> None:
    gappy = fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS)
    gappy[np.random.default_rng(0).random(gappy.shape) < 0.15] = np.nan
    detector = train_and_calibrate(
        fleets.build_fleet(gappy), QUICK_PARAMETERS, MIN_READINGS, str(tmp_path)
    ).detector
    assert all(torch.isfinite(value).all() for value in get_weights(detector).values())


@pytest.mark.seed_fault
def test_best_epoch_weights_are_restored(tmp_path: Path) -> None:
    """Two homes over 14 nights are learned by heart, and the validation loss rises again."""
    by_heart = FitParameters(
        model=fleets.TEST_MODEL, max_epochs=40, patience=40, batch_size=8, learning_rate=0.03
    )
    known = fleets.build_fleet(fleets.simulate_readings_kwh(2, 28))
    result = train_and_calibrate(known, by_heart, MIN_READINGS, str(tmp_path))
    losses = [epoch["val_loss"] for epoch in result.epoch_metrics]
    data = build_data_module(result.detector.network, known, by_heart, MIN_READINGS)
    loss = result.detector.network.loss(data.windows.gather_windows(data.validation_indices)).item()
    assert losses[result.best_epoch] == min(losses) < 0.97 * losses[-1]
    assert loss == pytest.approx(min(losses), rel=1e-4)


def test_weights_are_reproducible_from_seed(readings: np.ndarray, tmp_path: Path) -> None:
    known = fleets.build_fleet(readings)
    one, again, other = (
        get_weights(
            train_and_calibrate(
                known,
                QUICK_PARAMETERS.model_copy(update={"seed": seed}),
                MIN_READINGS,
                str(tmp_path / str(place)),
            ).detector
        )
        for place, seed in enumerate((1, 1, 2))
    )
    assert have_equal_weights(one, again)
    assert not have_equal_weights(one, other)


def test_resuming_an_ended_training_trains_no_further(readings: np.ndarray, tmp_path: Path) -> None:
    """Killed between its last checkpoint and its registration, it must not train on."""
    known = fleets.build_fleet(readings)
    impatient = FitParameters(
        model=fleets.TEST_MODEL, max_epochs=30, patience=1, batch_size=16, learning_rate=0.3
    )
    ended = train_and_calibrate(known, impatient, MIN_READINGS, str(tmp_path))
    last = str(tmp_path / "last.ckpt")
    again = train_and_calibrate(known, impatient, MIN_READINGS, str(tmp_path), resume_from=last)
    assert len(ended.epoch_metrics) < 30
    assert again.epoch_metrics == ended.epoch_metrics
    assert have_equal_weights(get_weights(again.detector), get_weights(ended.detector))


def test_validation_error_is_mean_absolute_error_in_kwh() -> None:
    """A detector that expects 0 everywhere is off by the reading itself."""
    known = fleets.build_fleet(np.full((2, 3, 48), 0.5, dtype=np.float32))
    known.kwh[0, 2, :40] = np.nan  # too few readings: left out
    known.kwh[1, 2, 0] = np.nan
    detector = Detector(DetectorConfig(model=fleets.TEST_MODEL))
    torch.nn.init.zeros_(detector.network.decoder[-1].weight)
    torch.nn.init.zeros_(detector.network.decoder[-1].bias)
    assert compute_validation_error_kwh(
        detector, known, slice(1, 3), MIN_READINGS
    ) == pytest.approx(0.5)


def test_load_fleet_omits_households_without_readings(home: Path) -> None:
    kwh = fleets.simulate_readings_kwh(3, 4)
    kwh[1] = np.nan
    write_lake(kwh)
    kept = load_fleet(*storage.read_night_range(), only_reporting=True)
    assert kept.household_ids == ["MAC000000", "MAC000002"]
    assert kept.kwh.shape == (2, 4, 48)


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
    command = (
        "from tasks.training import *; registry.prepare_store = lambda: None; "  # saves MLflow's import
        f"fit_detector(TrainParameters.model_validate_json({parameters.model_dump_json()!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", command], cwd=Path(__file__).parents[1])
    while process.poll() is None and not list(home.glob("training/*/checkpoints/epoch=3.ckpt")):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    mark_checkpoint(next(home.glob("training/*/checkpoints/last.ckpt")))
    resumed = fit_detector(parameters)
    found = load_detector(paths.training_dir(resumed.key))
    monkeypatch.setenv("METERWATCH_HOME", str(tmp_path / "undisturbed"))
    write_lake(kwh)
    copy_mlflow_database(empty_store)
    undisturbed = fit_detector(parameters)
    assert undisturbed.key == resumed.key
    assert resumed.epoch_metrics[0]["train_loss"] == MARKED_LOSS
    assert undisturbed.epoch_metrics[1:] == resumed.epoch_metrics[1:]
    assert have_equal_weights(
        get_weights(load_detector(paths.training_dir(undisturbed.key))), get_weights(found)
    )


def test_last_training_night_is_limited_to_lake(home: Path) -> None:
    write_lake(fleets.simulate_readings_kwh(2, 40))
    assert resolve_last_night(TrainParameters()) == fleets.FIRST_NIGHT + timedelta(days=39)
    late = TrainParameters(until=fleets.FIRST_NIGHT + timedelta(days=99))
    assert resolve_last_night(late) == fleets.FIRST_NIGHT + timedelta(days=39)
    with pytest.raises(UserError, match="the lake begins on 2013-06-03, after 2013-06-02"):
        resolve_last_night(TrainParameters(until=fleets.FIRST_NIGHT - timedelta(days=1)))


@pytest.mark.seed_fault
def test_fleet_fingerprint_depends_on_readings() -> None:
    # The seed kept what it had computed under the shape of the array alone.
    one, other = (
        fleets.build_fleet(fleets.simulate_readings_kwh(3, 5, seed=1)),
        fleets.build_fleet(fleets.simulate_readings_kwh(3, 5, seed=2)),
    )
    assert fingerprint_fleet(one) != fingerprint_fleet(other)
    assert fingerprint_fleet(one) == fingerprint_fleet(
        fleets.build_fleet(fleets.simulate_readings_kwh(3, 5, seed=1))
    )
