"""Every network that a file names keeps what training, scoring and registering rely on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from ml.fleet import usual_levels_kwh
from ml.models import MODEL_NAMES, NETWORK_MODULES, import_network_class
from ml.models.base import ForecastingNetwork, Network, Windows, nan_mean_square
from ml.models.transformer import build_positional_encoding
from ml.scoring.detector import Detector, DetectorConfig
from ml.scoring.tables import score_fleet
from ml.training.fit import train_and_calibrate
from ml.training.lightning_module import NetworkModule
from ml.training.parameters import FitParameters
from ml.windows import FleetWindows
from tasks.model_files import load_detector, save_detector
from tasks.training_job import TrainParameters
from tests import fleets
from tests.training_fixtures import have_equal_weights

SEED_MODELS = {"conditional_autoencoder", "batchnorm_autoencoder", "lstm", "transformer"}
HOUSEHOLDS, NIGHTS, MIN_READINGS = 4, 30, 36
every_model = pytest.mark.parametrize("model", MODEL_NAMES)


def build_network(model: str) -> Network:
    """A network in double precision that has learned nothing but its scales."""
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS))
    return fleets.build_untrained_detector(fleet, model).network.double().eval()


def build_windows(network: Network, n_nights: int = 6, seed: int = 0) -> Windows:
    """The last nights of a household in double precision, gaps among them."""
    kwh = fleets.simulate_readings_kwh(1, NIGHTS, seed)
    kwh[0, -3, 5:11], kwh[0, -6] = np.nan, np.nan
    windows = fleets.build_windows(fleets.build_fleet(kwh), network.context_nights)
    return Windows(*(part[-n_nights:].double() for part in windows))


def test_seed_models_are_available() -> None:
    assert set(MODEL_NAMES) >= SEED_MODELS


@every_model
def test_model_module_defines_network_config_and_recipe(model: str) -> None:
    kind = import_network_class(model)
    assert (kind.__module__, kind.__name__) == NETWORK_MODULES[model]
    network = kind(kind.config_class())
    assert sum(weight.numel() for weight in network.parameters()) > 0
    parameters = FitParameters(model=model)
    assert parameters.model_dump(exclude={"model", "seed"}) == kind.recipe.model_dump()
    assert FitParameters(model=model, max_epochs=1).learning_rate == kind.recipe.learning_rate


def test_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="no model 'crystal_ball'; there are batchnorm_auto"):
        FitParameters(model="crystal_ball")


def test_parameter_schema_lists_models_as_enum() -> None:
    schema = TrainParameters.model_json_schema()["properties"]["model"]
    assert (schema["type"], schema["enum"]) == ("string", list(MODEL_NAMES))


@every_model
def test_network_output_has_shape_and_missing_half_hours_of_input(model: str) -> None:
    network = build_network(model)
    windows = build_windows(network)
    judged = network(windows)
    assert judged.expected_kwh.shape == judged.half_hour_log_odds.shape == (6, 48)
    assert judged.log_odds.shape == (6,)
    assert torch.isfinite(judged.expected_kwh).all()
    assert torch.isfinite(judged.log_odds).all()
    missing = windows.kwh[:, -1].isnan()
    assert torch.equal(judged.half_hour_log_odds.isnan(), missing)


@every_model
@torch.inference_mode()
def test_network_output_does_not_depend_on_batch_or_order(model: str) -> None:
    """As in service: readings in single precision, a network in double, to the last single bit."""
    network = build_network(model)
    windows = Windows(*(part.float() for part in build_windows(network, n_nights=23)))
    among = network(windows)
    order = torch.from_numpy(np.random.default_rng(0).permutation(23))
    shuffled = network(Windows(*(part[order] for part in windows)))
    alone = network(Windows(*(part[3:4] for part in windows)))
    for one, places in ((shuffled, order), (alone, torch.tensor([3]))):
        for ours, theirs in zip(one, among, strict=True):
            torch.testing.assert_close(
                ours.float(), theirs[places].float(), rtol=0, atol=0, equal_nan=True
            )


@every_model
def test_missing_half_hours_leave_loss_and_gradients_finite(model: str) -> None:
    """An unknown reading is read as NaN or as nothing: no weight may become NaN by it."""
    network = build_network(model).float().train()
    torch.manual_seed(0)
    loss = network.loss(Windows(*(part.float() for part in build_windows(network))))
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@every_model
def test_training_steps_lower_the_loss(model: str) -> None:
    network = build_network(model).float()
    windows = Windows(*(part.float() for part in build_windows(network, n_nights=16)))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)

    def loss() -> Tensor:
        torch.manual_seed(0)
        return network.loss(windows)

    before = loss().item()
    for _ in range(12):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < before


@every_model
def test_model_trains_scores_and_loads_from_disk(model: str, tmp_path: Path) -> None:
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS))
    quick = FitParameters(model=model, max_epochs=1, batch_size=32, epoch_size=64)
    fitted = train_and_calibrate(fleet, quick, MIN_READINGS, str(tmp_path / "fit")).detector
    save_detector(fitted, tmp_path)
    loaded = load_detector(tmp_path)
    assert loaded.config == fitted.config
    assert have_equal_weights(loaded.state_dict(), fitted.state_dict())
    night = score_fleet(loaded, fleet, MIN_READINGS)
    assert np.isfinite(night.score).all()
    assert ((night.p_value > 0) & (night.p_value <= 1)).all()
    none = np.zeros(NIGHTS, dtype=bool)
    assert np.isnan(loaded.compute_log_odds(fleet, none, MIN_READINGS)).all()


def test_custom_network_sizes_survive_serialization() -> None:
    config = DetectorConfig(model="batchnorm_autoencoder", network={"widths": (10,), "latent": 3})
    again = DetectorConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert have_equal_weights(Detector(again).state_dict(), Detector(config).state_dict()) is False
    assert json.loads(config.model_dump_json())["network"]["widths"] == [10]
    with pytest.raises(ValidationError, match="hidden"):
        DetectorConfig(model="lstm", network={"hidden": 3})


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        # 63 x 8 + 8 + 8 x 2 + 2 + 17 x 8 + 8 + 8 x 48 + 48
        ("conditional_autoencoder", 1_106),
        # 48-64-32-16-8: 3,136 + 2,080 + 528 + 136, norms of 2 x (64 + 32 + 16) = 224;
        # 8-16-32-64-48: 144 + 544 + 2,112 + 3,120, and 224
        ("batchnorm_autoencoder", 12_248),
        # layer 1: 256 x (1 + 64 + 2), layer 2: 256 x (64 + 64 + 2), head 64 x 12 + 12
        ("lstm", 51_212),
        # projection 128; a layer: 4 x 64 x 65 + 64 x 257 + 256 + 64 x 1 + 2 x 128; head 780
        ("transformer", 150_860),
    ],
)
def test_networks_have_expected_parameter_counts(model: str, weights: int) -> None:
    network = import_network_class(model)(import_network_class(model).config_class())
    assert sum(weight.numel() for weight in network.parameters()) == weights


class PositionForecaster(ForecastingNetwork):
    """Forecasts the places of the half-hours that follow, from the place of the last one."""

    def encode_context(self, context: Tensor) -> Tensor:
        return context

    def forecast(self, context: Tensor) -> Tensor:
        return context[:, -1:] + torch.arange(1, self.horizon_half_hours + 1)


def test_each_block_is_forecast_from_preceding_half_hours() -> None:
    places = torch.arange(4 * 48.0).view(1, 4, 48)
    assert torch.equal(
        PositionForecaster().predict_standardized(places, torch.zeros(1, 15)), places[:, -1]
    )


def test_forecast_does_not_depend_on_forecast_half_hours() -> None:
    network = build_network("lstm")
    readings = torch.randn(1, 4, 48, dtype=torch.float64)
    other = readings.clone()
    other[:, -1, 36:] += 1
    conditions = torch.zeros(1, 15)
    assert torch.equal(
        network.predict_standardized(readings, conditions),
        network.predict_standardized(other, conditions),
    )
    other[:, -1, 30] += 1
    changed = network.predict_standardized(readings, conditions) != network.predict_standardized(
        other, conditions
    )
    assert changed[0].tolist() == [False] * 36 + [True] * 12


def test_positional_encoding_has_falling_frequencies() -> None:
    positions = build_positional_encoding(100, 64)
    assert positions.shape == (100, 64)
    assert positions[0].tolist() == [0.0, 1.0] * 32
    assert positions[7, :2].tolist() == pytest.approx([np.sin(7), np.cos(7)], rel=1e-5)
    assert positions[7, 62].item() == pytest.approx(np.sin(7 / 10_000 ** (62 / 64)), rel=1e-4)


@given(
    nights=st.integers(1, 6),
    context_nights=st.integers(0, 8),
    picks=st.lists(st.integers(0, 10**6), max_size=8),
)
@settings(max_examples=40, deadline=None)
def test_window_holds_night_and_its_context_nights(
    nights: int, context_nights: int, picks: list[int]
) -> None:
    """One gather over all households: none may see the nights of its neighbour."""
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(3, nights))
    fleet = replace(fleet, conditions=np.random.default_rng(0).random((3, nights, 15), np.float32))
    places = torch.tensor([pick % (3 * nights) for pick in picks], dtype=torch.long)
    taken = FleetWindows(fleet, context_nights, MIN_READINGS).gather_windows(places)
    level = usual_levels_kwh(fleet, MIN_READINGS)
    assert taken.kwh.shape == (len(picks), context_nights + 1, 48)
    for row, (h, d) in enumerate(zip(*np.divmod(places.numpy(), nights), strict=True)):
        before = np.full((context_nights, 48), np.nan)
        past = np.concatenate((before, fleet.kwh[h, : d + 1]))[-context_nights - 1 :]
        np.testing.assert_array_equal(taken.kwh[row], past)
        np.testing.assert_array_equal(taken.conditions[row], fleet.conditions[h, d])
        assert taken.level[row].item() == level[h, d]


@given(st.lists(st.one_of(st.just(np.nan), st.floats(-9, 9)), min_size=1, max_size=9))
def test_mean_square_ignores_missing_values(values: list[float]) -> None:
    found = nan_mean_square(torch.tensor(values, dtype=torch.float64)).item()
    there = [value**2 for value in values if np.isfinite(value)]
    assert found == pytest.approx(np.mean(there) if there else 0.0)


def test_training_step_randomness_depends_on_seed_and_step() -> None:
    """A training that was stopped draws in each step what it would have drawn."""
    network = build_network("lstm").train()
    module = NetworkModule(network, FitParameters(model="lstm", seed=3))
    module.log = lambda *_, **__: None
    torch.manual_seed(1)
    first = module.training_step(build_windows(network), 0)
    torch.manual_seed(2)
    assert torch.equal(module.training_step(build_windows(network), 0), first)
