"""Training steps are measured on a copy, and in every precision that the device has."""

import copy

import polars as pl
import pytest
import torch

from ml.models import MODEL_NAMES
from ml.training import speed
from ml.windows import FleetWindows
from tests import fleets
from tests.training_fixtures import have_equal_weights


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "BATCH_SIZES", (2, 8))
    monkeypatch.setattr(speed, "MIN_TIMING_S", 0.001)
    monkeypatch.setattr(speed, "MAX_STEP_S", 60.0)


def measure_model(model: str) -> tuple[torch.nn.Module, pl.DataFrame]:
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(2, 60))
    network = fleets.build_untrained_detector(fleet, model).network
    windows = FleetWindows(fleet, network.context_nights, min_readings=36)
    return network, speed.measure_training_speed(network, windows, torch.arange(100, 105))


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_training_speed_is_measured_for_every_network(model: str, briefly: None) -> None:
    _, table = measure_model(model)
    whole = table.filter(precision="32-true")
    assert whole["batch_size"].to_list() == [2, 8]
    # A CPU may lack an LSTM in bfloat16; what it can do it does for every batch size.
    expected = {"32-true"} if model == "lstm" else set(speed.list_supported_precisions())
    assert set(table["precision"]) >= expected
    assert (table["nights_per_second"] > 0).all()
    # Four times the nights keep about four times the tensors: what is not of a night is small.
    small, large = whole["saved_tensors_mb"]
    assert 3 < large / small <= 4.01


def test_mixed_precision_saves_fewer_tensors(briefly: None) -> None:
    _, table = measure_model("batchnorm_autoencoder")
    kept = {key[0]: rows["saved_tensors_mb"] for key, rows in table.group_by("precision")}
    (full, mixed) = (kept[name][1] - kept[name][0] for name in ("32-true", "bf16-mixed"))
    # What grows with the batch, and is not the weights' own copies in bfloat16.
    assert mixed < 0.8 * full


def test_measuring_changes_neither_weights_nor_random_state(briefly: None) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(2, 60))
    network = fleets.build_untrained_detector(fleet).network.eval()
    before = copy.deepcopy(network.state_dict())
    torch.set_rng_state(state)
    speed.measure_training_speed(
        network, FleetWindows(fleet, 0, min_readings=36), torch.arange(100)
    )
    assert have_equal_weights(network.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    assert all(weight.grad is None for weight in network.parameters())


def test_long_step_ends_measurement_of_its_precision(
    briefly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "MAX_STEP_S", 0.0)
    _, table = measure_model(fleets.TEST_MODEL)
    assert set(table["batch_size"]) == {2}
    assert set(table["precision"]) == set(speed.list_supported_precisions())
