"""Detection metrics, each with a bootstrap interval over households.

    table = compute_metrics(score, truth)            # metric, subset, value, low, high
    table = measure_flags(is_flagged, truth)         # the same, of flags as the product raises them
    estimate_superiority(score_a, score_b, truth)    # share of resamples in which a is better

A score `[R, D]` is higher where a night is more anomalous; a tested night without a score ranks
last. Thresholds are read off the normal nights: a false alarm is a normal night at or above it.
Alerts are joined into episodes as everywhere (`ml.episodes`); an episode that a normal night opens
is a false episode. An injected night is found where its score reaches the threshold.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import auc, roc_curve

from ml.arrays import BoolArray, FloatArray, IntArray
from ml.episodes import find_episode_starts
from ml.evaluation.inject import KIND_NAMES, GroundTruth
from ml.evaluation.injections import EPISODE_NIGHTS

ALERT_BUDGETS: Final = (1, 3, 10)
"""False alert episodes in 1,000 normal household-nights that thresholds are taken at."""
HEADLINE_BUDGET: Final = 3
"""The budget of metrics by kind, controls and pictures: about one false episode a household and
year, the default of METERWATCH_ALERT_BUDGET."""
DETECTION_DELAY_NIGHTS: Final = (1, 3, 7, 14)
"""Nights within which an injected episode is to be found."""
HEADLINE_DELAY_NIGHTS: Final = 7
"""The delay of the table's main columns: half of an injected episode."""
PREVALENCES: Final = (0.005, 0.02, 0.08)
"""Anomalous shares of the nights that average precision is taken at. In service they are rare; 8 %
is the share that is injected."""
FALSE_ALARM_RATES: Final = (0.01, 0.001)
"""Shares of the normal nights that may pass the threshold of a recall."""
TOP_RANKS: Final = (10, 50)
"""Highest scores of a night that precision is taken of: what a person can look at."""
WORST_HOUSEHOLD_SHARE: Final = 0.01
"""Share of the households whose part of the false alarms is told; few make most of them."""
N_RESAMPLES: Final = 200
"""Bootstrap resamples: 5 lie beyond either end of an interval of 95 %. Chosen for the time: most
of a detector's evaluation goes into them."""
N_THRESHOLDS: Final = 256
"""Thresholds at which false episodes are counted, at even ratios of the normal nights that pass."""
MAX_FALSE_ALARM_RATE: Final = 0.1
"""Share of the normal nights that pass the lowest of these thresholds: far above any budget."""
FLAG_THRESHOLD: Final = 0.5
"""Threshold that tells a flag, 1, from none, 0."""

METRICS_SCHEMA: Final = {
    "metric": pl.String,
    "subset": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
}

Doubles = NDArray[np.float64]
MetricValues = dict[tuple[str, str | None], float]
"""Values by metric and subset; the subset is a kind of injection, or None for all."""


@dataclass(frozen=True)
class RocCurve:
    """A receiver operating characteristic of weighted nights, `[T]` by falling threshold."""

    false_alarm_rate: Doubles
    recall: Doubles
    thresholds: Doubles

    def average_precision(self, prevalence: float) -> float:
        """Return the average precision if this share of the nights were anomalous."""
        hits = prevalence * self.recall[1:]
        alarms = (1 - prevalence) * self.false_alarm_rate[1:]
        return float(np.sum(np.diff(self.recall) * hits / (hits + alarms)))

    def find_threshold(self, max_false_alarm_rate: float) -> float:
        """Return the lowest threshold that at most this share of the normal nights reaches."""
        place = np.searchsorted(self.false_alarm_rate, max_false_alarm_rate, side="right") - 1
        return float(self.thresholds[place])

    def share_normal_above(self, score: Doubles) -> Doubles:
        """Return the share of normal nights above each score, counting half of equal ones.

        One minus its mean over a kind's nights is the kind's AUC.
        """
        place = np.searchsorted(-self.thresholds, -score, side="left")
        place = np.minimum(place, len(self.thresholds) - 1)
        return (self.false_alarm_rate[place] + self.false_alarm_rate[np.maximum(place - 1, 0)]) / 2


