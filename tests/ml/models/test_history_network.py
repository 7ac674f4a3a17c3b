"""The history network: features in, log odds out, and what of it is stored."""

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ml.models.base import FIRST_RELEASE_SUBMODULES, Windows
from ml.models.history import network as history_network
from ml.models.history.config import HistoryFeatureConfig
from ml.models.history.corruption import CORRUPTION_FAMILIES
from ml.models.history.features import HALF_HOUR_FEATURES, NIGHT_FEATURES
from ml.models.history.network import HistoryNetwork, HistoryNetworkConfig
from tests import fleets

SMALL = HistoryNetworkConfig(width=16, blocks=1, channels=4)


@pytest.fixture
def network() -> HistoryNetwork:
    torch.manual_seed(0)
    return HistoryNetwork(SMALL)


@pytest.fixture(scope="module")
def windows() -> Windows:
    kwh = fleets.simulate_readings_kwh(2, 60)
    kwh[0, -3, 5:11] = np.nan
    kwh[0, -6] = np.nan
    every = fleets.build_windows(fleets.build_fleet(kwh), HistoryNetwork.context_nights)
    return Windows(*(part[torch.arange(120) % 60 >= 52] for part in every))


def compute_loss(network: HistoryNetwork, windows: Windows) -> torch.Tensor:
    torch.manual_seed(1)
    return network.loss(windows)


def test_network_names_its_features_and_takes_their_number_as_its_width(
    network: HistoryNetwork,
) -> None:
    names = network.feature_names()
    assert names == {"half_hour": HALF_HOUR_FEATURES, "night": NIGHT_FEATURES}
    assert len(network.half_hour_scale.running_mean) == len(names["half_hour"])
    assert len(network.night_scale.running_mean) == len(names["night"])
    assert network.night_head.out_features == 1 + len(CORRUPTION_FAMILIES)


def test_configuration_of_first_release_loads_with_the_default_features() -> None:
    config = HistoryNetworkConfig.model_validate(
        {"width": 32, "blocks": 1, "channels": 4, "dropout": 0.2}
    )
    assert config.features == HistoryFeatureConfig()


def test_feature_numbers_survive_storage_and_refuse_unknown_ones() -> None:
    config = HistoryNetworkConfig(features=HistoryFeatureConfig(high_z=2.0))
    assert HistoryNetworkConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="higher_z"):
        HistoryFeatureConfig.model_validate({"higher_z": 2.0})


def test_every_feature_number_says_its_unit_and_origin() -> None:
    for name, field in HistoryFeatureConfig.model_fields.items():
        assert len(field.description or "") > 40, name


@torch.inference_mode()
def test_output_follows_the_stored_feature_numbers(
    network: HistoryNetwork, windows: Windows
) -> None:
    other = HistoryNetwork(
        SMALL.model_copy(update={"features": HistoryFeatureConfig(log_floor_share=0.2)})
    )
    other.load_state_dict(network.state_dict())
    ours = network.eval()(windows).log_odds
    assert not torch.equal(other.eval()(windows).log_odds, ours)


@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize("has_gradients", [False, True])
def test_output_and_latent_do_not_depend_on_grad_mode_or_autocast(
    network: HistoryNetwork, windows: Windows, *, has_gradients: bool, is_autocast: bool
) -> None:
    scoring = copy.deepcopy(network).double().eval()
    with torch.inference_mode():
        output = scoring(windows)
        latent = scoring.compute_latent(windows)
    with (
        torch.set_grad_enabled(has_gradients),
        torch.autocast("cpu", torch.bfloat16, enabled=is_autocast),
    ):
        other = scoring(windows)
        other_latent = scoring.compute_latent(windows)
    for one, two in zip((*output, latent), (*other, other_latent), strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=0, equal_nan=True)


def test_loss_takes_single_precision_features_only_where_told_and_training(
    network: HistoryNetwork, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    compute = history_network.compute_history_features

    def record_dtype(*arguments: object) -> object:
        taken.append(arguments[-1])
        return compute(*arguments)

    monkeypatch.setattr(history_network, "compute_history_features", record_dtype)
    for is_training, is_told in ((True, False), (False, True), (True, True)):
        network.single_precision_features = is_told
        compute_loss(network.train(is_training), windows)
    assert taken == [torch.float64, torch.float64, torch.float32]


def test_loss_does_not_depend_on_grad_mode(network: HistoryNetwork, windows: Windows) -> None:
    for is_single in (False, True):
        network.single_precision_features = is_single
        one = compute_loss(copy.deepcopy(network).train(), windows)
        with torch.no_grad():
            other = compute_loss(copy.deepcopy(network).train(), windows)
        assert torch.equal(one.detach(), other)


@torch.inference_mode()
def test_log_odds_are_of_any_family_against_none(
    network: HistoryNetwork, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.log(torch.tensor([0.4, 0.1, 0.2, 0.3]))
    rows = len(windows.level)
    heads = (logits.expand(rows, -1), torch.zeros(rows, 48), torch.zeros(rows, 48))
    monkeypatch.setattr(network, "_apply_heads", lambda *_: heads)
    log_odds = network.eval()(windows).log_odds
    torch.testing.assert_close(log_odds, torch.full((rows,), 0.6 / 0.4).log())


@torch.inference_mode()
def test_missing_conditions_count_as_their_mean(network: HistoryNetwork, windows: Windows) -> None:
    network.fit_scales(windows)
    network.eval()
    mean = windows._replace(conditions=network.condition_standardizer.mean.expand(16, -1))
    missing = windows._replace(conditions=torch.full((16, 15), torch.nan))
    torch.testing.assert_close(network(missing).log_odds, network(mean).log_odds)


def test_tensors_of_first_release_have_a_name_in_this_one(network: HistoryNetwork) -> None:
    present = {f"network.{name}" for name in network.state_dict()}
    for former in (
        "network.conditions.mean",
        "network.conditions.scale",
        "network.condition.0.weight",
        "network.condition.0.bias",
    ):
        [(prefix, successor)] = [
            pair for pair in FIRST_RELEASE_SUBMODULES.items() if former.startswith(pair[0])
        ]
        assert successor + former.removeprefix(prefix) in present
