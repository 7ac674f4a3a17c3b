"""The detection benchmark: every detector side by side on the same injected nights.

    data = prepare_benchmark(fleet, config)                          # split, inject, controls
    result = evaluate_detectors(data, resolve_detectors([]), config, fit_network)

Detectors learn from the households that are not held out, on the nights up to `until`; they are
measured on later nights of both. Nothing here reads or writes files.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np
import polars as pl

from ml import models
from ml.arrays import BoolArray, FloatArray, IntArray, pad_left
from ml.errors import UserError
from ml.evaluation import baseline_rules
from ml.evaluation.alarm_rates import measure_monthly_alarm_ratio
from ml.evaluation.baselines import BASELINES, MissingLibraryError, fit_baseline
from ml.evaluation.controls import ControlFleet, build_control_fleets, measure_control_alarms
from ml.evaluation.inject import KIND_NAMES, GroundTruth, inject_anomalies, repeat_households
from ml.evaluation.injections import EPISODE_NIGHTS
from ml.evaluation.metrics import (
    HEADLINE_BUDGET,
    DetectorScores,
    bootstrap_metrics,
    compute_metrics,
    measure_flags,
)
from ml.evaluation.reason_confusion import count_reasons_by_kind
from ml.fleet import LEVEL_NIGHTS, Fleet
from ml.scoring.detector import Detector
from ml.scoring.tables import WARMUP_NIGHTS, score_fleet
from ml.training.split import is_held_out

FUSION: Final = "fusion"
SEED_MODEL: Final = "conditional_autoencoder"
"""The model the project started from; its bare error is measured too, as `one-sided`."""
DETECTOR_GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "rules": (*baseline_rules.BASELINE_RULES, FUSION),
    "baselines": BASELINES,
    "networks": models.MODEL_NAMES,
}
DETECTOR_CHOICES: Final = (
    *DETECTOR_GROUPS,
    *(name for names in DETECTOR_GROUPS.values() for name in names),
)
PRETEST_NIGHTS: Final = 56
"""Nights before the test, without injections, that rules and alarm rates take their thresholds
from. Chosen: eight weeks, twice what a household's usual level is taken from."""
MIN_TRAINING_NIGHTS: Final = 28
"""Least nights to learn from: every weekday four times, and the least that training accepts."""
MIN_TEST_NIGHTS: Final = 2 * EPISODE_NIGHTS
"""Least nights to measure on: room for an injected episode of 14 nights and as many normal ones."""
TARGET_ROWS: Final = 500
"""Rows to inject into: held-out households are copied until there are about so many, at most once
a kind. Chosen: 27 held-out London households get all 17 kinds (459 rows)."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure, and on which nights."""

    until: date | None
    """Last night to learn from; without it two thirds of the nights are learned from."""
    seed: int
    """Seed of what is injected, of the networks and of the bootstrap."""
    copies: int | None
    """Times that each held-out household is injected; without it by `TARGET_ROWS`."""
    min_readings: int
    """Half-hours that a night needs to be scored and injected."""
    alert_budget: float
    """False alert episodes per 1,000 normal household-nights that flags are to keep to."""
    required_detectors: tuple[str, ...] = ()
    """Detectors whose missing library is an error; others are left out."""


@dataclass(frozen=True)
class DetectorOutput:
    """What a detector makes of a fleet."""

    scores_by_name: dict[str, FloatArray]
    """`[H, D]` by name: the detector's own first, then its variants'; higher is more anomalous."""
    expected_kwh: FloatArray | None = None
    """`[H, D, 48]` expected profile, of a detector that has one."""
    is_flagged: BoolArray | None = None
    """`[H, D]` flags that the product would raise at the alert budget, of a calibrated detector."""


FleetScorer = Callable[[Fleet], DetectorOutput]
NetworkFitter = Callable[[str, Fleet], Detector]
"""Trains and calibrates the named model on a fleet, on the households that are not held out."""


@dataclass(frozen=True)
class FittedDetector:
    """A detector ready to score fleets."""

    score: FleetScorer
    no_flags_reason: str | None = None
    """Why a calibrated detector raises no flags: its calibration cannot hold the alert budget."""


