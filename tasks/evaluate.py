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

from ml import models, rules
from ml.benchmark import plots
from ml.benchmark.calibration import measure_monthly_alarm_ratio
from ml.benchmark.controls import ControlFleet, build_control_fleets, measure_control_alarms
from ml.benchmark.figures import HEADLINE_BUDGET, DetectorScores, bootstrap_metrics, compute_metrics
from ml.benchmark.peers import BASELINES, MissingLibraryError, fit_baseline
from ml.benchmark.plant import KIND_NAMES, GroundTruth, Ints, inject_anomalies, repeat_households
from ml.benchmark.reasons import count_reasons_by_kind, describe_reason_accuracy, tabulate_reasons
from ml.benchmark.table import rank_detectors, render_benchmark, render_reasons, render_summary
from ml.errors import UserError
from ml.features import LEVEL_NIGHTS, Fleet, Floats, later
from ml.kinds import LASTING_NIGHTS
from ml.loop import FitParameters
from ml.score import WARMUP_NIGHTS, run_network, score_fleet
from ml.train import fit, held_out
from tasks import lake, paths, registry, task
from tasks.fleet import common_nights, load_fleet
from tasks.provenance import code_version, fingerprint
from tasks.report import leave
from tasks.settings import settings

FUSION: Final = "fusion"
SEED_MODEL: Final = "conditional_autoencoder"
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "rules": (*rules.RULES, FUSION),
    "peers": BASELINES,
    "networks": models.NAMES,
}
CHOICES: Final = (*GROUPS, *(name for names in GROUPS.values() for name in names))
ORDINARY_NIGHTS: Final = 56
MIN_NIGHTS: Final = 28
MIN_TEST_NIGHTS: Final = 2 * LASTING_NIGHTS
# Enough copies of the held-out households for about as many rows, and no more than kinds.
ROWS: Final = 500
BEST: Final = 6


@dataclass(frozen=True)
class Verdict:
    """What a detector makes of a fleet."""

    scores: dict[str, Floats]
    """`[H, D]` by name."""
    expected_kwh: Floats | None = None
    """`[H, D, 48]`, of a detector that expects something."""


Scorer = Callable[[Fleet], Verdict]


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
    first: date
    last: date
    skipped: list[str]
    table: str

    def lines(self) -> list[str]:
        """What there is to say."""
        return [*self.skipped, self.table, f"figures and pictures: {self.directory}"]


@dataclass(frozen=True)
class Arena:
    """What detectors learn from and what they are judged on; nights are places in `planted`."""

    learn: Fleet
    planted: Fleet
    truth: GroundTruth
    unseen: Ints
    seen: Ints
    controls: list[ControlFleet]
    ordinary: slice
    about: list[str]


@dataclass(frozen=True)
class Outcome:
    """The figures of every detector, their scores, and the reasons of what they found."""

    table: pl.DataFrame
    scored: dict[str, DetectorScores]
    reasons: dict[str, pl.DataFrame]
    skipped: list[str]


def chosen(names: Sequence[str]) -> list[str]:
    """The detectors that these names of detectors and groups mean; all where there are none.

    Raises:
        UserError: there is no such detector.
    """
    unknown = sorted(set(names) - set(CHOICES))
    if unknown:
        raise UserError(f"no detector {unknown[0]!r}; there are {', '.join(CHOICES)}")
    wanted = {one for name in names or GROUPS for one in GROUPS.get(name, (name,))}
    return [name for group in GROUPS.values() for name in group if name in wanted]


@task(name="benchmark")
def run_benchmark(parameters: EvaluateParameters) -> EvaluateReceipt:
    """Plant, fit and judge every detector, write the figures, record them with MLflow.

    Raises:
        UserError: there is no such detector, too few nights, or MLflow is down.
    """
    names = chosen(parameters.detectors)
    if threads := settings().threads:
        torch.set_num_threads(threads)
    arena = prepare(parameters)
    registry.prepare()
    outcome = measure(arena, names, parameters)
    directory = paths.benchmark(f"{datetime.now(UTC):%Y%m%dT%H%M%S}-seed{parameters.seed}")
    _write(directory, arena, outcome)
    run_id = registry.record_benchmark(
        directory,
        parameters=_parameters(arena, parameters),
        figures=_metrics(outcome.table),
        tags={"data": fingerprint(arena.learn)} | code_version(),
    )
    leave("benchmark", (directory / "table.md").read_text())
    return EvaluateReceipt(
        directory=directory,
        run_id=run_id,
        first=arena.planted.nights[arena.ordinary.stop],
        last=arena.planted.nights[-1],
        skipped=outcome.skipped,
        table=render_summary(outcome.table),
    )


