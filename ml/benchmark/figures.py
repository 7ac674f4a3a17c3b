"""The figures of the benchmark, each with a bootstrap interval over households.

    table = figures(score, truth)              # figure, of, value, low, high
    better(score_a, score_b, truth)            # share of resamples in which a is better

A score `[R, D]` is higher where a night is more anomalous; a night that counts and has none ranks
last. Thresholds are read off the clean nights: a false alarm is a clean night at or above it. An
alert opens a case, which silences its row for `SILENCE` nights; a case that a clean night opened
is a false episode. A planted night is found where its score reaches the threshold.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import auc, roc_curve

from ml.benchmark.plant import NAMES, Bools, Ints, Truth
from ml.features import Floats
from ml.kinds import LASTING_NIGHTS

SILENCE: Final = 14
BUDGETS: Final = (1, 3, 10)
"""False alert episodes in 1,000 clean household-nights."""
BUDGET: Final = 3
WITHIN: Final = (1, 3, 7, 14)
PREVALENCES: Final = (0.005, 0.02, 0.08)
RATES: Final = (0.01, 0.001)
TOPS: Final = (10, 50)
WORST: Final = 0.01
RESAMPLES: Final = 200
THRESHOLDS: Final = 256
# The loosest threshold considered lets this share of the clean nights pass.
LOOSEST: Final = 0.1

SCHEMA: Final = {
    "figure": pl.String,
    "of": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
}

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A receiver operating characteristic of weighted nights; thresholds fall."""

    false_alarm_rate: Doubles
    recall: Doubles
    thresholds: Doubles

    def average_precision(self, prevalence: float) -> float:
        """Average precision where this share of the nights is anomalous."""
        hits = prevalence * self.recall[1:]
        alarms = (1 - prevalence) * self.false_alarm_rate[1:]
        return float(np.sum(np.diff(self.recall) * hits / (hits + alarms)))

    def threshold(self, rate: float) -> float:
        """The lowest threshold at which no more than this share of the clean nights pass."""
        place = np.searchsorted(self.false_alarm_rate, rate, side="right") - 1
        return float(self.thresholds[place])

    def rank(self, score: Doubles) -> Doubles:
        """The share of clean nights above each score, half of those that are equal."""
        place = np.searchsorted(-self.thresholds, -score, side="left")
        place = np.minimum(place, len(self.thresholds) - 1)
        return (self.false_alarm_rate[place] + self.false_alarm_rate[np.maximum(place - 1, 0)]) / 2


