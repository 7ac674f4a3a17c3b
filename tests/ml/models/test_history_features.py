"""Named features of a night against the household's own history."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ml.models.history import features as history_features
from ml.models.history.config import HistoryFeatureConfig
from ml.models.history.features import (
    HALF_HOUR_FEATURES,
    HISTORY_NIGHTS,
    NIGHT_FEATURES,
    HistoryFeatures,
    compute_history_features,
    to_kwh,
    to_log_readings,
)
from ml.models.history.imputation import usual_level_kwh
from tests import fleets

CONFIG = HistoryFeatureConfig()
LEVEL_KWH = 0.3


def simulate_history(n_households: int = 4, n_nights: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """History, the nights that follow it, and levels, without gaps."""
    kwh = torch.from_numpy(
        fleets.simulate_readings_kwh(n_households, HISTORY_NIGHTS + n_nights)
    ).float()
    history, nights = kwh[:, :HISTORY_NIGHTS], kwh[:, HISTORY_NIGHTS:]
    return history, nights, usual_level_kwh(history, CONFIG)


def compute(history: Tensor, nights: Tensor, level: Tensor) -> HistoryFeatures:
    return compute_history_features(history, nights, level, CONFIG)


def half_hour(found: HistoryFeatures, name: str) -> Tensor:
    return found.half_hour_features[:, :, HALF_HOUR_FEATURES.index(name)]


def night(found: HistoryFeatures, name: str) -> Tensor:
    return found.night_features[:, :, NIGHT_FEATURES.index(name)]


def test_every_feature_has_one_name() -> None:
    found = compute(*simulate_history(n_nights=2))
    assert found.half_hour_features.shape == (4, 2, len(HALF_HOUR_FEATURES), 48)
    assert found.night_features.shape == (4, 2, len(NIGHT_FEATURES))
    assert len(set(HALF_HOUR_FEATURES)) == len(HALF_HOUR_FEATURES) == 18
    assert len(set(NIGHT_FEATURES)) == len(NIGHT_FEATURES) == 280


def test_features_that_are_computed_but_not_named_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    history, nights, level = simulate_history()
    monkeypatch.setattr(history_features, "HALF_HOUR_FEATURES", HALF_HOUR_FEATURES[:-1])
    with pytest.raises(ValueError, match=r"'q90_minus_q10'.* are computed"):
        compute(history, nights, level)
    monkeypatch.undo()
    blocks = history_features.NIGHT_FEATURE_BLOCKS | {"observed": ("share", "count")}
    monkeypatch.setattr(history_features, "NIGHT_FEATURE_BLOCKS", blocks)
    with pytest.raises(ValueError, match=r"'observed': 1.* are computed.*'observed': 2.* named"):
        compute(history, nights, level)


def test_log_readings_are_logarithmic_down_to_a_tenth_of_the_level() -> None:
    kwh = LEVEL_KWH * torch.tensor([0.0, 0.1, 1.0, 15.0]).view(1, 1, 4).double()
    level = torch.tensor([LEVEL_KWH]).double()
    log_readings = to_log_readings(kwh, level, CONFIG)
    expected = 0.6 * np.log1p([0.0, 1.0, 10.0, 150.0])
    assert log_readings[0, 0].tolist() == pytest.approx(expected.tolist())
    torch.testing.assert_close(to_kwh(log_readings, level, CONFIG), kwh)


def test_rank_is_share_of_lower_context_nights_and_half_where_equal() -> None:
    history = torch.linspace(0.1, 2.0, HISTORY_NIGHTS)[None, :, None].repeat(1, 1, 48)
    level = torch.tensor([LEVEL_KWH])
    nights = torch.stack((history[0, 0] / 2, history[0, 20], history[0, -1] * 2))[None]
    rank = half_hour(compute(history, nights, level), "rank")
    assert rank[0, 0].unique().tolist() == [0.0]
    assert rank[0, 1, 0].item() == pytest.approx(20.5 / HISTORY_NIGHTS)
    assert rank[0, 2].unique().tolist() == [1.0]


def test_missing_half_hours_count_as_the_median() -> None:
    history, nights, level = simulate_history()
    nights[:, :, 10:16] = torch.nan
    found = compute(history, nights, level)
    assert half_hour(found, "is_observed")[:, :, 10:16].unique().tolist() == [0.0]
    assert half_hour(found, "minus_median")[:, :, 10:16].unique().tolist() == [0.0]
    assert night(found, "observed.share").unique().tolist() == [42 / 48]
    assert torch.isfinite(found.half_hour_features).all()
    assert torch.isfinite(found.night_features).all()


def test_same_weekdays_are_whole_weeks_before_each_night() -> None:
    weekday = torch.arange(HISTORY_NIGHTS + 8) % 7
    kwh = (0.1 + 0.1 * weekday)[None, :, None].repeat(1, 1, 48)
    found = compute(kwh[:, :HISTORY_NIGHTS], kwh[:, HISTORY_NIGHTS:], torch.tensor([LEVEL_KWH]))
    difference = half_hour(found, "minus_same_weekdays")
    torch.testing.assert_close(difference, torch.zeros_like(difference), rtol=0, atol=1e-6)


def test_night_that_was_there_before_is_its_own_nearest_neighbor() -> None:
    history, _, level = simulate_history()
    repeated = compute(history, history[:, 5:6], level)
    new = compute(history, history[:, 5:6].flip(2) * 2, level)
    for view in ("half_hours", "90_minutes", "6_hours", "sorted", "steps"):
        name = f"neighbors_{view}.distance_rank_1"
        assert (night(repeated, name) < 1e-4).all(), view
        assert (night(new, name) > night(repeated, name)).all(), view
    assert half_hour(repeated, "minus_half_hour_neighbors").abs().mean() < 0.2
    torch.testing.assert_close(
        night(repeated, "neighbors_sorted.distance_rank_1"),
        night(compute(history, history[:, 5:6].flip(2), level), "neighbors_sorted.distance_rank_1"),
    )


def test_profile_within_an_adjacent_half_hours_range_does_not_exceed() -> None:
    history = torch.full((1, HISTORY_NIGHTS, 48), 0.2)
    history[:, :, 20] = 1.0
    early, far = history[:, :1].roll(-1, 2), history[:, :1].roll(-2, 2)
    found = compute(history, torch.cat((early, far), dim=1), torch.tensor([LEVEL_KWH]))
    above = half_hour(found, "above_maximum")
    assert above[0, 0].max() == 0
    assert above[0, 1].argmax() == 18
    assert night(found, "exceedances.above_maximum_maximum").tolist() == [
        [0.0, pytest.approx(above[0, 1, 18].item())]
    ]
    assert night(found, "exceedances.above_maximum_maximum_quarter_2")[0, 1] > 0
    assert night(found, "exceedances.above_maximum_maximum_quarter_3")[0, 1] == 0


def test_reading_seen_once_before_exceeds_the_usual_but_not_the_maximum() -> None:
    history = torch.full((1, HISTORY_NIGHTS, 48), 0.2)
    history[:, -1, 5] = 2.0
    night_kwh = torch.full((1, 1, 48), 0.2)
    night_kwh[:, :, 5] = 1.5
    found = compute(history, night_kwh, torch.tensor([LEVEL_KWH]))
    assert half_hour(found, "above_maximum").max() == 0
    assert half_hour(found, "above_q90")[0, 0].argmax() == 5
    assert half_hour(found, "above_q90").max() > 0


def test_shifted_profile_correlates_with_the_mean_at_its_shift() -> None:
    history, _, level = simulate_history(1)
    usual = to_kwh(to_log_readings(history, level, CONFIG).mean(dim=1, keepdim=True), level, CONFIG)
    found = compute(history, usual.roll(2 * 5, 2), level)
    shifts = [night(found, f"alignment.correlation_shifted_{hours}_hours") for hours in range(24)]
    assert torch.stack(shifts).argmax() == 5
    assert night(found, "alignment.best_shift_gain") > 0
    assert night(compute(history, usual, level), "alignment.best_shift_gain").abs() < 1e-6


def test_repeated_and_zero_readings_are_counted_beside_the_usual_share() -> None:
    history, nights, level = simulate_history(1)
    history[:, :21] = 0.0
    nights[:, :, 12:25] = 0.123
    nights[:, :, 40:44] = 0.0
    found = compute(history, nights, level)
    assert half_hour(found, "is_repeat")[0, 0, 12:25].tolist() == [0.0] + [1.0] * 12
    assert half_hour(found, "is_zero")[0, 0].sum() == 4
    assert night(found, "repeats.most_repeats_in_7_half_hours").item() == pytest.approx(1.0)
    assert night(found, "repeats.most_repeats_in_13_half_hours").item() == pytest.approx(12 / 13)
    assert night(found, "repeats.zero_share").item() == pytest.approx(4 / 48)
    assert night(found, "repeats.usual_zero_share").item() == pytest.approx(0.5)


def test_features_are_clipped_at_the_configured_limit() -> None:
    history = torch.full((1, HISTORY_NIGHTS, 48), 0.2)
    found = compute(history, torch.full((1, 1, 48), 9.0), torch.tensor([0.02]))
    assert found.night_features.abs().max() == CONFIG.limit
    assert half_hour(found, "z_all_nights").abs().max() == CONFIG.limit


@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize("has_gradients", [False, True])
def test_features_do_not_depend_on_grad_mode_or_autocast(
    has_gradients: bool, is_autocast: bool
) -> None:
    """bfloat16 has three digits: the distance of nearly equal profiles would be noise."""
    given = simulate_history(10)
    plain = compute(*given)
    with (
        torch.set_grad_enabled(has_gradients),
        torch.autocast("cpu", torch.bfloat16, enabled=is_autocast),
    ):
        found = compute(*given)
    for one, other in zip(plain, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)
    assert found.night_features.dtype == torch.float64


def test_single_precision_features_are_close_to_double() -> None:
    history, nights, level = simulate_history(10)
    double = compute(history, nights, level)
    single = compute_history_features(history, nights, level, CONFIG, torch.float32)
    assert single.night_features.dtype == torch.float32
    torch.testing.assert_close(
        single.night_features.double(), double.night_features, rtol=0, atol=5e-3
    )


def test_history_features_ignore_rounding_noise() -> None:
    """Engines and processors round in their own ways, and most readings have their equals."""
    kwh = torch.from_numpy(fleets.simulate_readings_kwh(64, HISTORY_NIGHTS + 1))
    torch.manual_seed(0)
    rounded = kwh * (1 + 1e-6 * torch.rand_like(kwh))
    one, other = (
        compute(each[:, :-1], each[:, -1:], usual_level_kwh(each[:, :-1], CONFIG))
        for each in (kwh, rounded)
    )
    for name in ("half_hour_features", "night_features"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-3)