@dataclass(frozen=True)
class BenchmarkData:
    """What detectors learn from and what they are measured on."""

    training_fleet: Fleet
    """All households on the nights up to `until`; detectors leave out the held-out ones."""
    injected_fleet: Fleet
    """Rows of held-out, then of training households; 56 nights and the warm-up before the test."""
    truth: GroundTruth
    """What was injected into the rows of `injected_fleet`."""
    held_out_households: IntArray
    """Places in the training fleet of the households that no network learns from."""
    training_households: IntArray
    """Places of as many of the others as there are injected rows of held-out ones."""
    control_fleets: list[ControlFleet]
    """Held-out households without injections."""
    pretest_nights: slice
    """Places in `injected_fleet` of the nights before the test."""
    description_lines: list[str]
    """What was split and injected, for the head of the table."""


@dataclass(frozen=True)
class BenchmarkResult:
    """The metrics of every detector, their scores, and the reasons of what they found."""

    metrics: pl.DataFrame
    """`detector`, `households` (held_out or training), then the columns of `METRICS_SCHEMA`."""
    detector_scores: dict[str, DetectorScores]
    """Scores of held-out households beside the truth, by detector or variant."""
    reason_counts: dict[str, pl.DataFrame]
    """`kind`, `reason`, `nights` of what was found at the headline budget, by detector."""
    notes: list[str]
    """A line for each detector that was left out, or whose flags were."""


def resolve_detectors(names: Sequence[str]) -> list[str]:
    """Return the detectors that names of detectors and groups stand for, in a fixed order.

    All detectors where there are no names.

    Raises:
        UserError: there is no such detector.
    """
    unknown = sorted(set(names) - set(DETECTOR_CHOICES))
    if unknown:
        raise UserError(f"no detector {unknown[0]!r}; there are {', '.join(DETECTOR_CHOICES)}")
    wanted = {
        detector
        for name in names or DETECTOR_GROUPS
        for detector in DETECTOR_GROUPS.get(name, (name,))
    }
    return [name for group in DETECTOR_GROUPS.values() for name in group if name in wanted]


