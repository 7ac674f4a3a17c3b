"""The benchmark plants what it says, and measures as well-kept libraries and a pencil do."""

import subprocess
import sys
from datetime import date

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ml.conditions import CONDITIONS
from ml.errors import UserError
from ml.evaluation import baseline_rules, baselines
from ml.evaluation.alarm_rates import measure_alarm_rates, measure_monthly_alarm_ratio
from ml.evaluation.controls import build_control_fleets, measure_control_alarms
from ml.evaluation.inject import (
    KIND_NAMES,
    GroundTruth,
    InjectedEpisode,
    inject_anomalies,
    repeat_households,
)
from ml.evaluation.injections import EPISODE_NIGHTS, GRADUAL_KINDS, ONE_NIGHT_KINDS
from ml.evaluation.metrics import (
    DetectorScores,
    compute_metrics,
    count_false_episodes,
    estimate_superiority,
)
from ml.evaluation.reason_confusion import (
    CORRECT_REASONS,
    NO_INJECTION,
    count_reasons_by_kind,
    describe_reason_accuracy,
    tabulate_reasons,
)
from ml.fleet import Fleet
from ml.schemas import ANOMALY_REASONS
from tests import fleets

NIGHTS = slice(40, 96)
MIN_READINGS = 36


def build_gappy_fleet(households: int = 8) -> Fleet:
    """Readings with gaps, of which a household's eleventh half-hours are never there."""
    kwh = fleets.simulate_readings_kwh(households, NIGHTS.stop)
    kwh[0, :, 10] = np.nan
    kwh[1, 50, :20] = np.nan
    return fleets.build_fleet(kwh)


@pytest.fixture(scope="module")
def planted() -> tuple[Fleet, Fleet, GroundTruth]:
    """A fleet, the same with every kind planted in every household, and the truth."""
    fleet = build_gappy_fleet()
    rows = repeat_households(np.arange(8), len(KIND_NAMES))
    return fleet, *inject_anomalies(fleet, rows, NIGHTS, seed=3, min_readings=MIN_READINGS)


def test_injection_changes_readings_only_where_the_truth_says(
    planted: tuple[Fleet, Fleet, GroundTruth],
) -> None:
    fleet, after, truth = planted
    before = fleet.kwh[truth.household_index]
    changed = ((after.kwh != before) & np.isfinite(before)).any(axis=2)
    assert (changed == (truth.kind_code > 0)).all()
    assert (np.isnan(after.kwh) == np.isnan(before)).all()
    assert not changed[:, : NIGHTS.start].any()
    assert not truth.is_tested[truth.household_index == 1, 50].any()


def test_copies_of_a_household_are_injected_with_different_kinds(
    planted: tuple[Fleet, Fleet, GroundTruth],
) -> None:
    _, _, truth = planted
    kinds = [set(np.unique(row)) - {0} for row in truth.kind_code]
    assert all(len(kind) <= 1 for kind in kinds)
    for household in range(8):
        carried = [
            kind
            for kind, home in zip(kinds, truth.household_index, strict=True)
            if home == household
        ]
        assert len(set.union(*carried)) == sum(map(len, carried))


def test_injected_share_is_near_target_with_half_in_episodes(
    planted: tuple[Fleet, Fleet, GroundTruth],
) -> None:
    _, _, truth = planted
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


def build_truth(
    kind_code: list[list[int]], episodes: tuple[InjectedEpisode, ...] = ()
) -> GroundTruth:
    """One row a household, every night counts."""
    kinds = np.array(kind_code, dtype=np.int8)
    return GroundTruth(np.arange(len(kinds)), np.ones(kinds.shape, dtype=bool), kinds, episodes)


def read_metric(table: pl.DataFrame, figure: str, of: str | None = None) -> float:
    return float(
        table.filter(pl.col("metric") == figure, pl.col("subset").eq_missing(of))["value"].item()
    )


