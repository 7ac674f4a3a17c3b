"""Variants of real households that a network learns from."""

import pytest
import torch
from torch import Tensor

from ml.models.history import augmentation
from ml.models.history.augmentation import augment_households, draw_outages
from ml.models.history.features import HISTORY_NIGHTS

N_NIGHTS = HISTORY_NIGHTS + 3
PROBABILITIES = (
    "BLEND_PROBABILITY",
    "RESIZE_PROBABILITY",
    "REVERSAL_PROBABILITY",
    "SHIFT_PROBABILITY",
    "SHUFFLE_PROBABILITY",
    "NEW_HOUSEHOLD_PROBABILITY",
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def simulate_windows(rows: int = 16) -> Tensor:
    kwh = torch.rand(rows, N_NIGHTS, 48, generator=torch.Generator().manual_seed(3))
    return (kwh * 1000).round() / 1000


def augment_only(monkeypatch: pytest.MonkeyPatch, name: str | None, kwh: Tensor) -> Tensor:
    """Augment with one of the variants for every window, or with none."""
    for each in PROBABILITIES:
        monkeypatch.setattr(augmentation, each, 1.0 if each == name else 0.0)
    return augment_households(kwh)


def test_windows_are_finite_readings_with_the_resolution_of_a_meter() -> None:
    augmented = augment_households(simulate_windows())
    assert augmented.shape == (16, N_NIGHTS, 48)
    assert torch.isfinite(augmented).all()
    assert (augmented >= 0).all()
    torch.testing.assert_close(augmented, (augmented * 1000).round() / 1000)


def test_windows_stay_as_they_are_without_a_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    kwh = simulate_windows()
    torch.testing.assert_close(augment_only(monkeypatch, None, kwh), kwh)


def test_blended_households_keep_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    kwh = simulate_windows() * torch.linspace(0.5, 3, 16).view(16, 1, 1)
    blended = augment_only(monkeypatch, "BLEND_PROBABILITY", kwh)
    assert not torch.equal(blended, kwh)
    torch.testing.assert_close(blended.mean(dim=(1, 2)), kwh.mean(dim=(1, 2)), rtol=1e-3, atol=1e-3)


def test_resized_households_keep_their_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    kwh = simulate_windows() + 0.5
    factor = augment_only(monkeypatch, "RESIZE_PROBABILITY", kwh) / kwh
    assert (factor.amax(dim=(1, 2)) - factor.amin(dim=(1, 2)) < 5e-3).all()
    assert 0.44 < factor.min() < 0.8
    assert 1.3 < factor.max() < 2.24


def test_reversal_turns_the_order_of_the_nights(monkeypatch: pytest.MonkeyPatch) -> None:
    kwh = simulate_windows()
    torch.testing.assert_close(augment_only(monkeypatch, "REVERSAL_PROBABILITY", kwh), kwh.flip(1))


def test_shifted_clock_moves_readings_at_most_two_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    kwh = simulate_windows()
    shifted = augment_only(monkeypatch, "SHIFT_PROBABILITY", kwh).flatten(1)
    series = kwh.flatten(1)
    found = set()
    for ours, theirs in zip(shifted, series, strict=True):
        fits = [
            shift
            for shift in range(-6, 7)
            if torch.allclose(ours[6:-6], theirs.roll(-shift)[6:-6], atol=1e-4)
        ]
        assert len(fits) == 1
        found.update(fits)
    assert found <= set(range(-4, 5))
    assert len(found) > 3


def test_shuffled_nights_come_from_the_same_history(monkeypatch: pytest.MonkeyPatch) -> None:
    kwh = simulate_windows()
    shuffled = augment_only(monkeypatch, "SHUFFLE_PROBABILITY", kwh)
    torch.testing.assert_close(shuffled[:, HISTORY_NIGHTS:], kwh[:, HISTORY_NIGHTS:])
    source = (shuffled[:, :, None, 0] - kwh[:, None, :HISTORY_NIGHTS, 0]).abs().amin(dim=2)
    assert (source[:, :HISTORY_NIGHTS] < 1e-4).all()
    is_moved = (shuffled - kwh).abs().amax(dim=2) > 1e-3
    assert 0.05 < is_moved[:, :HISTORY_NIGHTS].float().mean() < 0.15


def test_new_household_keeps_its_last_nights(monkeypatch: pytest.MonkeyPatch) -> None:
    kwh = simulate_windows()
    borrowed = augment_only(monkeypatch, "NEW_HOUSEHOLD_PROBABILITY", kwh)
    is_own = (borrowed - kwh).abs().amax(dim=2) < 1e-4
    assert is_own[:, -6:].all()
    assert not is_own[:, : HISTORY_NIGHTS - 28].all()
    n_own = is_own[:, :HISTORY_NIGHTS].sum(dim=1)
    assert n_own.min() >= 3
    # The permutation may lend a household its own readings.
    assert sorted(n_own.tolist())[len(n_own) // 2] <= 28


def test_outages_hide_up_to_six_hours_of_some_nights() -> None:
    is_observed = torch.ones(2000, 4, 48, dtype=torch.bool)
    n_hidden = 48 - draw_outages(is_observed).sum(dim=2)
    assert n_hidden.max() == 12
    assert (n_hidden > 0).float().mean().item() == pytest.approx(0.1, abs=0.015)


def test_outage_does_not_bring_missing_half_hours_back() -> None:
    is_observed = torch.zeros(20, 4, 48, dtype=torch.bool)
    assert not draw_outages(is_observed).any()
