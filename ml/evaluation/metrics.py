"""The figures of the benchmark, each with a bootstrap interval over households.

    table = figures(score, truth)              # figure, of, value, low, high
    better(score_a, score_b, truth)            # share of resamples in which a is better

A score `[R, D]` is higher where a night is more anomalous; a night that counts and has none ranks
last. Thresholds are read off the normal nights: a false alarm is a normal night at or above it.
Alerts are joined into episodes as everywhere (`ml.episodes`); an episode that a normal night opens
is a false episode. An injected night is found where its score reaches the threshold.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import auc, roc_curve

from ml.arrays import FloatArray
from ml.episodes import find_episode_starts
from ml.evaluation.inject import KIND_NAMES, Bools, GroundTruth, Ints
from ml.evaluation.injections import EPISODE_NIGHTS

ALERT_BUDGETS: Final = (1, 3, 10)
"""False alert episodes in 1,000 clean household-nights."""
HEADLINE_BUDGET: Final = 3
DETECTION_DELAY_NIGHTS: Final = (1, 3, 7, 14)
PREVALENCES: Final = (0.005, 0.02, 0.08)
FALSE_ALARM_RATES: Final = (0.01, 0.001)
TOP_RANKS: Final = (10, 50)
WORST_HOUSEHOLD_SHARE: Final = 0.01
N_RESAMPLES: Final = 200
N_THRESHOLDS: Final = 256
# The loosest threshold considered lets this share of the clean nights pass.
MAX_FALSE_ALARM_RATE: Final = 0.1

METRICS_SCHEMA: Final = {
    "metric": pl.String,
    "subset": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
}

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class RocCurve:
    """A receiver operating characteristic of weighted nights; thresholds fall."""

    false_alarm_rate: Doubles
    recall: Doubles
    thresholds: Doubles

    def average_precision(self, prevalence: float) -> float:
        """Average precision where this share of the nights is anomalous."""
        hits = prevalence * self.recall[1:]
        alarms = (1 - prevalence) * self.false_alarm_rate[1:]
        return float(np.sum(np.diff(self.recall) * hits / (hits + alarms)))

    def find_threshold(self, max_false_alarm_rate: float) -> float:
        """The lowest threshold at which no more than this share of the clean nights pass."""
        place = np.searchsorted(self.false_alarm_rate, max_false_alarm_rate, side="right") - 1
        return float(self.thresholds[place])

    def share_normal_above(self, score: Doubles) -> Doubles:
        """The share of clean nights above each score, half of those that are equal."""
        place = np.searchsorted(-self.thresholds, -score, side="left")
        place = np.minimum(place, len(self.thresholds) - 1)
        return (self.false_alarm_rate[place] + self.false_alarm_rate[np.maximum(place - 1, 0)]) / 2


class DetectorScores:
    """A detector's scores laid beside the truth, ready to be weighed by household.

    Rows of which no night counts are left out.
    """

    def __init__(self, score: FloatArray, truth: GroundTruth) -> None:
        kept = np.asarray(truth.is_tested.any(axis=1))
        score, truth = score[kept], truth.select_rows(kept)
        lowest = float(np.nanmin(score[truth.is_tested], initial=0.0)) - 1
        self.truth = truth
        self.score: Doubles = np.where(np.isfinite(score), score, lowest).astype(np.float64)
        ids, self.household_index = np.unique(truth.household_index, return_inverse=True)
        self.n_households = len(ids)
        self.tested_rows, self.tested_nights = np.nonzero(truth.is_tested)
        self.tested_scores = self.score[truth.is_tested]
        self.is_injected = truth.kind_code[truth.is_tested] > 0

    def compute_roc_curve(self, household_weights: Doubles) -> RocCurve:
        """The curve with each household's nights counted `weights` times, `[H]`."""
        return RocCurve(
            *roc_curve(
                self.is_injected,
                self.tested_scores,
                sample_weight=household_weights[self.household_index[self.tested_rows]],
                drop_intermediate=False,
            )
        )

    def sum_per_household(self, values: NDArray[Any]) -> Doubles:
        """Sum values `[R, ...]` over the rows of each household, `[H, ...]`."""
        total = np.zeros((self.n_households, *values.shape[1:]))
        np.add.at(total, self.household_index, values)
        return total

    @cached_property
    def thresholds(self) -> Doubles:
        """Thresholds from where no clean night passes to `LOOSEST`, `[T]`, falling."""
        clean = np.sort(self.tested_scores[~self.is_injected])[::-1]
        loosest = max(2, int(MAX_FALSE_ALARM_RATE * len(clean)))
        places = np.unique(np.geomspace(1, loosest, N_THRESHOLDS).round().astype(int)) - 1
        return np.append(np.nextafter(clean[0], np.inf), clean[np.minimum(places, len(clean) - 1)])

    @cached_property
    def n_normal_nights(self) -> Doubles:
        """Clean nights of each household, `[H]`."""
        return self.sum_per_household(self.truth.is_normal.sum(axis=1))

    @cached_property
    def n_false_episodes(self) -> Doubles:
        """Cases that a clean night opened, `[H, T]`."""
        return self.sum_per_household(count_false_episodes(self.score, self.truth, self.thresholds))

    def find_budget_threshold(self, budget: float, household_weights: Doubles) -> float:
        """The lowest threshold up to which false episodes stay within `budget` of 1,000 nights."""
        rate = (
            household_weights @ self.n_false_episodes / (household_weights @ self.n_normal_nights)
        )
        over = rate > budget / 1000
        place = int(over.argmax()) - 1 if over.any() else len(over) - 1
        return float(self.thresholds[max(place, 0)])

    def count_false_alarms(self, threshold: float) -> Doubles:
        """Clean nights of each household at or above a threshold, `[H]`."""
        return self.sum_per_household(
            ((self.score >= threshold) & self.truth.is_normal).sum(axis=1)
        )

    def is_found_within(self, threshold: float, n_nights: int) -> Bools:
        """Whether each lasting anomaly reaches a threshold within its first `nights`."""
        return np.asarray(self.running_peak_scores[:, n_nights - 1] >= threshold)

    @cached_property
    def running_peak_scores(self) -> Doubles:
        """Highest score of each lasting anomaly up to each of its nights, `[E, 14]`."""
        peaks = np.full((len(self.truth.episodes), EPISODE_NIGHTS), -np.inf)
        for place, episode in enumerate(self.truth.episodes):
            span = slice(episode.first_night, episode.first_night + episode.n_nights)
            peaks[place, : episode.n_nights] = self.score[episode.row, span]
        return np.maximum.accumulate(peaks, axis=1)

    @cached_property
    def rows_by_score(self) -> Ints:
        """Rows by falling score of each tested night, `[R, D]`; those that do not count last."""
        score = np.where(self.truth.is_tested, self.score, -np.inf)[:, self.is_tested_night]
        return np.asarray(np.argsort(-score, axis=0, kind="stable"))

    @cached_property
    def is_tested_night(self) -> Bools:
        """`[D]` nights of which any row counts."""
        return np.asarray(self.truth.is_tested.any(axis=0))

    @cached_property
    def episode_households(self) -> Ints:
        """The place of each lasting anomaly's household."""
        rows = [episode.row for episode in self.truth.episodes]
        return np.asarray(self.household_index[np.array(rows, dtype=np.int_)])


