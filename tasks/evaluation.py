"""The detection benchmark: detectors side by side on the same planted nights, written and recorded.

HOME/benchmark/<id>/figures.parquet, table.md, *.png
"""

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import Progress

from ml import models
from ml.arrays import FloatArray, pad_left
from ml.errors import UserError
from ml.evaluation import baseline_rules
from ml.evaluation.alarm_rates import measure_monthly_alarm_ratio
from ml.evaluation.baselines import BASELINES, MissingLibraryError, fit_baseline
from ml.evaluation.controls import ControlFleet, build_control_fleets, measure_control_alarms
from ml.evaluation.inject import KIND_NAMES, GroundTruth, Ints, inject_anomalies, repeat_households
from ml.evaluation.injections import EPISODE_NIGHTS
from ml.evaluation.metrics import (
    HEADLINE_BUDGET,
    DetectorScores,
    bootstrap_metrics,
    compute_metrics,
)
from ml.evaluation.reason_confusion import (
    count_reasons_by_kind,
    describe_reason_accuracy,
    tabulate_reasons,
)
from ml.evaluation.report import rank_detectors, render_benchmark, render_reasons, render_summary
from ml.fleet import LEVEL_NIGHTS, Fleet
from ml.plots import benchmark
from ml.scoring.tables import WARMUP_NIGHTS, score_fleet
from ml.training.fit import train_and_calibrate
from ml.training.parameters import FitParameters
from ml.training.split import is_held_out
from tasks import paths, registry, storage, task
from tasks.fleet_loading import find_well_reported_range, load_fleet
from tasks.provenance import fingerprint_fleet, read_code_version
from tasks.reports import publish_artifact
from tasks.settings import get_settings

FUSION: Final = "fusion"
SEED_MODEL: Final = "conditional_autoencoder"
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
MIN_TRAINING_NIGHTS: Final = 28
MIN_TEST_NIGHTS: Final = 2 * EPISODE_NIGHTS
# Enough copies of the held-out households for about as many rows, and no more than kinds.
TARGET_ROWS: Final = 500
N_HIGHLIGHTED: Final = 6


@dataclass(frozen=True)
class DetectorOutput:
    """What a detector makes of a fleet."""

    scores_by_name: dict[str, FloatArray]
    """`[H, D]` by name."""
    expected_kwh: FloatArray | None = None
    """`[H, D, 48]`, of a detector that expects something."""


FleetScorer = Callable[[Fleet], DetectorOutput]