class DetectorScores:
    """A detector's scores `[R, D]` beside the truth, ready to be weighted by household.

    Rows without a tested night are left out. A tested night without a score gets one below all
    others, so that refusing to score a night never improves a metric.
    """

    def __init__(self, score: FloatArray, truth: GroundTruth) -> None:
        has_tested_night = np.asarray(truth.is_tested.any(axis=1))
        score = score[has_tested_night]
        truth = truth.select_rows(has_tested_night)
        lowest = float(np.nanmin(score[truth.is_tested], initial=0.0)) - 1
        self.truth = truth
        self.score: Doubles = np.where(np.isfinite(score), score, lowest).astype(np.float64)
        ids, self.household_index = np.unique(truth.household_index, return_inverse=True)
        self.n_households = len(ids)
        self.tested_rows, self.tested_nights = np.nonzero(truth.is_tested)
        self.tested_scores = self.score[truth.is_tested]
        self.is_injected = truth.kind_code[truth.is_tested] > 0

    def compute_roc_curve(self, household_weights: Doubles) -> RocCurve:
        """Return the curve with each household's nights counted `household_weights` `[H]` times."""
        return RocCurve(
            *roc_curve(
                self.is_injected,
                self.tested_scores,
                sample_weight=household_weights[self.household_index[self.tested_rows]],
                drop_intermediate=False,
            )
        )

    def sum_per_household(self, values: NDArray[Any]) -> Doubles:
        """Return the sums of values `[R, ...]` over the rows of each household, `[H, ...]`."""
        total = np.zeros((self.n_households, *values.shape[1:]))
        np.add.at(total, self.household_index, values)
        return total

    @cached_property
    def thresholds(self) -> Doubles:
        """Thresholds `[T]`, falling: at first no normal night passes, at last one in ten."""
        descending = np.sort(self.tested_scores[~self.is_injected])[::-1]
        n_passing = max(2, int(MAX_FALSE_ALARM_RATE * len(descending)))
        places = np.unique(np.geomspace(1, n_passing, N_THRESHOLDS).round().astype(int)) - 1
        above_all = np.nextafter(descending[0], np.inf)
        return np.append(above_all, descending[np.minimum(places, len(descending) - 1)])

    @cached_property
    def n_normal_nights(self) -> Doubles:
        """Tested normal nights of each household, `[H]`."""
        return self.sum_per_household(self.truth.is_normal.sum(axis=1))

    @cached_property
    def n_false_episodes(self) -> Doubles:
        """False episodes of each household at each of `thresholds`, `[H, T]`."""
        return self.sum_per_household(count_false_episodes(self.score, self.truth, self.thresholds))

    def find_budget_threshold(self, budget: float, household_weights: Doubles) -> float:
        """Return the lowest threshold at which false episodes keep to a budget.

        `budget` is false episodes per 1,000 normal household-nights. The first threshold beyond
        it ends the search: further down, episodes may join and their number fall again.
        """
        rate = (
            household_weights @ self.n_false_episodes / (household_weights @ self.n_normal_nights)
        )
        is_over = rate > budget / 1000
        place = int(is_over.argmax()) - 1 if is_over.any() else len(is_over) - 1
        return float(self.thresholds[max(place, 0)])

    def count_false_alarms(self, threshold: float) -> Doubles:
        """Return the normal nights of each household at or above a threshold, `[H]`."""
        return self.sum_per_household(
            ((self.score >= threshold) & self.truth.is_normal).sum(axis=1)
        )

    def is_found_within(self, threshold: float, n_nights: int) -> BoolArray:
        """Return which injected episodes `[E]` reach a threshold within their first `n_nights`."""
        return np.asarray(self.running_peak_scores[:, n_nights - 1] >= threshold)

    @cached_property
    def running_peak_scores(self) -> Doubles:
        """Highest score of each injected episode up to each of its nights, `[E, 14]`."""
        peaks = np.full((len(self.truth.episodes), EPISODE_NIGHTS), -np.inf)
        for place, episode in enumerate(self.truth.episodes):
            span = slice(episode.first_night, episode.first_night + episode.n_nights)
            peaks[place, : episode.n_nights] = self.score[episode.row, span]
        return np.maximum.accumulate(peaks, axis=1)

    @cached_property
    def rows_by_score(self) -> IntArray:
        """Rows by falling score of each tested night, `[R, D]`; rows not tested then come last."""
        score = np.where(self.truth.is_tested, self.score, -np.inf)[:, self.is_tested_night]
        return np.asarray(np.argsort(-score, axis=0, kind="stable"))

    @cached_property
    def is_tested_night(self) -> BoolArray:
        """`[D]` nights on which any row is tested."""
        return np.asarray(self.truth.is_tested.any(axis=0))

    @cached_property
    def episode_households(self) -> IntArray:
        """`[E]` place of each injected episode's household in the weights."""
        rows = [episode.row for episode in self.truth.episodes]
        return np.asarray(self.household_index[np.array(rows, dtype=np.int_)])