class Scored:
    """A detector's scores laid beside the truth, ready to be weighed by household.

    Rows of which no night counts are left out.
    """

    def __init__(self, score: Floats, truth: Truth) -> None:
        kept = np.asarray(truth.counts.any(axis=1))
        score, truth = score[kept], truth.rows(kept)
        lowest = float(np.nanmin(score[truth.counts], initial=0.0)) - 1
        self.truth = truth
        self.score: Doubles = np.where(np.isfinite(score), score, lowest).astype(np.float64)
        ids, self.household = np.unique(truth.household, return_inverse=True)
        self.n_households = len(ids)
        self.rows, self.nights = np.nonzero(truth.counts)
        self.flat = self.score[truth.counts]
        self.planted = truth.kind[truth.counts] > 0

    def curve(self, weights: Doubles) -> Curve:
        """The curve with each household's nights counted `weights` times, `[H]`."""
        return Curve(
            *roc_curve(
                self.planted,
                self.flat,
                sample_weight=weights[self.household[self.rows]],
                drop_intermediate=False,
            )
        )

    def per_household(self, values: NDArray[Any]) -> Doubles:
        """Sum values `[R, ...]` over the rows of each household, `[H, ...]`."""
        total = np.zeros((self.n_households, *values.shape[1:]))
        np.add.at(total, self.household, values)
        return total

    @cached_property
    def thresholds(self) -> Doubles:
        """Thresholds from where no clean night passes to `LOOSEST`, `[T]`, falling."""
        clean = np.sort(self.flat[~self.planted])[::-1]
        loosest = max(2, int(LOOSEST * len(clean)))
        places = np.unique(np.geomspace(1, loosest, THRESHOLDS).round().astype(int)) - 1
        return np.append(np.nextafter(clean[0], np.inf), clean[np.minimum(places, len(clean) - 1)])

    @cached_property
    def n_clean(self) -> Doubles:
        """Clean nights of each household, `[H]`."""
        return self.per_household(self.truth.clean.sum(axis=1))

    @cached_property
    def false_episodes(self) -> Doubles:
        """Cases that a clean night opened, `[H, T]`."""
        return self.per_household(false_episodes(self.score, self.truth, self.thresholds))

    def budget_threshold(self, budget: float, weights: Doubles) -> float:
        """The lowest threshold up to which false episodes stay within `budget` of 1,000 nights."""
        rate = weights @ self.false_episodes / (weights @ self.n_clean)
        over = rate > budget / 1000
        place = int(over.argmax()) - 1 if over.any() else len(over) - 1
        return float(self.thresholds[max(place, 0)])

    def false_alarms(self, limit: float) -> Doubles:
        """Clean nights of each household at or above a threshold, `[H]`."""
        return self.per_household(((self.score >= limit) & self.truth.clean).sum(axis=1))

    def found_within(self, limit: float, nights: int) -> Bools:
        """Whether each lasting anomaly reaches a threshold within its first `nights`."""
        return np.asarray(self.peaks[:, nights - 1] >= limit)

    @cached_property
    def peaks(self) -> Doubles:
        """Highest score of each lasting anomaly up to each of its nights, `[E, 14]`."""
        peaks = np.full((len(self.truth.lasting), LASTING_NIGHTS), -np.inf)
        for place, episode in enumerate(self.truth.lasting):
            span = slice(episode.first, episode.first + episode.length)
            peaks[place, : episode.length] = self.score[episode.row, span]
        return np.maximum.accumulate(peaks, axis=1)

    @cached_property
    def order(self) -> Ints:
        """Rows by falling score of each tested night, `[R, D]`; those that do not count last."""
        score = np.where(self.truth.counts, self.score, -np.inf)[:, self.tested]
        return np.asarray(np.argsort(-score, axis=0, kind="stable"))

    @cached_property
    def tested(self) -> Bools:
        """`[D]` nights of which any row counts."""
        return np.asarray(self.truth.counts.any(axis=0))

    @cached_property
    def household_of_lasting(self) -> Ints:
        """The place of each lasting anomaly's household."""
        rows = [episode.row for episode in self.truth.lasting]
        return np.asarray(self.household[np.array(rows, dtype=np.int_)])


def false_episodes(score: Floats, truth: Truth, thresholds: Doubles) -> NDArray[np.int_]:
    """Cases `[R, T]` that a clean night opened, at each of `T` thresholds."""
    alert = np.full((len(score), len(thresholds)), -SILENCE)
    opened = np.zeros(alert.shape, dtype=np.int_)
    for night in np.flatnonzero(truth.counts.any(axis=0)):
        loud = (score[:, night, None] >= thresholds) & truth.counts[:, night, None]
        opens = loud & (night - alert >= SILENCE)
        alert[opens] = night
        opened += opens & truth.clean[:, night, None]
    return opened


def figures(
    score: Floats, truth: Truth, *, seed: int = 0, resamples: int = RESAMPLES
) -> pl.DataFrame:
    """Every figure of a detector: `figure`, `of` (a kind, or null for all), `value`, `low`, `high`.

    Average precision is taken where 0.5, 2 and 8 % of the nights are anomalous.
    """
    return figures_of(Scored(score, truth), seed=seed, resamples=resamples)


def figures_of(scored: Scored, *, seed: int = 0, resamples: int = RESAMPLES) -> pl.DataFrame:
    """As `figures`, of scores that lie beside the truth already."""
    values = _values(scored, np.ones(scored.n_households))
    drawn = [_values(scored, weights) for weights in draws(scored.n_households, resamples, seed)]
    spread = np.array([[sample[key] for key in values] for sample in drawn])
    low, high = _interval(spread, len(values))
    names, of = zip(*values, strict=True)
    columns = {"figure": names, "of": of, "value": list(values.values()), "low": low, "high": high}
    return pl.DataFrame(columns, schema=SCHEMA, strict=False)


def better(
    score: Floats, other: Floats, truth: Truth, *, seed: int = 0, resamples: int = RESAMPLES
) -> float:
    """How sure it is that `score` ranks better than `other`: share of resamples, ties half.

    A paired bootstrap over households of the average precision at the natural prevalence.
    """
    one, two = Scored(score, truth), Scored(other, truth)
    prevalence = float(one.planted.mean())
    won = [
        np.sign(
            one.curve(weights).average_precision(prevalence)
            - two.curve(weights).average_precision(prevalence)
        )
        for weights in draws(one.n_households, resamples, seed)
    ]
    return float(np.mean(won) / 2 + 0.5)


