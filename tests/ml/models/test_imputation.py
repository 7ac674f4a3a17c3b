"""A household's usual level, and a history without gaps."""

import pytest
import torch
from torch import Tensor

from ml.models.history.config import HistoryFeatureConfig
from ml.models.history.imputation import impute_history, usual_level_kwh

CONFIG = HistoryFeatureConfig()


def build_history(*night_kwh: float) -> Tensor:
    """One household `[1, N, 48]` whose nights have one reading each."""
    return torch.tensor(night_kwh)[None, :, None].repeat(1, 1, 48)


def test_level_is_median_of_the_nightly_means() -> None:
    assert usual_level_kwh(build_history(0.1, 0.5, 0.3, 9.0, 0.2), CONFIG).item() == pytest.approx(
        0.3
    )


def test_level_of_an_even_number_of_nights_is_the_lower_middle() -> None:
    assert usual_level_kwh(build_history(0.1, 0.2, 0.3, 0.4), CONFIG).item() == pytest.approx(0.2)


def test_nights_with_too_few_readings_do_not_count_for_the_level() -> None:
    history = build_history(0.1, 0.3, 5.0, 6.0)
    history[:, 2:, 23:] = torch.nan
    assert usual_level_kwh(history, CONFIG).item() == pytest.approx(0.1)
    history[:, 2, 23] = 5.0
    assert usual_level_kwh(history, CONFIG).item() == pytest.approx(0.3)


@pytest.mark.parametrize("kwh", [0.0, 0.001, torch.nan])
def test_level_of_an_empty_or_unknown_home_is_the_least_level(kwh: float) -> None:
    assert usual_level_kwh(build_history(kwh, kwh, kwh), CONFIG).item() == pytest.approx(
        CONFIG.min_level_kwh
    )


def test_complete_history_stays_as_it_is() -> None:
    history = torch.rand(3, 42, 48)
    assert torch.equal(impute_history(history, torch.ones(3), CONFIG), history)


def test_missing_half_hour_gets_the_mean_of_that_half_hour() -> None:
    history = build_history(0.1, 0.2, 0.6)
    history[0, 2, 7] = torch.nan
    imputed = impute_history(history, torch.ones(1), CONFIG)
    assert imputed[0, 2, 7].item() == pytest.approx(0.15)
    is_observed = ~history.isnan()
    assert torch.equal(imputed[is_observed], history[is_observed])


def test_missing_nights_are_replaced_by_the_latest_usable_ones_in_turn() -> None:
    history = build_history(*(0.1 * night for night in range(1, 9)))
    history[:, [1, 4, 7]] = torch.nan
    # From the end: night 8 is missing (0 nights from the end: the latest usable one, night 7),
    # night 5 (3 from the end: the fourth latest, night 3), night 2 (6, of five usable ones: the
    # second latest, night 6).
    found = (impute_history(history, torch.ones(1), CONFIG)[0, :, 0] * 10).round().int().tolist()
    assert found == [1, 6, 3, 4, 3, 6, 7, 7]


def test_night_with_few_readings_is_replaced_whole_and_does_not_enter_the_means() -> None:
    history = build_history(0.1, 9.0, 0.3)
    history[0, 1, 20:] = torch.nan
    history[0, 0, 5] = torch.nan
    imputed = impute_history(history, torch.ones(1), CONFIG)
    assert torch.equal(imputed[0, 1], imputed[0, 0])
    assert imputed[0, 0, 5].item() == pytest.approx(0.3)


def test_household_without_a_usable_night_gets_its_level_everywhere() -> None:
    history = torch.full((1, 4, 48), torch.nan)
    history[0, 2, :10] = 3.0
    imputed = impute_history(history, torch.tensor([0.25]), CONFIG)
    assert imputed[0, [0, 1, 3]].unique().tolist() == [0.25]
    assert imputed[0, 2, 10:].unique().tolist() == [0.25]


def test_imputation_keeps_the_dtype_and_does_not_depend_on_grad_mode() -> None:
    history = torch.rand(5, 42, 48, generator=torch.Generator().manual_seed(0))
    history[:, ::5, 3:9] = torch.nan
    level = torch.ones(5)
    with torch.no_grad():
        one = impute_history(history, level, CONFIG)
    other = impute_history(history, level, CONFIG)
    assert one.dtype == torch.float32
    assert torch.equal(one, other)
