"""A training step is skipped if it is not finite, and the same in one part or several."""

from pathlib import Path

import pytest
import torch

from ml.training.data import build_data_module
from ml.training.fit import train_and_calibrate
from ml.training.lightning_module import NetworkModule
from ml.training.trainer import build_trainer, suppress_expected_warnings
from tests import fleets
from tests.training_fixtures import MIN_READINGS, build_quick_parameters

ENORMOUS_KWH = 3e38


def test_non_finite_step_is_skipped_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A reading that overflows spoils one batch an epoch, but neither weights nor statistics."""
    kwh = fleets.simulate_readings_kwh(24, 60)
    kwh[1, 59, 10] = ENORMOUS_KWH  # in the windows of the last night only
    parameters = build_quick_parameters("history_network", batch_size=32, epoch_size=2048)
    result = train_and_calibrate(fleets.build_fleet(kwh), parameters, MIN_READINGS, str(tmp_path))
    assert [epoch["skipped_steps"] for epoch in result.epoch_metrics] == [1, 1]
    assert "1 of 44 steps of epoch 2 had a loss or gradients that are not finite" in caplog.text
    assert "3e+38 kWh, at MAC000001 on 2013-08-01" in caplog.text
    assert all(value.isfinite().all() for value in result.detector.state_dict().values())


def test_gradient_accumulation_equals_whole_batch(tmp_path: Path) -> None:
    """Same rows, same number of steps, gradients added up; this network draws nothing."""
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(24, 60))
    networks = []
    for parts in (1, 4):
        network = fleets.build_untrained_detector(fleet).network
        data = build_data_module(network, fleet, build_quick_parameters(), MIN_READINGS, parts)
        setup = build_trainer(
            build_quick_parameters(), str(tmp_path / str(parts)), accumulation_steps=parts
        )
        with suppress_expected_warnings():
            setup.trainer.fit(
                NetworkModule(network, build_quick_parameters(), accumulation_steps=parts),
                datamodule=data,
            )
        assert setup.trainer.global_step == 2 * 8
        networks.append(network)
    for whole, summed in zip(*(each.parameters() for each in networks), strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-3, atol=1e-4)