ValueFunction = Callable[[DetectorScores, Doubles], MetricValues]
"""Computes metrics with each household's nights counted by its weight, `[H]`."""


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
    """Return every metric of a score `[R, D]`, in `METRICS_SCHEMA`.

    `subset` is a kind of injection, or null for all; `low` and `high` bound 95 % of the resamples.
    """
    return bootstrap_metrics(DetectorScores(score, truth), seed=seed, n_resamples=n_resamples)


def bootstrap_metrics(
    scored: DetectorScores, *, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> pl.DataFrame:
    """Return what `compute_metrics` returns, of scores that lie beside the truth already."""
    return _bootstrap(scored, _compute_metric_values, seed, n_resamples)


def measure_flags(
    is_flagged: BoolArray, truth: GroundTruth, *, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> pl.DataFrame:
    """Return the metrics of flags `[R, D]` as a product raises them, in `METRICS_SCHEMA`.

    `flagged_false_episodes`: episodes that a normal night opens, per 1,000 normal nights: the
    alert budget as it came out. `flagged_recall`: share of injected nights that are flagged.
    `flagged_found_within_7_nights`: share of injected episodes with a flag on their first 7
    nights. Unlike all other metrics, no threshold is taken from the nights that are measured.
    """
    flagged = DetectorScores(is_flagged.astype(np.float64), truth)
    episodes = count_false_episodes(flagged.score, flagged.truth, np.array([FLAG_THRESHOLD]))
    n_false_episodes = flagged.sum_per_household(episodes[:, 0])
    is_found = flagged.is_found_within(FLAG_THRESHOLD, HEADLINE_DELAY_NIGHTS)

    def compute_values(scored: DetectorScores, household_weights: Doubles) -> MetricValues:
        n_normal_nights = household_weights @ scored.n_normal_nights
        rate = float("nan")
        if n_normal_nights:
            rate = 1000 * float(household_weights @ n_false_episodes / n_normal_nights)
        episode_weights = household_weights[scored.episode_households]
        return {
            ("flagged_false_episodes", None): rate,
            ("flagged_recall", None): _compute_recall(scored, household_weights, FLAG_THRESHOLD),
            (f"flagged_found_within_{HEADLINE_DELAY_NIGHTS}_nights", None): _weighted_share(
                is_found, episode_weights
            ),
        }

    return _bootstrap(flagged, compute_values, seed, n_resamples)


def _bootstrap(
    scored: DetectorScores, compute_values: ValueFunction, seed: int, n_resamples: int
) -> pl.DataFrame:
    """Return metrics with the middle 95 % of their values over resampled households.

    Not `scipy.stats.bootstrap`: a resample that holds no night of a kind has no recall of it, and
    scipy's percentiles are then NaN; nor `average_precision_score(sample_weight=...)`, which
    sorts all nights once a prevalence, where one curve serves three prevalences, AUC and recalls.
    """
    values = compute_values(scored, np.ones(scored.n_households))
    resamples = [
        compute_values(scored, weights)
        for weights in draw_household_weights(scored.n_households, n_resamples, seed)
    ]
    resampled_values = np.array([[sample[key] for key in values] for sample in resamples])
    low, high = _bootstrap_interval(resampled_values, len(values))
    names, subsets = zip(*values, strict=True)
    columns = {
        "metric": names,
        "subset": subsets,
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
    """Return the share of resamples in which `score` ranks better than `other_score`, ties half.

    A paired bootstrap over households of the average precision at the share that was injected.
    """
    one = DetectorScores(score, truth)
    other = DetectorScores(other_score, truth)
    prevalence = float(one.is_injected.mean())
    signs = [
        np.sign(
            one.compute_roc_curve(weights).average_precision(prevalence)
            - other.compute_roc_curve(weights).average_precision(prevalence)
        )
        for weights in draw_household_weights(one.n_households, n_resamples, seed)
    ]
    return float(np.mean(signs) / 2 + 0.5)


def draw_household_weights(n_households: int, n_resamples: int, seed: int) -> Iterator[Doubles]:
    """Yield weights `[H]`: how often each household was drawn, with replacement."""
    random = np.random.default_rng(seed)
    for _ in range(n_resamples):
        yield random.multinomial(n_households, np.full(n_households, 1 / n_households)).astype(
            np.float64
        )


def _compute_metric_values(scored: DetectorScores, household_weights: Doubles) -> MetricValues:
    curve = scored.compute_roc_curve(household_weights)
    thresholds = {
        budget: scored.find_budget_threshold(budget, household_weights) for budget in ALERT_BUDGETS
    }
    values: MetricValues = {
        (f"average_precision_{100 * share:g}pct", None): curve.average_precision(share)
        for share in PREVALENCES
    }
    values[("auc", None)] = float(auc(curve.false_alarm_rate, curve.recall))
    for rate in FALSE_ALARM_RATES:
        values[(f"recall_{100 * rate:g}pct", None)] = _compute_recall(
            scored, household_weights, curve.find_threshold(rate)
        )
    episode_weights = household_weights[scored.episode_households]
    for budget, threshold in thresholds.items():
        values[(f"recall_{budget}_episodes", None)] = _compute_recall(
            scored, household_weights, threshold
        )
        for n_nights in DETECTION_DELAY_NIGHTS:
            is_found = scored.is_found_within(threshold, n_nights)
            metric = f"found_within_{n_nights}_nights_{budget}_episodes"
            values[(metric, None)] = _weighted_share(is_found, episode_weights)
    for n_top in TOP_RANKS:
        values[(f"precision_top_{n_top}", None)] = _compute_precision_at_top(
            scored, household_weights, n_top
        )
    headline_threshold = thresholds[HEADLINE_BUDGET]
    values[("worst_households_share", None)] = _compute_worst_household_share(
        scored, household_weights, headline_threshold
    )
    return values | _compute_kind_metrics(scored, household_weights, curve, headline_threshold)


def _compute_kind_metrics(
    scored: DetectorScores, household_weights: Doubles, curve: RocCurve, threshold: float
) -> MetricValues:
    """Return AUC and recalls of each kind's nights against all normal nights."""
    values: MetricValues = {}
    kind_index = scored.truth.kind_code[scored.truth.is_tested][scored.is_injected] - 1
    score = scored.tested_scores[scored.is_injected]
    weight = household_weights[scored.household_index[scored.tested_rows[scored.is_injected]]]
    values_by_metric: dict[str, NDArray[Any]] = {
        "auc": 1 - curve.share_normal_above(score),
        "recall_1pct": score >= curve.find_threshold(0.01),
        f"recall_{HEADLINE_BUDGET}_episodes": score >= threshold,
    }
    total = np.bincount(kind_index, weight, minlength=len(KIND_NAMES))
    for metric, of_nights in values_by_metric.items():
        sums = np.bincount(kind_index, weight * of_nights, minlength=len(KIND_NAMES))
        means = np.divide(sums, total, out=np.full(len(KIND_NAMES), np.nan), where=total > 0)
        for kind, mean in zip(KIND_NAMES, means, strict=True):
            values[(metric, kind)] = float(mean)
    return values


def _compute_recall(scored: DetectorScores, household_weights: Doubles, threshold: float) -> float:
    weight = household_weights[scored.household_index[scored.tested_rows[scored.is_injected]]]
    return _weighted_share(scored.tested_scores[scored.is_injected] >= threshold, weight)


def _compute_precision_at_top(
    scored: DetectorScores, household_weights: Doubles, n_top: int
) -> float:
    """Return the share of injected nights among the `n_top` highest scores of each night."""
    rows = scored.rows_by_score[:n_top]
    nights = scored.is_tested_night
    is_tested = np.take_along_axis(scored.truth.is_tested[:, nights], rows, axis=0)
    kind_code = np.take_along_axis(scored.truth.kind_code[:, nights], rows, axis=0)
    weight = np.where(is_tested, household_weights[scored.household_index[rows]], 0.0)
    return _weighted_share(kind_code > 0, weight)


def _compute_worst_household_share(
    scored: DetectorScores, household_weights: Doubles, threshold: float
) -> float:
    """Return the part of the false alarms that the worst 1 % of the households, or one, raise."""
    alarms = np.repeat(scored.count_false_alarms(threshold), household_weights.astype(int))
    ordered = np.sort(alarms)[::-1]
    total = ordered.sum()
    worst = ordered[: max(1, round(WORST_HOUSEHOLD_SHARE * scored.n_households))].sum()
    return float(worst / total) if total else float("nan")


def _weighted_share(is_counted: BoolArray, weight: Doubles) -> float:
    total = weight.sum()
    return float((is_counted * weight).sum() / total) if total else float("nan")


def _bootstrap_interval(resampled_values: Doubles, n_metrics: int) -> tuple[Doubles, Doubles]:
    """Return the ends of the middle 95 % of resampled metrics `[B, M]`; NaN where all are NaN."""
    if not len(resampled_values):
        return np.full(n_metrics, np.nan), np.full(n_metrics, np.nan)
    has_value = np.isfinite(resampled_values).any(axis=0)
    ends = np.full((2, n_metrics), np.nan)
    ends[:, has_value] = np.nanquantile(resampled_values[:, has_value], (0.025, 0.975), axis=0)
    return ends[0], ends[1]
