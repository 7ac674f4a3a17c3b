"""Runs the detection benchmark on the lake, writes its tables and pictures, records it.

HOME/benchmark/<id>/figures.parquet, table.md, *.png
"""

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

import polars as pl
import torch
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import Progress

from ml.evaluation.benchmark import (
    BenchmarkConfig,
    BenchmarkData,
    BenchmarkResult,
    NetworkFitter,
    evaluate_detectors,
    prepare_benchmark,
    resolve_detectors,
)
from ml.evaluation.reason_confusion import describe_reason_accuracy, tabulate_reasons
from ml.evaluation.report import rank_detectors, render_benchmark, render_reasons, render_summary
from ml.fleet import Fleet
from ml.plots import benchmark
from ml.scoring.detector import Detector
from ml.training.fit import train_and_calibrate
from ml.training.parameters import FitParameters
from tasks import paths, registry, storage, task
from tasks.fleet_loading import find_well_reported_range, load_fleet
from tasks.provenance import fingerprint_fleet, read_code_version
from tasks.reports import publish_artifact
from tasks.settings import Settings, get_settings

N_HIGHLIGHTED: Final = 6
"""Detectors drawn in colour: the best, as many as there are colours to tell apart."""
PICTURE_DPI: Final = 110
"""Dots per inch of the pictures: 825 pixels across for a single panel."""


class EvaluateParameters(BaseModel):
    """What to measure, and on which nights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    until: date | None = Field(
        None, description="last night to learn from (default: two thirds of the lake)"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="of what is injected and of the networks")
    detectors: tuple[str, ...] = Field((), description="detectors or groups (default: all)")
    copies: int | None = Field(
        None, ge=1, description="times that a held-out household is injected (default: by number)"
    )


class EvaluateReceipt(BaseModel):
    """Where a benchmark lies and what it found."""

    directory: Path
    run_id: str
    first_night: date
    last_night: date
    notes: list[str]
    """Detectors that were left out, or whose flags were, and why."""
    summary_table: str

    def lines(self) -> list[str]:
        """Return what is printed."""
        return [*self.notes, self.summary_table, f"tables and pictures: {self.directory}"]


@task(name="benchmark")
def run_benchmark(parameters: EvaluateParameters) -> EvaluateReceipt:
    """Measure every detector on the lake, write tables and pictures, record them with MLflow.

    Raises:
        UserError: there is no such detector, too few nights, or MLflow is down.
    """
    detectors = resolve_detectors(parameters.detectors)
    settings = get_settings()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    config = _build_config(parameters, settings)
    data = prepare_benchmark(load_fleet(*find_well_reported_range(), only_reporting=True), config)
    # Before hours of work: a store that is down is a failure now, not at the end.
    registry.prepare_store()
    with tempfile.TemporaryDirectory() as checkpoint_root:
        result = evaluate_detectors(
            data,
            _iter_with_progress(detectors),
            config,
            _build_network_fitter(config, checkpoint_root),
        )
    directory = paths.benchmark_dir(f"{datetime.now(UTC):%Y%m%dT%H%M%S}-seed{parameters.seed}")
    _write_benchmark(directory, data, result)
    run_id = registry.record_benchmark(
        directory,
        parameters=_build_logged_parameters(data, parameters),
        metrics_by_detector=_build_logged_metrics(result.metrics),
        tags={"data": fingerprint_fleet(data.training_fleet)} | read_code_version(),
    )
    publish_artifact("benchmark", (directory / "table.md").read_text())
    return EvaluateReceipt(
        directory=directory,
        run_id=run_id,
        first_night=data.injected_fleet.nights[data.pretest_nights.stop],
        last_night=data.injected_fleet.nights[-1],
        notes=result.notes,
        summary_table=render_summary(result.metrics),
    )


def _build_config(parameters: EvaluateParameters, settings: Settings) -> BenchmarkConfig:
    return BenchmarkConfig(
        until=parameters.until,
        seed=parameters.seed,
        copies=parameters.copies,
        min_readings=settings.min_readings,
        alert_budget=settings.alert_budget,
        required_detectors=parameters.detectors,
    )


def _build_network_fitter(config: BenchmarkConfig, checkpoint_root: str) -> NetworkFitter:
    """Return what trains and calibrates a network; its checkpoints are thrown away."""

    def fit_network(name: str, training_fleet: Fleet) -> Detector:
        checkpoint_dir = Path(checkpoint_root) / name
        checkpoint_dir.mkdir()
        parameters = FitParameters(model=name, seed=config.seed)
        return train_and_calibrate(
            training_fleet, parameters, config.min_readings, str(checkpoint_dir)
        ).detector

    return fit_network


def _write_benchmark(directory: Path, data: BenchmarkData, result: BenchmarkResult) -> None:
    detectors = rank_detectors(result.metrics)
    text = render_benchmark(result.metrics, [*data.description_lines, *result.notes])
    pictures = _draw_pictures(data, result, detectors)
    if result.reason_counts:
        name = min(result.reason_counts, key=detectors.index)
        reason_table = tabulate_reasons(result.reason_counts[name])
        pictures["reasons"] = benchmark.draw_reasons(reason_table, name)
        accuracy = describe_reason_accuracy(result.reason_counts[name])
        text += render_reasons(reason_table, f"{name}: {accuracy}.")
    for name, figure in pictures.items():
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=PICTURE_DPI)
        storage.replace_bytes(directory / f"{name}.png", image.getvalue())
    parquet = io.BytesIO()
    result.metrics.write_parquet(parquet)
    storage.replace_bytes(directory / "figures.parquet", parquet.getvalue())
    storage.replace_bytes(directory / "table.md", text.encode())


def _draw_pictures(
    data: BenchmarkData, result: BenchmarkResult, detectors: list[str]
) -> dict[str, Figure]:
    """Return the benchmark's pictures by file name; `detectors` by rank."""
    scores = result.detector_scores
    best = detectors[:N_HIGHLIGHTED]
    held_out_metrics = result.metrics.filter(households="held_out")
    monthly_ratios = result.metrics.filter(metric="alarms_over_target")
    return {
        "precision_recall": benchmark.draw_precision_recall(scores, best),
        "recall_per_kind": benchmark.draw_recall_per_kind(held_out_metrics, detectors),
        "calibration": benchmark.draw_calibration(
            scores, best, data.pretest_nights, monthly_ratios
        ),
        "time_to_detection": benchmark.draw_time_to_detection(scores, best),
        "alarms_per_household": benchmark.draw_alarms_per_household(scores, best),
    }


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
    """Return what MLflow keeps of each detector, by `households/metric` or `.../subset`."""
    path = pl.concat_str("households", "metric", "subset", separator="/", ignore_nulls=True)
    # MLflow refuses null, and draws NaN as a point.
    finite = metrics.select("detector", path.alias("path"), "value").filter(
        pl.col("value").is_finite()
    )
    return {
        str(detector): dict(rows.select("path", "value").iter_rows())
        for (detector,), rows in finite.group_by("detector", maintain_order=True)
    }


def _iter_with_progress(names: Sequence[str]) -> Iterator[str]:
    """Yield names, and show on a terminal which one is at work."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("evaluate", total=len(names))
        for name in names:
            progress.update(bar, description=name)
            yield name
            progress.advance(bar)
