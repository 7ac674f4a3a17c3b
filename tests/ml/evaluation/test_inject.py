"""Injections change what the truth says, and nothing else."""

import numpy as np
import pytest

from ml.evaluation.inject import KIND_NAMES, GroundTruth, inject_anomalies, repeat_households
from ml.evaluation.injections import EPISODE_NIGHTS, GRADUAL_KINDS, ONE_NIGHT_KINDS
from ml.fleet import Fleet
from tests.evaluation_fixtures import MIN_READINGS, NIGHTS, build_gappy_fleet


@pytest.fixture(scope="module")
def injected() -> tuple[Fleet, Fleet, GroundTruth]:
    """A fleet, the same with every kind injected into every household, and the truth."""
    fleet = build_gappy_fleet()
    rows = repeat_households(np.arange(8), len(KIND_NAMES))
    return fleet, *inject_anomalies(fleet, rows, NIGHTS, seed=3, min_readings=MIN_READINGS)


def test_injection_changes_readings_only_where_the_truth_says(
    injected: tuple[Fleet, Fleet, GroundTruth],
) -> None:
    fleet, after, truth = injected
    before = fleet.kwh[truth.household_index]
    changed = ((after.kwh != before) & np.isfinite(before)).any(axis=2)
    assert (changed == (truth.kind_code > 0)).all()
    assert (np.isnan(after.kwh) == np.isnan(before)).all()
    assert not changed[:, : NIGHTS.start].any()
    assert not truth.is_tested[truth.household_index == 1, 50].any()


def test_copies_of_a_household_are_injected_with_different_kinds(
    injected: tuple[Fleet, Fleet, GroundTruth],
) -> None:
    _, _, truth = injected
    kinds = [set(np.unique(row)) - {0} for row in truth.kind_code]
    assert all(len(kind) <= 1 for kind in kinds)
    for household in range(8):
        carried = [
            kind
            for kind, carrier in zip(kinds, truth.household_index, strict=True)
            if carrier == household
        ]
        assert len(set.union(*carried)) == sum(map(len, carried))


def test_injected_share_is_near_target_with_half_in_episodes(
    injected: tuple[Fleet, Fleet, GroundTruth],
) -> None:
    _, _, truth = injected
    assert 0.05 < truth.is_injected.sum() / truth.is_tested.sum() < 0.11
    lasting = np.zeros_like(truth.is_injected)
    for episode in truth.episodes:
        assert episode.kind not in ONE_NIGHT_KINDS
        assert episode.n_nights <= EPISODE_NIGHTS
        lasting[episode.row, episode.first_night : episode.first_night + episode.n_nights] = True
        assert truth.find_nights_of_kind(episode.kind)[episode.row, episode.first_night]
    assert 0.3 < (lasting & truth.is_injected).sum() / truth.is_injected.sum() < 0.7
    assert (lasting | ~truth.find_nights_of_kind(GRADUAL_KINDS[0])).all()


def test_injection_is_reproducible_by_seed() -> None:
    fleet, rows = build_gappy_fleet(), np.arange(8)
    one, _ = inject_anomalies(fleet, rows, NIGHTS, seed=1, min_readings=MIN_READINGS)
    two, _ = inject_anomalies(fleet, rows, NIGHTS, seed=1, min_readings=MIN_READINGS)
    other, _ = inject_anomalies(fleet, rows, NIGHTS, seed=2, min_readings=MIN_READINGS)
    np.testing.assert_array_equal(one.kwh, two.kwh)
    assert not np.array_equal(one.kwh, other.kwh, equal_nan=True)
