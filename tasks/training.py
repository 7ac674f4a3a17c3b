"""Train a detector, register it, promote it if it is better."""

import gc
import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from ml.errors import UserError
from ml.evaluation.inject import inject_anomalies, repeat_households
from ml.evaluation.metrics import estimate_superiority
from ml.export import ONNX_OPSET, measure_output_difference
from ml.fleet import Fleet
from ml.models import DEFAULT_MODEL, ModelName
from ml.plots import household_nights
from ml.scoring.detector import Detector
from ml.scoring.tables import WARMUP_NIGHTS, first_night_needed, score_fleet
from ml.training.fit import (
    FitResult,
    compute_validation_error_kwh,
    refuse_infinite_inputs,
    train_and_calibrate,
    train_network,
)
from ml.training.latent_plane import compute_latent_plane
from ml.training.parameters import FitParameters, TrainingProcesses
from ml.training.speed import measure_training_speed
from ml.training.split import (
    select_evenly,
    select_held_out_households,
    select_nights_from,
    usable_household_nights,
)
from ml.training.trainer import TrainingResources
from ml.windows import FleetWindows
from tasks import paths, registry, storage, task
from tasks.checkpoints import AtomicCheckpointIO, find_latest_checkpoint
from tasks.fleet_loading import find_last_well_reported_night, load_fleet
from tasks.model_files import load_detector, save_detector, save_onnx
from tasks.progress import TrainingProgressBar, show_spinner
from tasks.provenance import fingerprint_fleet, read_code_version
from tasks.registry import ModelVersion
from tasks.reports import publish_artifact
from tasks.settings import get_settings
from tasks.training_processes import detect_training_processes, launch_training_processes

PROMOTION_CONFIDENCE: Final = 0.95
PLOTTED_HOUSEHOLDS: Final = 100
ONNX_CHECK_SIZE: Final = 512
"""Household-nights on which an exported program is held against its model."""
COMPARISON_HOUSEHOLDS: Final = 136
"""Copies of homes in which nights are planted to hold two detectors against each other."""
LOGGED_COUNTS: Final = {
    "n_households",
    "n_held_out",
    "n_nights",
    "n_household_nights",
    "best_epoch",
}
LOGGED_METRICS: Final = {
    "validation_error_kwh",
    "onnx_difference",
    "duration_s",
    "household_nights_per_s",
}
FIT_PARAMETER_NAMES: Final = {"model", "seed", "max_epochs", "batch_size"}

log = logging.getLogger(__name__)


