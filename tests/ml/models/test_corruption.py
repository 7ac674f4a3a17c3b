"""Corruptions of real profiles, and the labels of what was changed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ml.models.history import corruption
from ml.models.history.corruption import CORRUPTION_FAMILIES, ProfileBatch, corrupt_windows

ROWS, NIGHTS, TARGET_NIGHTS = 64, 17, 4
CORRUPTIONS = sorted(
    {corrupt for family in CORRUPTION_FAMILIES for corrupt in family},
    key=lambda each: each.__name__,
)
every_corruption = pytest.mark.parametrize(
    "corrupt", CORRUPTIONS, ids=[each.__name__ for each in CORRUPTIONS]
)


def simulate_windows(rows: int = ROWS, nights: int = NIGHTS, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    kwh = 0.05 + torch.rand(rows, 1, 48, generator=generator)
    kwh = kwh * (0.5 + torch.rand(rows, nights, 48, generator=generator))
    return (kwh * 1000).round() / 1000


def build_profiles(*, is_lasting: bool = False, rows: int = ROWS) -> ProfileBatch:
    kwh = simulate_windows(rows)
    level = kwh.mean(dim=(1, 2), keepdim=True)
    lasting = torch.full((rows, 1, 1), is_lasting)
    return ProfileBatch(kwh, level, simulate_windows(rows, seed=1) / level, lasting)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@every_corruption
def test_corruption_returns_finite_readings_and_leaves_its_input(
    corrupt: Callable[[ProfileBatch], Tensor],
) -> None:
    profiles = build_profiles()
    before = profiles.kwh.clone()
    changed = corrupt(profiles)
    assert changed.shape == before.shape
    assert torch.isfinite(changed).all()
    assert (changed >= 0).all()
    assert torch.equal(profiles.kwh, before)
    assert not torch.equal(changed, before)


def test_parameters_of_a_lasting_corruption_are_drawn_once_for_a_household() -> None:
    assert (build_profiles(is_lasting=True).draw_uniform(0, 1).std(dim=1) == 0).all()
    assert (build_profiles().draw_uniform(0, 1).std(dim=1) > 0).all()


def test_draws_stay_within_their_ranges() -> None:
    profiles = build_profiles()
    factors = profiles.draw_log_uniform(-1, 1)
    assert factors.min() >= torch.tensor(-1.0).exp()
    assert factors.max() <= torch.tensor(1.0).exp()
    block, first = profiles.draw_block(4, 9)
    lengths = block.sum(dim=2)
    assert (lengths.min(), lengths.max()) == (5, 9)
    assert block.gather(2, first).all()
    loads = profiles.draw_kwh(0, 0, 5.0, 6.0)
    assert ((loads == profiles.level) | ((loads >= 5) & (loads <= 6.001))).all()


def test_reordering_corruptions_keep_the_readings() -> None:
    profiles = build_profiles()
    expected = profiles.kwh.sort(dim=2).values
    for corrupt in (
        corruption._rotate_clock,
        corruption._reverse_stretch,
        corruption._permute_stretches,
    ):
        assert torch.equal(corrupt(profiles).sort(dim=2).values, expected), corrupt


def test_scaled_profiles_are_visibly_smaller_or_larger() -> None:
    profiles = build_profiles()
    factor = corruption._scale_profile(profiles) / profiles.kwh
    assert ((factor < 0.82) | (factor > 1.28)).all()
    assert (factor.amin(), factor.amax()) > (0.04, 8)
    assert (corruption._scale_up(profiles) >= 1.3 * profiles.kwh).all()


def test_added_loads_only_raise_readings() -> None:
    profiles = build_profiles()
    for corrupt in (corruption._add_block, corruption._add_baseload, corruption._add_spikes):
        assert (corrupt(profiles) >= profiles.kwh).all(), corrupt


def test_lost_consumption_comes_back_outside_the_stretch_at_most_once() -> None:
    profiles = build_profiles()
    changed = corruption._lose_consumption(profiles)
    raised = (changed > profiles.kwh).sum(dim=2)
    assert raised.max() == 1
    assert 0.2 < (raised == 1).float().mean() < 0.4
    assert ((changed < profiles.kwh).sum(dim=2) >= 4).float().mean() > 0.95


def test_held_readings_are_one_value_in_a_stretch() -> None:
    profiles = build_profiles()
    changed = corruption._hold_constant(profiles)
    is_repeat = changed == changed.roll(1, 2)
    assert (is_repeat.sum(dim=2) >= 5).all()


def test_windows_differ_only_where_labelled() -> None:
    kwh = simulate_windows()
    found = corrupt_windows(kwh, kwh.mean(dim=(1, 2)), TARGET_NIGHTS)
    is_real = found.family_label == 0
    assert torch.equal(found.kwh[is_real], kwh[is_real])
    assert not found.is_changed[is_real].any()
    assert found.is_changed[~is_real].any(dim=1).all()
    assert ((found.kwh - kwh).abs()[found.is_changed] > corruption.MIN_HALF_HOUR_CHANGE_KWH).all()
    assert found.family_label.max() <= len(CORRUPTION_FAMILIES)
    changed_share = (found.kwh - kwh).abs().sum(dim=2) / kwh.sum(dim=2)
    assert (changed_share[~is_real] > corruption.MIN_CHANGE_SHARE).all()


def test_corrupted_readings_have_the_resolution_of_a_meter() -> None:
    kwh = simulate_windows()
    found = corrupt_windows(kwh, kwh.mean(dim=(1, 2)), TARGET_NIGHTS)
    assert (found.kwh >= 0).all()
    torch.testing.assert_close(found.kwh, (found.kwh * 1000).round() / 1000, rtol=1e-6, atol=1e-6)


def test_about_half_of_the_target_nights_are_corrupted_and_few_before() -> None:
    is_lasting = torch.zeros(4096, 1, dtype=torch.bool)
    is_chosen, weight = corruption._draw_corrupted_nights(is_lasting, NIGHTS, TARGET_NIGHTS)
    assert is_chosen[:, -TARGET_NIGHTS:].float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert is_chosen[:, :-TARGET_NIGHTS].float().mean().item() == pytest.approx(0.02, abs=0.005)
    assert (weight == 1).all()


def test_lasting_corruption_takes_consecutive_nights_and_some_grow() -> None:
    is_lasting = torch.ones(4096, 1, dtype=torch.bool)
    is_chosen, weight = corruption._draw_corrupted_nights(is_lasting, NIGHTS, TARGET_NIGHTS)
    n_stretches = is_chosen[:, :1].int() + (is_chosen.int().diff(dim=1) == 1).sum(1, keepdim=True)
    assert (n_stretches == 1).all()
    is_ramp = (weight < 1).any(dim=1)
    assert is_ramp.float().mean().item() == pytest.approx(corruption.RAMP_SHARE, abs=0.03)
    assert (weight[is_ramp].diff(dim=1) >= 0).all()


def test_nights_that_hardly_change_stay_real(monkeypatch: pytest.MonkeyPatch) -> None:
    def change_slightly(profiles: ProfileBatch) -> Tensor:
        return profiles.kwh * 1.1

    monkeypatch.setattr(corruption, "_FAMILY_CHOICES", ((1, change_slightly),))
    kwh = simulate_windows()
    found = corrupt_windows(kwh, kwh.mean(dim=(1, 2)), TARGET_NIGHTS)
    assert torch.equal(found.kwh, kwh)
    assert not found.family_label.any()
    assert not found.is_changed.any()


def test_profiles_of_one_other_household_are_taken_where_it_lasts() -> None:
    profiles = torch.arange(ROWS).view(ROWS, 1, 1).float().repeat(1, NIGHTS, 48)
    is_lasting = torch.arange(ROWS).view(ROWS, 1, 1) % 2 == 0
    other = corruption._draw_other_profiles(profiles, is_lasting)
    n_households = torch.tensor([len(rows.unique()) for rows in other])
    assert (n_households[::2] == 1).all()
    assert (n_households[1::2] > 1).all()


def test_corruption_is_drawn_from_torchs_generator() -> None:
    kwh = simulate_windows()
    torch.manual_seed(7)
    one = corrupt_windows(kwh, kwh.mean(dim=(1, 2)), TARGET_NIGHTS)
    torch.manual_seed(7)
    other = corrupt_windows(kwh, kwh.mean(dim=(1, 2)), TARGET_NIGHTS)
    for ours, theirs in zip(one, other, strict=True):
        assert torch.equal(ours, theirs)