def prepare(parameters: EvaluateParameters) -> Arena:
    """Split the lake by household and by time, and plant the later nights.

    Raises:
        UserError: too few nights on either side, or no household to learn from.
    """
    fleet = load_fleet(*common_nights(), reporting=True)
    stop = _first_test_night(fleet, parameters.until)
    apart = held_out(fleet.household_ids)
    unseen = np.flatnonzero(apart)
    if not len(unseen) or apart.all():
        raise UserError(f"the benchmark needs more than {len(apart)} households")
    copies = parameters.copies or int(np.clip(ROWS // len(unseen), 1, len(KIND_NAMES)))
    rows = repeat_households(unseen, copies)
    seen = _some(np.flatnonzero(~apart), len(rows))
    test = fleet.between(max(0, stop - ORDINARY_NIGHTS - WARMUP_NIGHTS))
    start = test.nights.index(fleet.nights[stop])
    span, least = slice(start, len(test.nights)), settings().min_readings
    planted, truth = inject_anomalies(
        test, np.concatenate([rows, seen]), span, seed=parameters.seed, min_readings=least
    )
    return Arena(
        learn=fleet.between(0, stop),
        planted=planted,
        truth=truth,
        unseen=unseen,
        seen=seen,
        controls=build_control_fleets(test, unseen, span, least),
        ordinary=slice(max(0, start - ORDINARY_NIGHTS), start),
        about=_about(fleet, stop, truth, unseen, copies),
    )


def measure(arena: Arena, names: Sequence[str], parameters: EvaluateParameters) -> Outcome:
    """Fit and judge each detector; one whose library is missing is left out, unless named."""
    tables, scored, reasons, skipped = [], {}, {}, []
    for name in _with_progress(names):
        try:
            scorer = _fitted(name, arena, parameters.seed)
        except MissingLibraryError as missing:
            if name in parameters.detectors:
                raise
            skipped.append(f"{name} was left out: {missing}")
            continue
        verdict = scorer(arena.planted)
        quiet = [(control, scorer(control.fleet).scores) for control in arena.controls]
        for label, score in verdict.scores.items():
            one = DetectorScores(score, arena.truth.restrict_to_households(arena.unseen))
            scored[label] = one
            found = [(control, made[label]) for control, made in quiet]
            tables.append(_figures(label, arena, score, one, found, parameters.seed))
        if verdict.expected_kwh is not None:
            reasons[name] = _reasons(
                arena, scored[name], verdict.scores[name], verdict.expected_kwh
            )
    return Outcome(pl.concat(tables), scored, reasons, skipped)


def _reasons(
    arena: Arena, one: DetectorScores, score: Floats, expected_kwh: Floats
) -> pl.DataFrame:
    """What is found at the budget, by kind and reason."""
    found = score >= one.find_budget_threshold(HEADLINE_BUDGET, np.ones(one.n_households))
    truth = arena.truth.restrict_to_households(arena.unseen)
    return count_reasons_by_kind(np.asarray(found), truth, arena.planted, expected_kwh)


def _figures(
    label: str,
    arena: Arena,
    score: Floats,
    one: DetectorScores,
    quiet: list[tuple[ControlFleet, Floats]],
    seed: int,
) -> pl.DataFrame:
    """All rows of one detector: `detector`, `homes`, and those of `figures`."""
    limit = one.find_budget_threshold(HEADLINE_BUDGET, np.ones(one.n_households))
    unseen = [
        bootstrap_metrics(one, seed=seed),
        measure_control_alarms(quiet, limit),
        measure_monthly_alarm_ratio(one.score, one.truth, arena.planted.nights, arena.ordinary),
    ]
    seen = compute_metrics(score, arena.truth.restrict_to_households(arena.seen), seed=seed)
    return pl.concat(
        [
            pl.concat(unseen).select(pl.lit("unseen").alias("homes"), pl.all()),
            seen.select(pl.lit("seen").alias("homes"), pl.all()),
        ]
    ).select(pl.lit(label).alias("detector"), pl.all())


def _fitted(name: str, arena: Arena, seed: int) -> Scorer:
    least = settings().min_readings
    if name == FUSION:
        return lambda fleet: Verdict({name: rules.fused(fleet, least, arena.ordinary)})
    if name in rules.RULES:
        return lambda fleet: Verdict({name: rules.RULES[name](fleet, least)})
    if name in BASELINES:
        learned = ~held_out(arena.learn.household_ids)
        peer = fit_baseline(name, arena.learn.of(learned), seed=seed, min_readings=least)
        early = max(0, arena.ordinary.start - LEVEL_NIGHTS)
        return lambda fleet: Verdict({name: later(peer(fleet.between(early)), early)})
    return _network(name, arena.learn, seed)


def _network(name: str, learn: Fleet, seed: int) -> Scorer:
    least = settings().min_readings
    with tempfile.TemporaryDirectory() as directory:
        detector = fit(learn, FitParameters(model=name, seed=seed), least, directory).detector

    def scores(fleet: Fleet) -> Verdict:
        judged = score_fleet(detector, fleet, least)
        found = {name: judged.score, f"{name} evidence": judged.evidence}
        if name == SEED_MODEL:
            raw = run_network(detector, fleet, slice(None), least).log_odds
            found[f"{name} one-sided"] = raw
        return Verdict(found, judged.expected_kwh)

    return scores


def _first_test_night(fleet: Fleet, until: date | None) -> int:
    nights = fleet.nights
    last = until or nights[2 * len(nights) // 3 - 1]
    stop = sum(night <= last for night in nights)
    if stop < MIN_NIGHTS or len(nights) - stop < MIN_TEST_NIGHTS:
        raise UserError(
            f"the benchmark needs {MIN_NIGHTS} nights to learn from and {MIN_TEST_NIGHTS} "
            f"after them; of {nights[0]} to {nights[-1]} there are {stop} and {len(nights) - stop}"
        )
    return stop


def _some(places: Ints, most: int) -> Ints:
    """At most so many of these, evenly spread."""
    count = min(most, len(places))
    return places[np.linspace(0, len(places) - 1, count).round().astype(int)]


def _about(fleet: Fleet, stop: int, truth: GroundTruth, unseen: Ints, copies: int) -> list[str]:
    apart = truth.restrict_to_households(unseen)
    share = apart.is_injected.sum() / apart.is_tested.sum()
    return [
        f"learned from {len(fleet.household_ids) - len(unseen):,} households until "
        f"{fleet.nights[stop - 1]}; judged from {fleet.nights[stop]} to {fleet.nights[-1]}",
        f"{len(unseen):,} households held out, planted {copies} times each: "
        f"{apart.is_tested.sum():,} household-nights, {share:.1%} planted, "
        f"{len(apart.episodes):,} anomalies of {LASTING_NIGHTS} nights",
        "intervals of 95 % by a bootstrap over households",
    ]


def _write(directory: Path, arena: Arena, outcome: Outcome) -> None:
    table = outcome.table
    order = rank_detectors(table)
    best = order[:BEST]
    months = table.filter(figure="alarms_over_target")
    pictures = {
        "precision_recall": plots.draw_precision_recall(outcome.scored, best),
        "recall_per_kind": plots.draw_recall_per_kind(table.filter(homes="unseen"), order),
        "calibration": plots.draw_calibration(outcome.scored, best, arena.ordinary, months),
        "time_to_detection": plots.draw_time_to_detection(outcome.scored, best),
        "alarms_per_home": plots.draw_alarms_per_household(outcome.scored, best),
    }
    text = render_benchmark(table, [*arena.about, *outcome.skipped])
    if outcome.reasons:
        name = min(outcome.reasons, key=order.index)
        nights = tabulate_reasons(outcome.reasons[name])
        pictures["reasons"] = plots.draw_reasons(nights, name)
        text += render_reasons(
            nights, f"{name}: {describe_reason_accuracy(outcome.reasons[name])}."
        )
    for name, figure in pictures.items():
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=110)
        lake.replace_bytes(directory / f"{name}.png", image.getvalue())
    stored = io.BytesIO()
    table.write_parquet(stored)
    lake.replace_bytes(directory / "figures.parquet", stored.getvalue())
    lake.replace_bytes(directory / "table.md", text.encode())


def _parameters(arena: Arena, parameters: EvaluateParameters) -> dict[str, object]:
    return {
        "seed": parameters.seed,
        "until": str(arena.learn.nights[-1]),
        "last": str(arena.planted.nights[-1]),
        "held_out": len(arena.unseen),
        "rows": len(arena.truth.household_index),
    }


def _metrics(table: pl.DataFrame) -> Mapping[str, Mapping[str, float]]:
    """What MLflow keeps of each detector, under `homes/figure` or `homes/figure/of`."""
    path = pl.concat_str("homes", "figure", "of", separator="/", ignore_nulls=True)
    known = table.select("detector", path.alias("path"), "value").filter(
        pl.col("value").is_finite()
    )
    return {
        str(name[0]): dict(rows.select("path", "value").iter_rows())
        for name, rows in known.group_by("detector", maintain_order=True)
    }


def _with_progress(names: Sequence[str]) -> Iterator[str]:
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("evaluate", total=len(names))
        for name in names:
            progress.update(bar, description=name)
            yield name
            progress.advance(bar)
