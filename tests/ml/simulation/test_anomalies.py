"""Injected anomalies do what their names say, and only where it shows."""

import numpy as np
import pytest

from ml.evaluation.injections import INJECTION_KINDS
from ml.simulation.anomalies import inject_episodes


@pytest.mark.parametrize("kind", INJECTION_KINDS)
def test_injection_kinds_change_profiles_as_named(kind: str) -> None:
    day = np.linspace(0.1, 0.9, 48, dtype=np.float32)
    days, other = np.tile(day, (3, 1)), np.full((3, 48), 0.33, dtype=np.float32)
    after = INJECTION_KINDS[kind](days.copy(), other, np.random.default_rng(5))
    total = after.sum() / days.sum()
    longest_run = max(np.diff(np.flatnonzero(np.diff(after.ravel(), prepend=-1, append=-1))))
    expected = {
        "scale_down": 0.1 < total < 0.8 and np.allclose(np.diff(after / days), 0, atol=1e-6),
        "half_hour_scale": ((after > 0) & (after < 0.81 * days)).all(),
        "zero_window": ((after == 0).sum(axis=1) >= 8).all(),
        "random_share": (after <= 0.81 * day.mean()).all() and after.std() > 0.05,
        "constant_mean": np.allclose(after, day.mean()),
        "reversed_day": (after == days[:, ::-1]).all(),
        "stuck": longest_run >= 14,
        "near_zero": (after < 0.016).all() and (after > 0).any(),
        "outage_catch_up": np.isclose(total, 1) and (after[0] == 0).sum() >= 8,
        "spike": 1 <= (after > days + 1.9).sum() <= 2,
        "added_baseload": np.allclose(np.diff(after - days), 0, atol=1e-6) and total > 1,
        "night_load": (after > days).any() and not (after > days)[:, 14:].any(),
        "clock_shift": np.allclose(np.sort(after.ravel()), np.sort(days.ravel())) and total == 1,
        "doubled": 2 <= total <= 3,
        "cap": 1 < (after == after.max()).sum() < after.size and (after <= days).all(),
        "ramp": (np.diff(after.sum(axis=1)) > 0).all(),
        "tenancy": (after == other).all(),
    }
    assert expected[kind]


def test_no_injection_into_unoccupied_households() -> None:
    idle = np.full((40, 30, 48), 0.001, dtype=np.float32)
    kwh = idle.copy()
    assert inject_episodes(kwh, range(10), np.random.default_rng(0)) == []
    assert (kwh == idle).all()


def test_invisible_injection_leaves_night_and_truth_unchanged() -> None:
    # Households that are away every other night: scaled down, an empty night is as before.
    kwh = np.full((400, 42, 48), 0.2, dtype=np.float32)
    kwh[:, 1::2] = 0.001
    before = kwh.copy()
    episodes = inject_episodes(kwh, range(0, 33, 11), np.random.default_rng(1))
    is_injected = np.zeros(kwh.shape[:2], dtype=bool)
    for episode in episodes:
        assert episode.kind == "scale_down"
        is_injected[episode.household_index, list(episode.night_indices)] = True
    assert not is_injected[:, 1::2].any()
    assert ((kwh != before).any(axis=2) == is_injected).all()
    assert is_injected.sum() > 3