class TrainParameters(BaseModel):
    """What to learn from, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    until: date | None = Field(
        None,
        description="last night to learn from (default: the last that most of the fleet reports)",
    )
    model: ModelName = Field(DEFAULT_MODEL, description="which network to train")
    seed: int = Field(
        0, ge=0, le=2**31 - 1, description="same data, seed and machine give the same weights"
    )
    promote: bool = Field(
        True,
        description="make it the champion if it finds more of what is planted than the present one",
    )
    max_epochs: int | None = Field(
        None,
        ge=1,
        le=100,
        description="most passes (default: the model's own); it ends once it stops learning",
    )
    batch_size: int | None = Field(
        None,
        ge=2,
        le=1 << 20,
        description="household-nights a step learns from (default: the model's own); "
        "what memory does not hold at once is learned from in parts",
    )


class TrainingJob(NamedTuple):
    """What is learned from, its digest, and the key of learning from it in this way."""

    key: str
    data_fingerprint: str
    parameters: FitParameters
    nights: list[date]
    n_households: int
    n_household_nights: int


class FittedDetector(BaseModel):
    """A detector that waits to be registered, in the directory of its key."""

    model_config = ConfigDict(frozen=True)

    key: str
    parameters: FitParameters
    data_fingerprint: str
    first_night: date
    first_calibration_night: date
    last_night: date
    n_households: int
    n_held_out: int
    n_nights: int
    n_household_nights: int
    n_epochs: int
    best_epoch: int
    duration_s: float
    household_nights_per_s: float
    resources: TrainingResources
    training_speed: dict[str, float]
    """Household-nights a second and memory of training steps, by precision and batch size."""
    validation_error_kwh: float
    onnx_difference: float
    """The most that any figure of the ONNX program differs by on nights of homes held out."""
    epoch_metrics: list[dict[str, float]]

    @property
    def best_validation_loss(self) -> float:
        """The validation loss of the weights kept."""
        return self.epoch_metrics[self.best_epoch]["val_loss"]

    def line(self) -> str:
        """How the fit went."""
        return (
            f"{self.parameters.model}, epoch {self.best_epoch + 1} of {self.n_epochs} kept, "
            f"validation loss {self.best_validation_loss:.4f}, {self.household_nights_per_s:,.0f} household-nights/s "
            f"in {self.resources.precision} on {self.resources.device}, "
            f"{timedelta(seconds=round(self.duration_s))}"
        )


class PromotionDecision(BaseModel):
    """Whether a version became the champion, and why."""

    is_promoted: bool
    champion_version: str | None
    superiority: float | None
    """Share of bootstrap resamples of the households in which it ranks better than the champion."""
    why: str


class TrainReceipt(BaseModel):
    """What a training did."""

    version: str
    decision: PromotionDecision
    fitted: FittedDetector

    @property
    def is_promoted(self) -> bool:
        """Whether the version is the champion now."""
        return self.decision.is_promoted

    def line(self) -> str:
        """What there is to say in one line."""
        outcome = "is the champion now" if self.is_promoted else "was registered, not promoted"
        return f"version {self.version} {outcome}: {self.decision.why}; {self.fitted.line()}"


def resolve_last_night(parameters: TrainParameters) -> date:
    """The last night of the lake that a training learns from: by default, of a reporting fleet.

    Raises:
        UserError: the lake is empty, or begins later.
    """
    begin, end = storage.read_night_range()
    last = min(parameters.until or find_last_well_reported_night(), end)
    if last < begin:
        raise UserError(f"no night to learn from: the lake begins on {begin}, after {last}")
    return last


@task(name="fit")
def fit_detector(parameters: TrainParameters) -> FittedDetector:
    """Train on the nights up to `until`, or take up where the same training was stopped.

    Raises:
        UserError: too few nights, or MLflow is down.
    """
    registry.prepare_store()
    with _hold_training_lock(), launch_training_processes(parameters.model_dump_json()) as team:
        return _train_and_export(parameters, team)


def is_data_parallel_worker() -> bool:
    """Whether this process was launched to help another one train."""
    return detect_training_processes().rank > 0


def run_data_parallel_worker(parameters: TrainParameters) -> None:
    """Take part in the training of these parameters, as a process that registers nothing."""
    work, fleet = _prepare_job(parameters)
    if not _fitted_file(work.key).exists():
        directory = paths.training_dir(work.key) / "checkpoints"
        refuse_infinite_inputs(fleet)
        train_network(
            *(fleet, work.parameters, get_settings().min_readings, str(directory)),
            find_latest_checkpoint(directory),
            processes=detect_training_processes(),
        )


@task(name="register")
def register_version(fitted: FittedDetector) -> ModelVersion:
    """Register a fitted detector as the next version, with all that is known of it."""
    numbers = fitted.model_dump(include=LOGGED_COUNTS)
    spans = {
        name: str(getattr(fitted, name)) for name in ("first_night", "first_calibration_night")
    }
    return registry.record_version(
        paths.training_dir(fitted.key),
        run_name=f"{fitted.parameters.model} until {fitted.last_night}, seed {fitted.parameters.seed}",
        parameters=fitted.parameters.model_dump()
        | fitted.resources.model_dump()
        | numbers
        | spans
        | {"until": fitted.last_night},
        epoch_metrics=fitted.epoch_metrics,
        final_metrics=fitted.model_dump(include=LOGGED_METRICS) | fitted.training_speed,
        tags={
            "data": fitted.data_fingerprint,
            "until": str(fitted.last_night),
            "opset": str(ONNX_OPSET),
        }
        | read_code_version(),
    )


@task(name="promote")
def promote_version(
    fitted: FittedDetector, version: ModelVersion, *, is_requested: bool
) -> PromotionDecision:
    """Make a version the champion if it finds more of what is planted than the present one."""
    verdict = compare_with_champion(fitted, is_requested=is_requested)
    if verdict.is_promoted:
        registry.set_champion(version)
    registry.set_version_tags(version, promoted=str(verdict.is_promoted), why=verdict.why)
    shutil.rmtree(paths.training_dir(fitted.key))
    return verdict


def compare_with_champion(fitted: FittedDetector, *, is_requested: bool) -> PromotionDecision:
    """Hold a fitted detector against the champion on nights planted in homes new to both."""
    champion = registry.find_champion_version()
    sureness = None if champion is None else _estimate_superiority(fitted, champion)
    if sureness is None:
        is_better, why = True, "there was no champion"
    else:
        is_better = sureness >= PROMOTION_CONFIDENCE
        why = (
            f"it ranks planted nights better than the champion in {sureness:.0%} of resamples, "
            f"{PROMOTION_CONFIDENCE:.0%} are needed"
        )
    if not is_requested:
        why = f"promotion was not asked for; {why}"
    return PromotionDecision(
        is_promoted=is_requested and is_better,
        champion_version=None if champion is None else champion.version,
        superiority=sureness,
        why=why,
    )


def _estimate_superiority(fitted: FittedDetector, champion: ModelVersion) -> float:
    """How sure it is that a fitted detector finds more than the champion."""
    begin = max(first_night_needed(fitted.first_calibration_night), storage.read_night_range()[0])
    fleet = select_held_out_households(load_fleet(begin, fitted.last_night, only_reporting=True))
    nights = slice(fleet.nights.index(fitted.first_calibration_night), len(fleet.nights))
    households = np.arange(len(fleet.household_ids))[:COMPARISON_HOUSEHOLDS]
    rows = repeat_households(households, -(-COMPARISON_HOUSEHOLDS // len(households)))
    least = get_settings().min_readings
    planted, truth = inject_anomalies(fleet, rows, nights, seed=0, min_readings=least)
    directories = paths.training_dir(fitted.key), paths.model_dir(champion.version)
    ours, theirs = (score_fleet(load_detector(path), planted, least).score for path in directories)
    return estimate_superiority(ours, theirs, truth)


def report_training(receipt: TrainReceipt) -> None:
    """Leave what the training did with the flow run."""
    fitted, verdict = receipt.fitted, receipt.decision
    lines = (
        f"## Version {receipt.version}",
        f"{'Promoted' if receipt.is_promoted else 'Not promoted'}: {verdict.why}.",
        f"- Data `{fitted.data_fingerprint}`: {fitted.n_households:,} households, {fitted.n_nights} nights, "
        f"{fitted.n_household_nights:,} household-nights with readings",
        f"- Split: {fitted.n_held_out:,} households held out of the training from {fitted.first_night}; "
        f"calibrated on their nights from {fitted.first_calibration_night} until {fitted.last_night}",
        f"- Fit of `{fitted.parameters.model}`: {fitted.n_epochs} epochs in {fitted.duration_s:.0f} s "
        f"({fitted.household_nights_per_s:,.0f} household-nights a second, {fitted.resources.precision}, "
        f"{fitted.resources.device}), "
        f"best epoch {fitted.best_epoch + 1}, "
        f"validation loss {fitted.best_validation_loss:.4f}",
        f"- Error of the expected profile there: {fitted.validation_error_kwh:.4f} kWh a half-hour",
        f"- Curves and pictures: {registry.build_version_url(receipt.version)}",
    )
    publish_artifact(
        f"train-{fitted.last_night}", "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:])
    )


def _fitted_file(key: str) -> Path:
    return paths.training_dir(key) / "fitted.json"


@contextmanager
def _hold_training_lock() -> Iterator[None]:
    paths.training_dir("").mkdir(parents=True, exist_ok=True)
    with FileLock(paths.training_dir(".lock")):
        yield


def _prepare_job(parameters: TrainParameters) -> tuple[TrainingJob, Fleet]:
    """What there is to learn from; its key is the same for the same data and choices."""
    chosen = FitParameters(**parameters.model_dump(include=FIT_PARAMETER_NAMES, exclude_none=True))
    fleet = load_fleet(
        storage.read_night_range()[0], resolve_last_night(parameters), only_reporting=True
    )
    data = fingerprint_fleet(fleet)
    key = hashlib.sha256(f"{data} {get_settings().min_readings} {chosen}".encode()).hexdigest()[:16]
    rows = int((fleet.n_readings > 0).sum())
    return TrainingJob(key, data, chosen, fleet.nights, len(fleet.household_ids), rows), fleet


def _train_and_export(parameters: TrainParameters, processes: TrainingProcesses) -> FittedDetector:
    """Train, or go on from the last checkpoint, and leave everything to register."""
    work, fleet = _prepare_job(parameters)
    if _fitted_file(work.key).exists():
        return FittedDetector.model_validate_json(_fitted_file(work.key).read_bytes())
    directory = paths.training_dir(work.key)
    result = _train_detector(work, fleet, processes)
    log.info("trained on %s", result.resources)
    apart = select_held_out_households(fleet)
    # Most of the memory, also held by Lightning's circles; the rest is about the homes held out.
    del fleet
    gc.collect()
    save_detector(result.detector, directory)
    with show_spinner("exporting"):
        save_onnx(result.detector, directory)
    with show_spinner("measuring training steps"):
        table = _measure_training_speed(result.detector, apart)
    with show_spinner("drawing pictures"):
        _save_figures(result, apart, table, directory)
        fitted = _build_fitted_detector(work, apart, result, table)
    storage.replace_bytes(_fitted_file(work.key), fitted.model_dump_json(indent=2).encode())
    return fitted


def _train_detector(job: TrainingJob, fleet: Fleet, processes: TrainingProcesses) -> FitResult:
    directory = paths.training_dir(job.key) / "checkpoints"
    with TrainingProgressBar() as bar:
        return train_and_calibrate(
            fleet,
            job.parameters,
            get_settings().min_readings,
            str(directory),
            resume_from=find_latest_checkpoint(directory),
            callbacks=[bar],
            processes=processes,
            checkpoint_io=AtomicCheckpointIO(),
        )


def _measure_training_speed(detector: Detector, fleet: Fleet) -> pl.DataFrame:
    least, network = get_settings().min_readings, detector.network
    windows = FleetWindows(fleet, network.context_nights, least)
    return measure_training_speed(network, windows, usable_household_nights(fleet, least))


def _save_figures(
    result: FitResult, fleet: Fleet, speed_table: pl.DataFrame, directory: Path
) -> None:
    recent = select_nights_from(
        fleet.select_households(slice(PLOTTED_HOUSEHOLDS)),
        result.calibration_nights.start - WARMUP_NIGHTS,
    )
    nights = slice(len(recent.nights) - _slice_length(result.calibration_nights), None)
    detector, least, budget = (
        result.detector,
        get_settings().min_readings,
        get_settings().alert_budget,
    )
    days = household_nights.select_examples(detector, recent, nights, least, budget)
    for name, figure in {
        "loss": household_nights.draw_loss_curve(result.epoch_metrics, result.best_epoch),
        "profiles": household_nights.draw_profiles(
            days, "Nights of homes held out, least urgent first; shaded: the hours that are flagged"
        ),
        "scores": household_nights.draw_score_distribution(detector, budget),
        "latent": household_nights.draw_latent_plane(
            compute_latent_plane(detector.network, fleet, least)
        ),
        "pace": household_nights.draw_training_speed(speed_table, result.resources.device),
    }.items():
        figure.savefig(directory / f"{name}.png", dpi=110)
    speed_table.write_csv(directory / "pace.csv")


def _build_fitted_detector(
    job: TrainingJob, held_out_fleet: Fleet, result: FitResult, speed_table: pl.DataFrame
) -> FittedDetector:
    nights = job.nights
    return FittedDetector(
        key=job.key,
        parameters=job.parameters,
        data_fingerprint=job.data_fingerprint,
        first_night=nights[0],
        first_calibration_night=nights[result.calibration_nights.start],
        last_night=nights[-1],
        n_households=job.n_households,
        n_held_out=len(held_out_fleet.household_ids),
        n_nights=len(nights),
        n_household_nights=job.n_household_nights,
        n_epochs=len(result.epoch_metrics),
        best_epoch=result.best_epoch,
        duration_s=result.duration_s,
        household_nights_per_s=result.household_nights_per_s,
        resources=result.resources,
        training_speed=_flatten_speed_metrics(speed_table),
        validation_error_kwh=compute_validation_error_kwh(
            result.detector, held_out_fleet, result.calibration_nights, get_settings().min_readings
        ),
        onnx_difference=_measure_onnx_difference(paths.training_dir(job.key), held_out_fleet),
        epoch_metrics=result.epoch_metrics,
    )


def _flatten_speed_metrics(speed_table: pl.DataFrame) -> dict[str, float]:
    """What was measured, under `figure/precision/batch size`."""
    figures = speed_table.unpivot(index=["precision", "batch_size"]).drop_nulls("value")
    return {
        f"{name}/{precision}/{batch_size}": value
        for precision, batch_size, name, value in figures.iter_rows()
    }


def _measure_onnx_difference(directory: Path, fleet: Fleet) -> float:
    """How far the ONNX program is from the model as it scores, on real nights spread out."""
    least = get_settings().min_readings
    model, exported = load_detector(directory), load_detector(directory, "onnx")
    places = select_evenly(usable_household_nights(fleet, least), ONNX_CHECK_SIZE)
    rows = FleetWindows(
        fleet, model.network.context_nights, least, peer_config=model.config.peers
    ).gather_windows(places)
    return measure_output_difference(model.scoring_function, exported.scoring_function, rows)


def _slice_length(nights: slice) -> int:
    return int(nights.stop - nights.start)