@hypothesis_settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 50]))
def test_metrics_equal_scikit_learn(seed: int, steps: int) -> None:
    """Also where many scores are equal."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, 3, (6, 40)) * (random.random((6, 40)) < 0.3)
    kind[0, :3] = (0, 1, 2)
    truth = build_truth(kind.tolist())
    score = np.round((random.random(kind.shape) + 0.3 * (kind > 0)) * steps)
    flat, is_planted = score.ravel(), kind.ravel() > 0
    table, scored = compute_metrics(score, truth, n_resamples=0), DetectorScores(score, truth)
    curve = scored.compute_roc_curve(np.ones(6))
    natural = curve.average_precision(float(is_planted.mean()))
    assert natural == pytest.approx(average_precision_score(is_planted, flat))
    assert read_metric(table, "auc") == pytest.approx(roc_auc_score(is_planted, flat))
    kept = (kind.ravel() == 1) | ~is_planted
    of_kind = roc_auc_score(is_planted[kept], flat[kept])
    assert read_metric(table, "auc", KIND_NAMES[0]) == pytest.approx(of_kind)


def test_recall_uses_threshold_of_normal_nights() -> None:
    # 200 clean nights of scores 0 to 199, of which one in a hundred allows two: 198 and 199.
    score = np.append(np.arange(200.0), (196.5, 198.0, 250.0, 3.0))[None]
    table = compute_metrics(score, build_truth([[0] * 200 + [1, 1, 2, 2]]), n_resamples=0)
    assert read_metric(table, "recall_1pct") == 2 / 4
    assert read_metric(table, "recall_1pct", KIND_NAMES[0]) == 1 / 2
    # No clean night may pass at 1 in 1,000.
    assert read_metric(table, "recall_0.1pct") == 1 / 4


def test_false_episodes_end_14_nights_after_their_last_alert() -> None:
    score = np.zeros((3, 60))
    score[0, [0, 10, 20, 34]] = 1  # never more than 14 nights between two alerts: one episode
    score[1, [0, 14, 29, 45]] = 1  # 14 nights belong to the episode, 15 open a new one: three
    score[2, [30]] = 1
    normal = build_truth([[0] * 60] * 3)
    assert count_false_episodes(score, normal, np.array([1.0]))[:, 0].tolist() == [1, 3, 1]
    # An episode that an injected night opens is not false, and takes in the alerts that follow.
    injected_first = build_truth([[1] + [0] * 59] * 3)
    assert count_false_episodes(score, injected_first, np.array([1.0]))[:, 0].tolist() == [0, 2, 1]


def test_episode_is_found_on_first_night_at_threshold() -> None:
    lasting = InjectedEpisode(row=0, first_night=20, n_nights=14, kind=KIND_NAMES[0])
    truth = build_truth([[0] * 20 + [1] * 14 + [0] * 66, [0] * 100], (lasting,))
    score = np.zeros((2, 100))
    score[0, 24] = 1  # the fifth night
    table = compute_metrics(score, truth, n_resamples=0)
    found = [read_metric(table, f"found_within_{n}_nights_3_episodes") for n in (1, 3, 7, 14)]
    assert found == [0, 0, 1, 1]


def test_precision_at_top_of_each_night() -> None:
    # Twenty homes, one night: four of the ten highest scores are planted ones.
    kind = [[1] if home in (0, 1, 2, 3, 15) else [0] for home in range(20)]
    table = compute_metrics(-np.arange(20.0)[:, None], build_truth(kind), n_resamples=0)
    assert read_metric(table, "precision_top_10") == 4 / 10
    assert read_metric(table, "precision_top_50") == 5 / 20


def test_night_without_score_ranks_last() -> None:
    score = np.array([[1.0, 2.0, np.nan, 5.0]])
    assert (
        read_metric(compute_metrics(score, build_truth([[0, 0, 1, 1]]), n_resamples=0), "auc")
        == 0.5
    )


def test_untested_households_do_not_change_metrics() -> None:
    random = np.random.default_rng(0)
    score = random.random((6, 30))
    truth = build_truth((random.random((6, 30)) < 0.2).astype(int).tolist())
    apart = compute_metrics(score[:3], build_truth(truth.kind_code[:3].tolist()), n_resamples=20)
    among = compute_metrics(score, truth.restrict_to_households(np.arange(3)), n_resamples=20)
    assert among.equals(apart, null_equal=True)


def test_bootstrap_interval_resamples_households() -> None:
    """Copies of a household are one draw: more copies make no narrower interval."""
    random = np.random.default_rng(1)
    kind = (random.random((12, 60)) < 0.1).astype(np.int8)
    score = random.normal(size=kind.shape) + kind * random.random((12, 1)) * 4
    once = compute_metrics(score, build_truth(kind.tolist()), seed=5)
    counts = np.ones((48, 60), dtype=bool)
    copied = GroundTruth(np.tile(np.arange(12), 4), counts, np.tile(kind, (4, 1)), ())
    four = compute_metrics(np.tile(score, (4, 1)), copied, seed=5)
    for table in (once, four):
        row = table.filter(pl.col("subset").is_null(), metric="average_precision_8pct")
        assert row["low"].item() < row["value"].item() < row["high"].item()
    width = [(table["high"] - table["low"]).head(1).item() for table in (once, four)]
    assert width[0] == pytest.approx(width[1])


def test_superiority_is_one_zero_or_half_by_difference() -> None:
    random = np.random.default_rng(2)
    kind = (random.random((30, 60)) < 0.1).astype(np.int8)
    truth = build_truth(kind.tolist())
    good = random.normal(size=kind.shape) + 3 * kind
    poor = random.normal(size=kind.shape) + kind
    assert estimate_superiority(good, poor, truth) == 1
    assert estimate_superiority(poor, good, truth) == 0
    assert estimate_superiority(good, good, truth) == 0.5


def test_alarm_rates_use_pretest_threshold() -> None:
    nights = [date(2013, 9, 1 + day) for day in range(30)] + [
        date(2013, 10, 1 + d) for d in range(20)
    ]
    score = np.tile(np.arange(1000.0)[:, None], (1, 50))
    score[:, 40:] += 30  # in the last ten nights three in a hundred more pass
    counts = np.zeros((1000, 50), dtype=bool)
    counts[:, 20:] = True
    truth = GroundTruth(np.arange(1000), counts, np.zeros((1000, 50), dtype=np.int8), ())
    # 3 in 1,000 of the first twenty nights pass 997; 33 in 1,000 of the last ten.
    table = measure_monthly_alarm_ratio(score, truth, nights, slice(0, 20))
    assert table["subset"].to_list() == ["2013-09", "2013-10"]
    assert table["value"].to_list() == pytest.approx([1.0, (3 + 33) / 2 / 3], rel=0.01)
    assert measure_alarm_rates(
        score[:, :40], truncate_truth(truth, 40), slice(0, 20), np.array([0.01])
    ) == (pytest.approx([0.01], rel=0.01))


def truncate_truth(truth: GroundTruth, night: int) -> GroundTruth:
    return GroundTruth(
        truth.household_index, truth.is_tested[:, :night], truth.kind_code[:, :night], ()
    )


def test_control_fleets_mark_the_nights_of_each_control() -> None:
    fleet = build_gappy_fleet()
    known = fleet.conditions
    known[...] = 0
    known[:, 60:, CONDITIONS.index("is_summer_time")] = 1
    known[:, 70, CONDITIONS.index("is_day_off")] = 1
    known[:, [71, 72], CONDITIONS.index("is_day_off")] = 1
    known[:, [71, 72], CONDITIONS.index("is_saturday")] = 1
    known[2, 80, CONDITIONS.index("price_signal")] = 0.5
    fleet.kwh[3, 85:90] = 0.001
    real, snap, new, gappy = build_control_fleets(fleet, np.arange(8), NIGHTS, MIN_READINGS)
    places = {name: set(np.nonzero(nights)[1]) for name, nights in real.nights_by_control.items()}
    assert places["clock_change"] == {60}
    assert places["bank_holiday"] == {70}
    assert places["price_event"] == {80}
    assert places["absence"] == set(range(85, 90))
    assert not real.nights_by_control["absence"][[0, 1, 2]].any()
    span = snap.nights_by_control["cold_snap"].any(axis=0)
    np.testing.assert_allclose(snap.fleet.kwh[:, span], fleet.kwh[:, span] * 1.3, rtol=1e-5)
    np.testing.assert_array_equal(snap.fleet.kwh[:, ~span], fleet.kwh[:, ~span])
    assert np.isnan(new.fleet.kwh[::2, : NIGHTS.start - 7]).all()
    assert np.isfinite(new.fleet.kwh[1::2, : NIGHTS.start - 7]).all()
    assert new.nights_by_control["new_meter"].any(axis=0).argmax() == NIGHTS.start
    assert not new.nights_by_control["new_meter"][1::2].any()
    for count in (0, 2, 4, 8, 12):
        rows = gappy.fleet.kwh[gappy.nights_by_control[f"{count}_missing"]]
        assert len(rows) > 20
        assert (np.isnan(rows).sum(axis=1) >= count).all()
        assert np.median(np.isnan(rows).sum(axis=1)) == count
    loud = measure_control_alarms(
        [(real, np.where(real.nights_by_control["absence"], 1.0, 0.0))], threshold=1
    )
    assert read_metric(loud, "alarms_per_1000", "absence") == 1000
    assert read_metric(loud, "alarms_per_1000", "bank_holiday") == 0


@pytest.mark.parametrize("name", ["isolation_forest", "pca", "ecod"])
def test_baselines_score_unique_profile_highest(name: str) -> None:
    fleet = build_gappy_fleet()
    peer = baselines.fit_baseline(name, fleet, seed=0, min_readings=MIN_READINGS)
    other = fleets.build_fleet(fleet.kwh.copy())
    other.kwh[4, 60, ::2] *= 20
    score = peer(other)
    assert np.nanargmax(score) == np.ravel_multi_index((4, 60), score.shape)
    assert np.isnan(score[1, 50])


def test_missing_baseline_library_raises_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyod.models.iforest", None)
    with pytest.raises(UserError, match="iforest is not installed"):
        baselines.fit_baseline(
            "isolation_forest", build_gappy_fleet(), seed=0, min_readings=MIN_READINGS
        )


def test_benchmark_imports_without_baseline_libraries() -> None:
    code = (
        "import sys\n"
        "sys.modules['pyod'] = sys.modules['stumpy'] = None\n"
        "import ml.evaluation.baselines, ml.plots.benchmark, ml.evaluation.report\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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


def test_every_kind_has_correct_reasons() -> None:
    assert tuple(CORRECT_REASONS) == KIND_NAMES
    assert all(
        reasons and set(reasons) <= set(ANOMALY_REASONS) for reasons in CORRECT_REASONS.values()
    )


def test_reasons_are_counted_by_kind_for_found_nights() -> None:
    """Fleet of one home that uses 1 kWh, 3 kWh on a tripled night, nothing on a zero one."""
    kwh = np.ones((1, 20, 48), dtype=np.float32)
    kwh[0, 10], kwh[0, 12, 10:40], kwh[0, 14] = 3, 0, 3
    truth = build_truth([[0] * 20])
    truth.kind_code[0, [10, 12, 16]] = [
        1 + KIND_NAMES.index(kind) for kind in ("doubled", "zero_window", "spike")
    ]
    found = np.zeros((1, 20), dtype=bool)
    found[0, [10, 12, 14]] = True
    home = fleets.build_fleet(kwh)
    counts = count_reasons_by_kind(found, truth, home, np.ones_like(kwh))
    assert set(counts.rows()) == {
        ("doubled", "rise", 1),
        ("zero_window", "outage", 1),
        (NO_INJECTION, "rise", 1),
    }


def test_correct_reason_need_not_be_the_best_one() -> None:
    counts = pl.DataFrame(
        {
            "kind": ["clock_shift", "clock_shift", "clock_shift", NO_INJECTION],
            "reason": ["shifted", "unusual_shape", "rise", "rise"],
            "nights": [5, 3, 2, 90],
        }
    )
    assert (
        describe_reason_accuracy(counts) == "80.0% of 10 nights found are named rightly, 50.0% best"
    )
    row = tabulate_reasons(counts).row(by_predicate=pl.col("kind") == "clock_shift", named=True)
    assert (row["shifted"], row["unusual_shape"], row["rise"], row["outage"]) == (5, 3, 2, 0)
    assert row["right"] == 0.8
    nothing = tabulate_reasons(counts).row(-1, named=True)
    assert (nothing["kind"], nothing["rise"], nothing["right"]) == (NO_INJECTION, 90, None)
    assert describe_reason_accuracy(counts[3:]) == "no injected night was found"