def prepare_benchmark(fleet: Fleet, config: BenchmarkConfig) -> BenchmarkData:
    """Split a fleet by household and by time, inject into the later nights, build the controls.

    Raises:
        UserError: too few nights on either side, or no household to learn from or to hold out.
    """
    first_test_night = _find_first_test_night(fleet.nights, config.until)
    held_out_mask = is_held_out(fleet.household_ids)
    held_out = np.flatnonzero(held_out_mask)
    if not len(held_out) or held_out_mask.all():
        raise UserError(f"the benchmark needs more than {len(held_out_mask)} households")
    copies_for_target = int(np.clip(TARGET_ROWS // len(held_out), 1, len(KIND_NAMES)))
    n_copies = config.copies or copies_for_target
    rows = repeat_households(held_out, n_copies)
    training = _select_evenly(np.flatnonzero(~held_out_mask), len(rows))
    recent = fleet.select_nights(max(0, first_test_night - PRETEST_NIGHTS - WARMUP_NIGHTS))
    start = recent.nights.index(fleet.nights[first_test_night])
    test_nights = slice(start, len(recent.nights))
    injected, truth = inject_anomalies(
        recent,
        np.concatenate([rows, training]),
        test_nights,
        seed=config.seed,
        min_readings=config.min_readings,
    )
    return BenchmarkData(
        training_fleet=fleet.select_nights(0, first_test_night),
        injected_fleet=injected,
        truth=truth,
        held_out_households=held_out,
        training_households=training,
        control_fleets=build_control_fleets(recent, held_out, test_nights, config.min_readings),
        pretest_nights=slice(max(0, start - PRETEST_NIGHTS), start),
        description_lines=[
            *_describe_split(fleet, first_test_night, truth, held_out, n_copies),
            f"flags are those of an alert budget of {config.alert_budget:g} false episodes in "
            "1,000 normal household-nights",
        ],
    )


def evaluate_detectors(
    data: BenchmarkData,
    detectors: Iterable[str],
    config: BenchmarkConfig,
    fit_network: NetworkFitter,
) -> BenchmarkResult:
    """Fit every detector, and return its metrics on the injected fleet and the controls.

    Raises:
        MissingLibraryError: the library of a required detector is not installed.
        UserError: a network cannot be trained on the fleet.
    """
    tables = []
    detector_scores = {}
    reason_counts = {}
    notes = []
    for name in detectors:
        try:
            fitted = _fit_detector(name, data, config, fit_network)
        except MissingLibraryError as missing:
            if name in config.required_detectors:
                raise
            notes.append(f"{name} was left out: {missing}")
            continue
        if fitted.no_flags_reason is not None:
            notes.append(f"{name} has no flags: {fitted.no_flags_reason}")
        output = fitted.score(data.injected_fleet)
        control_scores = [
            (control, fitted.score(control.fleet).scores_by_name) for control in data.control_fleets
        ]
        for label, score in output.scores_by_name.items():
            held_out = DetectorScores(score, _held_out_truth(data))
            detector_scores[label] = held_out
            scored_controls = [(control, scores[label]) for control, scores in control_scores]
            is_flagged = output.is_flagged if label == name else None
            metrics = _measure_detector(
                data, score, held_out, scored_controls, is_flagged, config.seed
            )
            tables.append(metrics.select(pl.lit(label).alias("detector"), pl.all()))
        if output.expected_kwh is not None:
            reason_counts[name] = _count_reasons(
                data, detector_scores[name], output.scores_by_name[name], output.expected_kwh
            )
    return BenchmarkResult(pl.concat(tables), detector_scores, reason_counts, notes)


def _fit_detector(
    name: str, data: BenchmarkData, config: BenchmarkConfig, fit_network: NetworkFitter
) -> FittedDetector:
    if name in DETECTOR_GROUPS["rules"]:
        return FittedDetector(_build_rule_scorer(name, data.pretest_nights, config.min_readings))
    if name in BASELINES:
        return FittedDetector(_fit_baseline_scorer(name, data, config))
    detector = fit_network(name, data.training_fleet)
    try:
        threshold = detector.calibration.alert_threshold(config.alert_budget)
    except UserError as error:
        # A benchmark of few households still compares rankings; only the flags are missing.
        return FittedDetector(
            _build_network_scorer(name, detector, None, config.min_readings), str(error)
        )
    return FittedDetector(_build_network_scorer(name, detector, threshold, config.min_readings))


def _build_rule_scorer(name: str, pretest_nights: slice, min_readings: int) -> FleetScorer:
    def score_fleet_by_rule(fleet: Fleet) -> DetectorOutput:
        if name == FUSION:
            score = baseline_rules.fuse_rules(fleet, min_readings, pretest_nights)
        else:
            score = baseline_rules.BASELINE_RULES[name](fleet, min_readings)
        return DetectorOutput({name: score})

    return score_fleet_by_rule


def _fit_baseline_scorer(name: str, data: BenchmarkData, config: BenchmarkConfig) -> FleetScorer:
    is_training = ~is_held_out(data.training_fleet.household_ids)
    score_nights = fit_baseline(
        name,
        data.training_fleet.select_households(is_training),
        seed=config.seed,
        min_readings=config.min_readings,
    )
    # Baselines are slow: the warm-up nights of the networks are not scored.
    first_night = max(0, data.pretest_nights.start - LEVEL_NIGHTS)

    def score_fleet_by_baseline(fleet: Fleet) -> DetectorOutput:
        score = score_nights(fleet.select_nights(first_night))
        return DetectorOutput({name: pad_left(score, first_night)})

    return score_fleet_by_baseline


def _build_network_scorer(
    name: str, detector: Detector, alert_threshold: float | None, min_readings: int
) -> FleetScorer:
    def score_fleet_by_network(fleet: Fleet) -> DetectorOutput:
        scored = score_fleet(detector, fleet, min_readings)
        scores = {name: scored.score, f"{name} evidence": scored.evidence}
        if name == SEED_MODEL:
            output = detector.run_network(fleet, slice(None), min_readings)
            scores[f"{name} one-sided"] = output.log_odds
        is_flagged = None
        if alert_threshold is not None:
            alert_p_value = detector.calibration.alert_p_values(scored.p_value, scored.evidence)
            is_flagged = np.asarray(alert_p_value <= alert_threshold)
        return DetectorOutput(scores, scored.expected_kwh, is_flagged)

    return score_fleet_by_network


def _measure_detector(
    data: BenchmarkData,
    score: FloatArray,
    held_out_scores: DetectorScores,
    scored_controls: list[tuple[ControlFleet, FloatArray]],
    is_flagged: BoolArray | None,
    seed: int,
) -> pl.DataFrame:
    """Return all metrics of a detector: `households`, then the columns of `METRICS_SCHEMA`."""
    threshold = _headline_threshold(held_out_scores)
    training_truth = data.truth.restrict_to_households(data.training_households)
    held_out = [
        bootstrap_metrics(held_out_scores, seed=seed),
        measure_control_alarms(scored_controls, threshold),
        measure_monthly_alarm_ratio(
            held_out_scores.score,
            held_out_scores.truth,
            data.injected_fleet.nights,
            data.pretest_nights,
        ),
    ]
    training = [compute_metrics(score, training_truth, seed=seed)]
    if is_flagged is not None:
        held_out.append(measure_flags(is_flagged, _held_out_truth(data), seed=seed))
        training.append(measure_flags(is_flagged, training_truth, seed=seed))
    return pl.concat(
        [
            pl.concat(held_out).select(pl.lit("held_out").alias("households"), pl.all()),
            pl.concat(training).select(pl.lit("training").alias("households"), pl.all()),
        ]
    )


def _count_reasons(
    data: BenchmarkData,
    held_out_scores: DetectorScores,
    score: FloatArray,
    expected_kwh: FloatArray,
) -> pl.DataFrame:
    """Count by kind and reason what is found at the headline budget."""
    is_found = np.asarray(score >= _headline_threshold(held_out_scores))
    return count_reasons_by_kind(is_found, _held_out_truth(data), data.injected_fleet, expected_kwh)


def _headline_threshold(scores: DetectorScores) -> float:
    return scores.find_budget_threshold(HEADLINE_BUDGET, np.ones(scores.n_households))


def _held_out_truth(data: BenchmarkData) -> GroundTruth:
    return data.truth.restrict_to_households(data.held_out_households)


def _find_first_test_night(nights: list[date], until: date | None) -> int:
    last_training_night = until or nights[2 * len(nights) // 3 - 1]
    first_test_night = sum(night <= last_training_night for night in nights)
    n_test_nights = len(nights) - first_test_night
    if first_test_night < MIN_TRAINING_NIGHTS or n_test_nights < MIN_TEST_NIGHTS:
        raise UserError(
            f"the benchmark needs {MIN_TRAINING_NIGHTS} nights to learn from and {MIN_TEST_NIGHTS} "
            f"after them; of {nights[0]} to {nights[-1]} there are {first_test_night} and "
            f"{n_test_nights}"
        )
    return first_test_night


def _select_evenly(household_indices: IntArray, max_count: int) -> IntArray:
    count = min(max_count, len(household_indices))
    return household_indices[np.linspace(0, len(household_indices) - 1, count).round().astype(int)]


def _describe_split(
    fleet: Fleet, first_test_night: int, truth: GroundTruth, held_out: IntArray, n_copies: int
) -> list[str]:
    held_out_truth = truth.restrict_to_households(held_out)
    injected_share = held_out_truth.is_injected.sum() / held_out_truth.is_tested.sum()
    n_training = len(fleet.household_ids) - len(held_out)
    return [
        f"learned from {n_training:,} households until {fleet.nights[first_test_night - 1]}; "
        f"measured from {fleet.nights[first_test_night]} to {fleet.nights[-1]}",
        f"{len(held_out):,} held-out households, injected {n_copies} times each: "
        f"{held_out_truth.is_tested.sum():,} household-nights, {injected_share:.1%} injected, "
        f"{len(held_out_truth.episodes):,} anomalies of {EPISODE_NIGHTS} nights",
        "intervals of 95 % by a bootstrap over households",
    ]