class EvaluateParameters(BaseModel):
    """What to measure, and on which nights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    until: date | None = Field(
        None, description="last night to learn from (default: two thirds of the lake)"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="of what is planted and of the networks")
    detectors: tuple[str, ...] = Field((), description="detectors or groups (default: all)")
    copies: int | None = Field(
        None, ge=1, description="times that a held-out household is planted (default: by number)"
    )


class EvaluateReceipt(BaseModel):
    """Where a benchmark lies and what it found."""

    directory: Path
    run_id: str
    first_night: date
    last_night: date
    skipped_detectors: list[str]
    summary_table: str

    def lines(self) -> list[str]:
        """What there is to say."""
        return [
            *self.skipped_detectors,
            self.summary_table,
            f"figures and pictures: {self.directory}",
        ]


@dataclass(frozen=True)
class BenchmarkData:
    """What detectors learn from and what they are judged on; nights are places in `planted`."""

    training_fleet: Fleet
    injected_fleet: Fleet
    truth: GroundTruth
    held_out_households: Ints
    training_households: Ints
    control_fleets: list[ControlFleet]
    pretest_nights: slice
    description_lines: list[str]


@dataclass(frozen=True)
class BenchmarkResult:
    """The figures of every detector, their scores, and the reasons of what they found."""

    metrics: pl.DataFrame
    detector_scores: dict[str, DetectorScores]
    reason_counts: dict[str, pl.DataFrame]
    skipped_detectors: list[str]


def resolve_detectors(names: Sequence[str]) -> list[str]:
    """The detectors that these names of detectors and groups mean; all where there are none.

    Raises:
        UserError: there is no such detector.
    """
    unknown = sorted(set(names) - set(DETECTOR_CHOICES))
    if unknown:
        raise UserError(f"no detector {unknown[0]!r}; there are {', '.join(DETECTOR_CHOICES)}")
    wanted = {
        one for name in names or DETECTOR_GROUPS for one in DETECTOR_GROUPS.get(name, (name,))
    }
    return [name for group in DETECTOR_GROUPS.values() for name in group if name in wanted]


@task(name="benchmark")
def run_benchmark(parameters: EvaluateParameters) -> EvaluateReceipt:
    """Plant, fit and judge every detector, write the figures, record them with MLflow.

    Raises:
        UserError: there is no such detector, too few nights, or MLflow is down.
    """
    names = resolve_detectors(parameters.detectors)
    if threads := get_settings().threads:
        torch.set_num_threads(threads)
    arena = prepare_benchmark(parameters)
    registry.prepare_store()
    outcome = evaluate_detectors(arena, names, parameters)
    directory = paths.benchmark_dir(f"{datetime.now(UTC):%Y%m%dT%H%M%S}-seed{parameters.seed}")
    _write_benchmark(directory, arena, outcome)
    run_id = registry.record_benchmark(
        directory,
        parameters=_build_logged_parameters(arena, parameters),
        metrics_by_detector=_build_logged_metrics(outcome.metrics),
        tags={"data": fingerprint_fleet(arena.training_fleet)} | read_code_version(),
    )
    publish_artifact("benchmark", (directory / "table.md").read_text())
    return EvaluateReceipt(
        directory=directory,
        run_id=run_id,
        first_night=arena.injected_fleet.nights[arena.pretest_nights.stop],
        last_night=arena.injected_fleet.nights[-1],
        skipped_detectors=outcome.skipped_detectors,
        summary_table=render_summary(outcome.metrics),
    )


def prepare_benchmark(parameters: EvaluateParameters) -> BenchmarkData:
    """Split the lake by household and by time, and plant the later nights.

    Raises:
        UserError: too few nights on either side, or no household to learn from.
    """
    fleet = load_fleet(*find_well_reported_range(), only_reporting=True)
    stop = _find_first_test_night(fleet, parameters.until)
    apart = is_held_out(fleet.household_ids)
    unseen = np.flatnonzero(apart)
    if not len(unseen) or apart.all():
        raise UserError(f"the benchmark needs more than {len(apart)} households")
    copies = parameters.copies or int(np.clip(TARGET_ROWS // len(unseen), 1, len(KIND_NAMES)))
    rows = repeat_households(unseen, copies)
    seen = _select_evenly(np.flatnonzero(~apart), len(rows))
    test = fleet.select_nights(max(0, stop - PRETEST_NIGHTS - WARMUP_NIGHTS))
    start = test.nights.index(fleet.nights[stop])
    span, least = slice(start, len(test.nights)), get_settings().min_readings
    planted, truth = inject_anomalies(
        test, np.concatenate([rows, seen]), span, seed=parameters.seed, min_readings=least
    )
    return BenchmarkData(
        training_fleet=fleet.select_nights(0, stop),
        injected_fleet=planted,
        truth=truth,
        held_out_households=unseen,
        training_households=seen,
        control_fleets=build_control_fleets(test, unseen, span, least),
        pretest_nights=slice(max(0, start - PRETEST_NIGHTS), start),
        description_lines=_describe_benchmark(fleet, stop, truth, unseen, copies),
    )


def evaluate_detectors(
    data: BenchmarkData, names: Sequence[str], parameters: EvaluateParameters
) -> BenchmarkResult:
    """Fit and judge each detector; one whose library is missing is left out, unless named."""
    tables, scored, reasons, skipped = [], {}, {}, []
    for name in _iter_with_progress(names):
        try:
            scorer = _fit_scorer(name, data, parameters.seed)
        except MissingLibraryError as missing:
            if name in parameters.detectors:
                raise
            skipped.append(f"{name} was left out: {missing}")
            continue
        verdict = scorer(data.injected_fleet)
        quiet = [(control, scorer(control.fleet).scores_by_name) for control in data.control_fleets]
        for label, score in verdict.scores_by_name.items():
            one = DetectorScores(score, data.truth.restrict_to_households(data.held_out_households))
            scored[label] = one
            found = [(control, made[label]) for control, made in quiet]
            tables.append(_collect_metrics(label, data, score, one, found, parameters.seed))
        if verdict.expected_kwh is not None:
            reasons[name] = _count_reasons(
                data, scored[name], verdict.scores_by_name[name], verdict.expected_kwh
            )
    return BenchmarkResult(pl.concat(tables), scored, reasons, skipped)


def _count_reasons(
    data: BenchmarkData,
    held_out_scores: DetectorScores,
    score: FloatArray,
    expected_kwh: FloatArray,
) -> pl.DataFrame:
    """What is found at the budget, by kind and reason."""
    found = score >= held_out_scores.find_budget_threshold(
        HEADLINE_BUDGET, np.ones(held_out_scores.n_households)
    )
    truth = data.truth.restrict_to_households(data.held_out_households)
    return count_reasons_by_kind(np.asarray(found), truth, data.injected_fleet, expected_kwh)


def _collect_metrics(
    detector: str,
    data: BenchmarkData,
    score: FloatArray,
    held_out_scores: DetectorScores,
    scored_controls: list[tuple[ControlFleet, FloatArray]],
    seed: int,
) -> pl.DataFrame:
    """All rows of one detector: `detector`, `homes`, and those of `figures`."""
    limit = held_out_scores.find_budget_threshold(
        HEADLINE_BUDGET, np.ones(held_out_scores.n_households)
    )
    unseen = [
        bootstrap_metrics(held_out_scores, seed=seed),
        measure_control_alarms(scored_controls, limit),
        measure_monthly_alarm_ratio(
            held_out_scores.score,
            held_out_scores.truth,
            data.injected_fleet.nights,
            data.pretest_nights,
        ),
    ]
    seen = compute_metrics(
        score, data.truth.restrict_to_households(data.training_households), seed=seed
    )
    return pl.concat(
        [
            pl.concat(unseen).select(pl.lit("held_out").alias("households"), pl.all()),
            seen.select(pl.lit("training").alias("households"), pl.all()),
        ]
    ).select(pl.lit(detector).alias("detector"), pl.all())


def _fit_scorer(name: str, data: BenchmarkData, seed: int) -> FleetScorer:
    least = get_settings().min_readings
    if name == FUSION:
        return lambda fleet: DetectorOutput(
            {name: baseline_rules.fuse_rules(fleet, least, data.pretest_nights)}
        )
    if name in baseline_rules.BASELINE_RULES:
        return lambda fleet: DetectorOutput(
            {name: baseline_rules.BASELINE_RULES[name](fleet, least)}
        )
    if name in BASELINES:
        learned = ~is_held_out(data.training_fleet.household_ids)
        peer = fit_baseline(
            name, data.training_fleet.select_households(learned), seed=seed, min_readings=least
        )
        early = max(0, data.pretest_nights.start - LEVEL_NIGHTS)
        return lambda fleet: DetectorOutput(
            {name: pad_left(peer(fleet.select_nights(early)), early)}
        )
    return _fit_network_scorer(name, data.training_fleet, seed)


def _fit_network_scorer(name: str, training_fleet: Fleet, seed: int) -> FleetScorer:
    least = get_settings().min_readings
    with tempfile.TemporaryDirectory() as directory:
        detector = train_and_calibrate(
            training_fleet, FitParameters(model=name, seed=seed), least, directory
        ).detector

    def evaluate_fleet(fleet: Fleet) -> DetectorOutput:
        judged = score_fleet(detector, fleet, least)
        found = {name: judged.score, f"{name} evidence": judged.evidence}
        if name == SEED_MODEL:
            raw = detector.run_network(fleet, slice(None), least).log_odds
            found[f"{name} one-sided"] = raw
        return DetectorOutput(found, judged.expected_kwh)

    return evaluate_fleet


def _find_first_test_night(fleet: Fleet, until: date | None) -> int:
    nights = fleet.nights
    last = until or nights[2 * len(nights) // 3 - 1]
    stop = sum(night <= last for night in nights)
    if stop < MIN_TRAINING_NIGHTS or len(nights) - stop < MIN_TEST_NIGHTS:
        raise UserError(
            f"the benchmark needs {MIN_TRAINING_NIGHTS} nights to learn from and {MIN_TEST_NIGHTS} "
            f"after them; of {nights[0]} to {nights[-1]} there are {stop} and {len(nights) - stop}"
        )
    return stop


def _select_evenly(household_indices: Ints, max_count: int) -> Ints:
    """At most so many of these, evenly spread."""
    count = min(max_count, len(household_indices))
    return household_indices[np.linspace(0, len(household_indices) - 1, count).round().astype(int)]


def _describe_benchmark(
    fleet: Fleet,
    first_test_night: int,
    truth: GroundTruth,
    held_out_households: Ints,
    n_copies: int,
) -> list[str]:
    apart = truth.restrict_to_households(held_out_households)
    share = apart.is_injected.sum() / apart.is_tested.sum()
    return [
        f"learned from {len(fleet.household_ids) - len(held_out_households):,} households until "
        f"{fleet.nights[first_test_night - 1]}; judged from {fleet.nights[first_test_night]} to {fleet.nights[-1]}",
        f"{len(held_out_households):,} held-out households, injected {n_copies} times each: "
        f"{apart.is_tested.sum():,} household-nights, {share:.1%} injected, "
        f"{len(apart.episodes):,} anomalies of {EPISODE_NIGHTS} nights",
        "intervals of 95 % by a bootstrap over households",
    ]


def _write_benchmark(directory: Path, data: BenchmarkData, result: BenchmarkResult) -> None:
    table = result.metrics
    order = rank_detectors(table)
    best = order[:N_HIGHLIGHTED]
    months = table.filter(metric="alarms_over_target")
    pictures = {
        "precision_recall": benchmark.draw_precision_recall(result.detector_scores, best),
        "recall_per_kind": benchmark.draw_recall_per_kind(
            table.filter(households="held_out"), order
        ),
        "calibration": benchmark.draw_calibration(
            result.detector_scores, best, data.pretest_nights, months
        ),
        "time_to_detection": benchmark.draw_time_to_detection(result.detector_scores, best),
        "alarms_per_household": benchmark.draw_alarms_per_household(result.detector_scores, best),
    }
    text = render_benchmark(table, [*data.description_lines, *result.skipped_detectors])
    if result.reason_counts:
        name = min(result.reason_counts, key=order.index)
        nights = tabulate_reasons(result.reason_counts[name])
        pictures["reasons"] = benchmark.draw_reasons(nights, name)
        text += render_reasons(
            nights, f"{name}: {describe_reason_accuracy(result.reason_counts[name])}."
        )
    for name, figure in pictures.items():
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=110)
        storage.replace_bytes(directory / f"{name}.png", image.getvalue())
    stored = io.BytesIO()
    table.write_parquet(stored)
    storage.replace_bytes(directory / "figures.parquet", stored.getvalue())
    storage.replace_bytes(directory / "table.md", text.encode())


def _build_logged_parameters(
    data: BenchmarkData, parameters: EvaluateParameters
) -> dict[str, object]:
    return {
        "seed": parameters.seed,
        "until": str(data.training_fleet.nights[-1]),
        "last": str(data.injected_fleet.nights[-1]),
        "held_out": len(data.held_out_households),
        "rows": len(data.truth.household_index),
    }


def _build_logged_metrics(metrics: pl.DataFrame) -> Mapping[str, Mapping[str, float]]:
    """What MLflow keeps of each detector, under `homes/figure` or `homes/figure/of`."""
    path = pl.concat_str("households", "metric", "subset", separator="/", ignore_nulls=True)
    known = metrics.select("detector", path.alias("path"), "value").filter(
        pl.col("value").is_finite()
    )
    return {
        str(name[0]): dict(rows.select("path", "value").iter_rows())
        for name, rows in known.group_by("detector", maintain_order=True)
    }


def _iter_with_progress(names: Sequence[str]) -> Iterator[str]:
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("evaluate", total=len(names))
        for name in names:
            progress.update(bar, description=name)
            yield name
            progress.advance(bar)
