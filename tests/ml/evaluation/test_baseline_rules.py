"""Rules compare a night with the nights before it of the same household."""

import numpy as np
import pytest

from ml.evaluation import baseline_rules
from tests import fleets
from tests.evaluation_fixtures import MIN_READINGS, build_gappy_fleet


def test_rules_use_no_later_nights_or_other_households() -> None:
    """A night in a longer history, and beside others, has the same figures."""
    fleet = build_gappy_fleet()
    early = fleets.build_fleet(fleet.kwh[2:4, :80])
    for name, rule in baseline_rules.BASELINE_RULES.items():
        whole, part = rule(fleet, MIN_READINGS), rule(early, MIN_READINGS)
        np.testing.assert_allclose(part, whole[2:4, :80], rtol=1e-5, err_msg=name)


def score_profile_with_rules(profile_kwh: np.ndarray) -> np.ndarray:
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(1, 60))
    fleet.kwh[0, 59] = profile_kwh
    return np.array(
        [rule(fleet, MIN_READINGS)[0] for rule in baseline_rules.BASELINE_RULES.values()]
    )


@pytest.mark.parametrize(
    ("rule", "day"),
    [
        ("daily_kwh", fleets.simulate_readings_kwh(1, 60)[0, 59] * 5),
        ("daily_kwh", fleets.simulate_readings_kwh(1, 60)[0, 59] / 5),
        ("half_hours", fleets.simulate_readings_kwh(1, 60)[0, 59] * np.tile([9, 0.1], 24)),
        ("nearest_days", fleets.simulate_readings_kwh(1, 60)[0, 59] * np.tile([9, 0.1], 24)),
        (
            "identical_run",
            np.where(np.arange(48) < 20, 0.3, fleets.simulate_readings_kwh(1, 60)[0, 59]),
        ),
    ],
)
def test_each_rule_scores_its_anomaly_highest(rule: str, day: np.ndarray) -> None:
    score = score_profile_with_rules(day)[list(baseline_rules.BASELINE_RULES).index(rule)]
    assert score.shape == (60,)
    assert np.nanargmax(score) == 59


def test_rules_give_no_score_without_enough_history_or_readings() -> None:
    fleet = build_gappy_fleet()
    for rule in baseline_rules.BASELINE_RULES.values():
        score = rule(fleet, MIN_READINGS)
        assert np.isnan(score[:, :7]).all()
        assert np.isnan(score[1, 50])
        assert np.isfinite(score[0, 60])


def test_fusion_is_maximum_surprisal_of_rules() -> None:
    # Of 9 ordinary nights 4 reach 5: (1 + 4) / (1 + 9).
    ordinary = np.array([1.0, 2, 3, 4, 4.5, 5, 6, 7, 8])
    rank = baseline_rules.compute_empirical_surprisal(np.array([[5.0, 9.0, np.nan]]), ordinary)
    np.testing.assert_allclose(rank, [[-np.log10(0.5), 1.0, np.nan]])
    fleet = build_gappy_fleet()
    together = baseline_rules.fuse_rules(fleet, MIN_READINGS, slice(40, 60))
    for rule in baseline_rules.BASELINE_RULES.values():
        score = rule(fleet, MIN_READINGS)
        alone = baseline_rules.compute_empirical_surprisal(score, score[:, 40:60])
        assert (together >= alone)[np.isfinite(alone)].all()
