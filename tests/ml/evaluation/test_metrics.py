"""Metrics equal those of well-kept libraries and of a pencil."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ml.evaluation.inject import KIND_NAMES, GroundTruth, InjectedEpisode
from ml.evaluation.metrics import (
    DetectorScores,
    compute_metrics,
    count_false_episodes,
    estimate_superiority,
    measure_flags,
)
from tests.evaluation_fixtures import build_truth, read_metric


@hypothesis_settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 50]))
def test_metrics_equal_scikit_learn(seed: int, steps: int) -> None:
    """Also where many scores are equal."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, 3, (6, 40)) * (random.random((6, 40)) < 0.3)
    kind[0, :3] = (0, 1, 2)
    truth = build_truth(kind.tolist())
    score = np.round((random.random(kind.shape) + 0.3 * (kind > 0)) * steps)
    flat, is_injected = score.ravel(), kind.ravel() > 0
    table, scored = compute_metrics(score, truth, n_resamples=0), DetectorScores(score, truth)
    curve = scored.compute_roc_curve(np.ones(6))
    natural = curve.average_precision(float(is_injected.mean()))
    assert natural == pytest.approx(average_precision_score(is_injected, flat))
    assert read_metric(table, "auc") == pytest.approx(roc_auc_score(is_injected, flat))
    kept = (kind.ravel() == 1) | ~is_injected
    of_kind = roc_auc_score(is_injected[kept], flat[kept])
    assert read_metric(table, "auc", KIND_NAMES[0]) == pytest.approx(of_kind)


def test_recall_uses_threshold_of_normal_nights() -> None:
    # 200 normal nights of scores 0 to 199, of which one in a hundred allows two: 198 and 199.
    score = np.append(np.arange(200.0), (196.5, 198.0, 250.0, 3.0))[None]
    table = compute_metrics(score, build_truth([[0] * 200 + [1, 1, 2, 2]]), n_resamples=0)
    assert read_metric(table, "recall_1pct") == 2 / 4
    assert read_metric(table, "recall_1pct", KIND_NAMES[0]) == 1 / 2
    # No normal night may pass at 1 in 1,000.
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
    # Twenty households, one night: four of the ten highest scores are injected ones.
    kind = [[1] if household in (0, 1, 2, 3, 15) else [0] for household in range(20)]
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


def test_flags_are_measured_without_any_threshold() -> None:
    episode = InjectedEpisode(row=0, first_night=20, n_nights=14, kind=KIND_NAMES[0])
    truth = build_truth([[0] * 20 + [1] * 14 + [0] * 66, [0] * 100], (episode,))
    is_flagged = np.zeros((2, 100), dtype=bool)
    is_flagged[0, [26, 27]] = True  # the seventh night of the episode, and the one after it
    is_flagged[1, [10, 20, 60]] = True  # two false episodes in 186 normal nights
    table = measure_flags(is_flagged, truth, n_resamples=0)
    assert read_metric(table, "flagged_false_episodes") == pytest.approx(1000 * 2 / 186)
    assert read_metric(table, "flagged_recall") == 2 / 14
    assert read_metric(table, "flagged_found_within_7_nights") == 1
    none = measure_flags(np.zeros((2, 100), dtype=bool), truth, n_resamples=3)
    assert none["value"].to_list() == none["high"].to_list() == [0, 0, 0]