def count_false_episodes(
    score: FloatArray, truth: GroundTruth, thresholds: Doubles
) -> NDArray[np.int_]:
    """Return the episodes `[R, T]` that a normal night opens, at each of `T` thresholds.

    A night alerts where its score `[R, D]` reaches the threshold; nights that are not tested never
    do. An episode that an injected night opens is not false, however far it reaches.
    """
    n_false_episodes = np.zeros((len(score), len(thresholds)), dtype=np.int_)
    tested_nights = np.flatnonzero(truth.is_tested.any(axis=0))
    if not len(tested_nights):
        return n_false_episodes
    nights = slice(tested_nights[0], tested_nights[-1] + 1)
    is_tested = truth.is_tested[:, nights]
    is_normal = truth.is_normal[:, nights]
    # A threshold at a time: the alerts of all 256 at once would be 256 times the scores.
    for step, threshold in enumerate(thresholds):
        starts = find_episode_starts((score[:, nights] >= threshold) & is_tested)
        n_false_episodes[:, step] = (starts & is_normal).sum(axis=1)
    return n_false_episodes


def compute_metrics(
    score: FloatArray, truth: GroundTruth, *, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> pl.DataFrame:
    """Every figure of a detector: `figure`, `of` (a kind, or null for all), `value`, `low`, `high`.

    Average precision is taken where 0.5, 2 and 8 % of the nights are anomalous.
    """
    return bootstrap_metrics(DetectorScores(score, truth), seed=seed, n_resamples=n_resamples)


def bootstrap_metrics(
    scored: DetectorScores, *, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> pl.DataFrame:
    """As `figures`, of scores that lie beside the truth already."""
    values = _compute_metric_values(scored, np.ones(scored.n_households))
    drawn = [
        _compute_metric_values(scored, weights)
        for weights in draw_household_weights(scored.n_households, n_resamples, seed)
    ]
    spread = np.array([[sample[key] for key in values] for sample in drawn])
    low, high = _bootstrap_interval(spread, len(values))
    names, of = zip(*values, strict=True)
    columns = {
        "metric": names,
        "subset": of,
        "value": list(values.values()),
        "low": low,
        "high": high,
    }
    return pl.DataFrame(columns, schema=METRICS_SCHEMA, strict=False)


def estimate_superiority(
    score: FloatArray,
    other_score: FloatArray,
    truth: GroundTruth,
    *,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> float:
    """How sure it is that `score` ranks better than `other`: share of resamples, ties half.

    A paired bootstrap over households of the average precision at the natural prevalence.
    """
    one, two = DetectorScores(score, truth), DetectorScores(other_score, truth)
    prevalence = float(one.is_injected.mean())
    won = [
        np.sign(
            one.compute_roc_curve(weights).average_precision(prevalence)
            - two.compute_roc_curve(weights).average_precision(prevalence)
        )
        for weights in draw_household_weights(one.n_households, n_resamples, seed)
    ]
    return float(np.mean(won) / 2 + 0.5)


def draw_household_weights(n_households: int, n_resamples: int, seed: int) -> Iterator[Doubles]:
    """Weights `[H]` of households drawn with replacement."""
    random = np.random.default_rng(seed)
    for _ in range(n_resamples):
        yield random.multinomial(n_households, np.full(n_households, 1 / n_households)).astype(
            np.float64
        )


def _compute_metric_values(
    scored: DetectorScores, household_weights: Doubles
) -> dict[tuple[str, str | None], float]:
    curve = scored.compute_roc_curve(household_weights)
    limits = {
        budget: scored.find_budget_threshold(budget, household_weights) for budget in ALERT_BUDGETS
    }
    found: dict[tuple[str, str | None], float] = {
        (f"average_precision_{100 * p:g}pct", None): curve.average_precision(p) for p in PREVALENCES
    }
    found[("auc", None)] = float(auc(curve.false_alarm_rate, curve.recall))
    for rate in FALSE_ALARM_RATES:
        found[(f"recall_{100 * rate:g}pct", None)] = _compute_recall(
            scored, household_weights, curve.find_threshold(rate)
        )
    for budget, limit in limits.items():
        found[(f"recall_{budget}_episodes", None)] = _compute_recall(
            scored, household_weights, limit
        )
        for nights in DETECTION_DELAY_NIGHTS:
            early = scored.is_found_within(limit, nights)
            share = _weighted_share(early, household_weights[scored.episode_households])
            found[(f"found_within_{nights}_nights_{budget}_episodes", None)] = share
    for top in TOP_RANKS:
        found[(f"precision_top_{top}", None)] = _compute_precision_at_top(
            scored, household_weights, top
        )
    found[("worst_households_share", None)] = _compute_worst_household_share(
        scored, household_weights, limits[HEADLINE_BUDGET]
    )
    return found | _compute_kind_metrics(scored, household_weights, curve, limits[HEADLINE_BUDGET])


def _compute_kind_metrics(
    scored: DetectorScores, household_weights: Doubles, curve: RocCurve, threshold: float
) -> dict[tuple[str, str | None], float]:
    found: dict[tuple[str, str | None], float] = {}
    place = scored.truth.kind_code[scored.truth.is_tested][scored.is_injected] - 1
    score = scored.tested_scores[scored.is_injected]
    weight = household_weights[scored.household_index[scored.tested_rows[scored.is_injected]]]
    measured: dict[str, NDArray[Any]] = {
        "auc": 1 - curve.share_normal_above(score),
        "recall_1pct": score >= curve.find_threshold(0.01),
        f"recall_{HEADLINE_BUDGET}_episodes": score >= threshold,
    }
    total = np.bincount(place, weight, minlength=len(KIND_NAMES))
    for figure, values in measured.items():
        sums = np.bincount(place, weight * values, minlength=len(KIND_NAMES))
        means = np.divide(sums, total, out=np.full(len(KIND_NAMES), np.nan), where=total > 0)
        found |= {(figure, kind): float(mean) for kind, mean in zip(KIND_NAMES, means, strict=True)}
    return found


def _compute_recall(scored: DetectorScores, household_weights: Doubles, threshold: float) -> float:
    weight = household_weights[scored.household_index[scored.tested_rows[scored.is_injected]]]
    return _weighted_share(scored.tested_scores[scored.is_injected] >= threshold, weight)


def _compute_precision_at_top(
    scored: DetectorScores, household_weights: Doubles, n_top: int
) -> float:
    """Share of planted nights among the `top` highest scores of each night."""
    first = scored.rows_by_score[:n_top]
    counts = np.take_along_axis(scored.truth.is_tested[:, scored.is_tested_night], first, axis=0)
    kind = np.take_along_axis(scored.truth.kind_code[:, scored.is_tested_night], first, axis=0)
    return _weighted_share(
        kind > 0, np.where(counts, household_weights[scored.household_index[first]], 0.0)
    )


def _compute_worst_household_share(
    scored: DetectorScores, household_weights: Doubles, threshold: float
) -> float:
    """Share of the false alarms that the worst hundredth of the households, or one, raises."""
    alarms = np.repeat(scored.count_false_alarms(threshold), household_weights.astype(int))
    ordered = np.sort(alarms)[::-1]
    total = ordered.sum()
    worst = ordered[: max(1, round(WORST_HOUSEHOLD_SHARE * scored.n_households))].sum()
    return float(worst / total) if total else float("nan")


def _weighted_share(is_counted: Bools, weight: Doubles) -> float:
    total = weight.sum()
    return float((is_counted * weight).sum() / total) if total else float("nan")


def _bootstrap_interval(resampled_values: Doubles, n_metrics: int) -> tuple[Doubles, Doubles]:
    """The middle 95 % of resampled figures `[B, F]`; NaN where there are none."""
    if not len(resampled_values):
        return np.full(n_metrics, np.nan), np.full(n_metrics, np.nan)
    known = np.isfinite(resampled_values).any(axis=0)
    ends = np.full((2, n_metrics), np.nan)
    ends[:, known] = np.nanquantile(resampled_values[:, known], (0.025, 0.975), axis=0)
    return ends[0], ends[1]
