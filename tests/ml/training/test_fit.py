"""Training learns from the right nights alone, keeps its best weights, and says why it ended."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ml.errors import UserError
from ml.fleet import Fleet, usual_levels_kwh
from ml.scoring.detector import Detector, DetectorConfig
from ml.training.data import build_data_module
from ml.training.fit import FitResult, compute_validation_error_kwh, train_and_calibrate
from ml.training.parameters import FitParameters
from ml.training.split import is_held_out
from ml.windows import FleetWindows
from tests import fleets
from tests.training_fixtures import (
    MIN_READINGS,
    build_quick_parameters,
    have_equal_weights,
    limit_address_space,
)

HOUSEHOLDS, NIGHTS = 12, 60
QUICK_PARAMETERS = FitParameters(model=fleets.TEST_MODEL, max_epochs=3, batch_size=64)
ENORMOUS_KWH = 3e38


@pytest.fixture(scope="module")
def readings() -> np.ndarray:
    kwh = fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS)
    kwh[1, 4, 10:13] = np.nan
    kwh[2, 7:9] = np.nan
    return kwh


def train_on_fleet(fleet: Fleet, parameters: FitParameters, checkpoint_dir: Path) -> FitResult:
    return train_and_calibrate(fleet, parameters, MIN_READINGS, str(checkpoint_dir))


@pytest.mark.parametrize(
    ("held_out_is_silent", "purpose"), [(True, "held out"), (False, "to learn from")]
)
def test_training_without_usable_readings_raises_user_error(
    held_out_is_silent: bool, purpose: str, readings: np.ndarray, tmp_path: Path
) -> None:
    fleet = fleets.build_fleet(readings.copy())
    fleet.kwh[is_held_out(fleet.household_ids) == held_out_is_silent] = np.nan
    message = f"no household {purpose} has 36 readings on a night 2013-06-03 to"
    with pytest.raises(UserError, match=message):
        train_and_calibrate(fleet, QUICK_PARAMETERS, MIN_READINGS, str(tmp_path))


@pytest.mark.seed_fault
def test_held_out_households_do_not_influence_scales_or_weights(
    readings: np.ndarray, tmp_path: Path
) -> None:
    """A random split of household-nights, or scales of a batch, would leak held-out nights."""
    fleet = fleets.build_fleet(readings)
    held_out = is_held_out(fleet.household_ids)
    other = fleets.build_fleet(readings.copy())
    other.kwh[held_out] *= np.linspace(1, 9, 48, dtype=np.float32)
    one, two = (
        train_and_calibrate(fleet, QUICK_PARAMETERS, MIN_READINGS, str(tmp_path / name)).detector
        for name, fleet in (("one", fleet), ("other", other))
    )
    level_kwh = usual_levels_kwh(fleet, MIN_READINGS)
    learned = np.log1p(fleet.kwh / level_kwh[:, :, None])[~held_out]
    is_usable = np.isfinite(readings[~held_out]).sum(axis=2) >= MIN_READINGS
    mean = np.nanmean(learned[is_usable], axis=0)
    np.testing.assert_allclose(one.network.reading_standardizer.mean, mean, rtol=1e-5)
    assert have_equal_weights(one.network.state_dict(), two.network.state_dict())
    assert not torch.equal(one.calibration.reference_scores, two.calibration.reference_scores)


@pytest.mark.seed_fault
def test_network_output_does_not_depend_on_batch(readings: np.ndarray) -> None:
    """Standardised by its own batch, a single night would be all zeros."""
    fleet = fleets.build_fleet(readings)
    network = fleets.build_detector(fleet).network.double()
    windows = FleetWindows(fleet, 0, MIN_READINGS).gather_windows(torch.arange(100))
    alone, among = (
        network(type(windows)(*(part[:rows].double() for part in windows))) for rows in (1, 100)
    )
    torch.testing.assert_close(alone.log_odds[0], among.log_odds[0], rtol=1e-12, atol=0)


def test_missing_readings_leave_weights_finite(tmp_path: Path) -> None:
    gappy = fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS)
    gappy[np.random.default_rng(0).random(gappy.shape) < 0.15] = np.nan
    detector = train_and_calibrate(
        fleets.build_fleet(gappy), QUICK_PARAMETERS, MIN_READINGS, str(tmp_path)
    ).detector
    assert all(torch.isfinite(value).all() for value in detector.state_dict().values())


@pytest.mark.seed_fault
def test_best_epoch_weights_are_restored(tmp_path: Path) -> None:
    """Two households over 28 nights are overfitted, and the validation loss rises again."""
    overfitting = FitParameters(
        model=fleets.TEST_MODEL, max_epochs=40, patience=40, batch_size=8, learning_rate=0.03
    )
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(2, 28))
    result = train_and_calibrate(fleet, overfitting, MIN_READINGS, str(tmp_path))
    losses = [epoch["val_loss"] for epoch in result.epoch_metrics]
    data = build_data_module(result.detector.network, fleet, overfitting, MIN_READINGS)
    loss = result.detector.network.loss(data.windows.gather_windows(data.validation_indices)).item()
    assert losses[result.best_epoch] == min(losses) < 0.97 * losses[-1]
    assert loss == pytest.approx(min(losses), rel=1e-4)


def test_weights_are_reproducible_from_seed(readings: np.ndarray, tmp_path: Path) -> None:
    fleet = fleets.build_fleet(readings)
    one, again, other = (
        train_and_calibrate(
            fleet,
            QUICK_PARAMETERS.model_copy(update={"seed": seed}),
            MIN_READINGS,
            str(tmp_path / str(place)),
        ).detector.state_dict()
        for place, seed in enumerate((1, 1, 2))
    )
    assert have_equal_weights(one, again)
    assert not have_equal_weights(one, other)


def test_resuming_an_ended_training_trains_no_further(readings: np.ndarray, tmp_path: Path) -> None:
    """Killed between its last checkpoint and its registration, it must not train on."""
    fleet = fleets.build_fleet(readings)
    impatient = FitParameters(
        model=fleets.TEST_MODEL, max_epochs=30, patience=1, batch_size=16, learning_rate=0.3
    )
    ended = train_and_calibrate(fleet, impatient, MIN_READINGS, str(tmp_path))
    last = str(tmp_path / "last.ckpt")
    again = train_and_calibrate(fleet, impatient, MIN_READINGS, str(tmp_path), resume_from=last)
    assert len(ended.epoch_metrics) < 30
    assert again.epoch_metrics == ended.epoch_metrics
    assert have_equal_weights(again.detector.state_dict(), ended.detector.state_dict())


def test_validation_error_is_mean_absolute_error_in_kwh() -> None:
    """A detector that expects 0 everywhere is off by the reading itself."""
    fleet = fleets.build_fleet(np.full((2, 3, 48), 0.5, dtype=np.float32))
    fleet.kwh[0, 2, :40] = np.nan  # too few readings: left out
    fleet.kwh[1, 2, 0] = np.nan
    detector = Detector(DetectorConfig(model=fleets.TEST_MODEL))
    torch.nn.init.zeros_(detector.network.decoder[-1].weight)
    torch.nn.init.zeros_(detector.network.decoder[-1].bias)
    assert compute_validation_error_kwh(
        detector, fleet, slice(1, 3), MIN_READINGS
    ) == pytest.approx(0.5)


def test_infinite_reading_is_refused_with_household_and_night(tmp_path: Path) -> None:
    kwh = fleets.simulate_readings_kwh(12, 60)
    kwh[3, 5, 7] = np.inf
    with pytest.raises(UserError, match="an infinite reading of MAC000003 on 2013-06-08"):
        train_on_fleet(fleets.build_fleet(kwh), build_quick_parameters(), tmp_path)


@pytest.mark.parametrize(
    ("in_held_out", "message"),
    [
        (
            True,
            "training stopped: the validation loss of epoch 1 is not finite; .* 3e\\+38 kWh, at",
        ),
        (False, "training broke: calibration.half_hour_error_scale of the detector"),
    ],
)
def test_detector_with_non_finite_state_is_refused(
    in_held_out: bool, message: str, tmp_path: Path
) -> None:
    """A reading that overflows: of a held-out household, and of one that scales are taken from."""
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(24, 70))
    households = np.flatnonzero(is_held_out(fleet.household_ids) == in_held_out)
    fleet.kwh[households[0], 69, 10] = ENORMOUS_KWH
    with np.errstate(over="ignore"), pytest.raises(UserError, match=message):
        train_on_fleet(fleet, build_quick_parameters(), tmp_path)


def test_out_of_memory_doubles_gradient_accumulation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The network whose batches take most; it has no statistics that parts would change."""
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(24, 60))
    parameters = build_quick_parameters("transformer", batch_size=512, max_epochs=1)
    with limit_address_space(400):
        result = train_on_fleet(fleet, parameters, tmp_path)
    assert result.resources.accumulation_steps > 1
    assert result.resources.device_batch_size == 512 // result.resources.accumulation_steps
    assert "out of memory with 512 household-nights at once" in caplog.text
    assert len(result.epoch_metrics) == 1