def draws(n_households: int, resamples: int, seed: int) -> Iterator[Doubles]:
    """Weights `[H]` of households drawn with replacement."""
    random = np.random.default_rng(seed)
    for _ in range(resamples):
        yield random.multinomial(n_households, np.full(n_households, 1 / n_households)).astype(
            np.float64
        )


def _values(scored: Scored, weights: Doubles) -> dict[tuple[str, str | None], float]:
    curve = scored.curve(weights)
    limits = {budget: scored.budget_threshold(budget, weights) for budget in BUDGETS}
    found: dict[tuple[str, str | None], float] = {
        (f"average_precision_{100 * p:g}pct", None): curve.average_precision(p) for p in PREVALENCES
    }
    found[("auc", None)] = float(auc(curve.false_alarm_rate, curve.recall))
    for rate in RATES:
        found[(f"recall_{100 * rate:g}pct", None)] = _recall(scored, weights, curve.threshold(rate))
    for budget, limit in limits.items():
        found[(f"recall_{budget}_episodes", None)] = _recall(scored, weights, limit)
        for nights in WITHIN:
            early = scored.found_within(limit, nights)
            share = _share(early, weights[scored.household_of_lasting])
            found[(f"found_within_{nights}_nights_{budget}_episodes", None)] = share
    for top in TOPS:
        found[(f"precision_top_{top}", None)] = _precision_at_top(scored, weights, top)
    found[("worst_homes_share", None)] = _worst_share(scored, weights, limits[BUDGET])
    return found | _by_kind(scored, weights, curve, limits[BUDGET])


def _by_kind(
    scored: Scored, weights: Doubles, curve: Curve, limit: float
) -> dict[tuple[str, str | None], float]:
    found: dict[tuple[str, str | None], float] = {}
    place = scored.truth.kind[scored.truth.counts][scored.planted] - 1
    score = scored.flat[scored.planted]
    weight = weights[scored.household[scored.rows[scored.planted]]]
    measured: dict[str, NDArray[Any]] = {
        "auc": 1 - curve.rank(score),
        "recall_1pct": score >= curve.threshold(0.01),
        f"recall_{BUDGET}_episodes": score >= limit,
    }
    total = np.bincount(place, weight, minlength=len(NAMES))
    for figure, values in measured.items():
        sums = np.bincount(place, weight * values, minlength=len(NAMES))
        means = np.divide(sums, total, out=np.full(len(NAMES), np.nan), where=total > 0)
        found |= {(figure, kind): float(mean) for kind, mean in zip(NAMES, means, strict=True)}
    return found


def _recall(scored: Scored, weights: Doubles, limit: float) -> float:
    weight = weights[scored.household[scored.rows[scored.planted]]]
    return _share(scored.flat[scored.planted] >= limit, weight)


def _precision_at_top(scored: Scored, weights: Doubles, top: int) -> float:
    """Share of planted nights among the `top` highest scores of each night."""
    first = scored.order[:top]
    counts = np.take_along_axis(scored.truth.counts[:, scored.tested], first, axis=0)
    kind = np.take_along_axis(scored.truth.kind[:, scored.tested], first, axis=0)
    return _share(kind > 0, np.where(counts, weights[scored.household[first]], 0.0))


def _worst_share(scored: Scored, weights: Doubles, limit: float) -> float:
    """Share of the false alarms that the worst hundredth of the households, or one, raises."""
    alarms = np.repeat(scored.false_alarms(limit), weights.astype(int))
    ordered = np.sort(alarms)[::-1]
    total = ordered.sum()
    worst = ordered[: max(1, round(WORST * scored.n_households))].sum()
    return float(worst / total) if total else float("nan")


def _share(of: Bools, weight: Doubles) -> float:
    total = weight.sum()
    return float((of * weight).sum() / total) if total else float("nan")


def _interval(spread: Doubles, count: int) -> tuple[Doubles, Doubles]:
    """The middle 95 % of resampled figures `[B, F]`; NaN where there are none."""
    if not len(spread):
        return np.full(count, np.nan), np.full(count, np.nan)
    known = np.isfinite(spread).any(axis=0)
    ends = np.full((2, count), np.nan)
    ends[:, known] = np.nanquantile(spread[:, known], (0.025, 0.975), axis=0)
    return ends[0], ends[1]
