"""Trains a detector, registers it, promotes it if it is better.

HOME/training/<key>/ holds a training until its version is compared with the champion: checkpoints,
the id of its MLflow run, then the detector, pictures and fitted.json. The key is the same for the
same readings and parameters, so that a training that was killed is taken up where it stopped.
"""

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
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ml.errors import UserError
from ml.evaluation.promotion import (
    PromotionDecision,
    build_promotion_trial,
    compare_detectors,
    decide_promotion,
)
from ml.export import ONNX_OPSET, measure_output_difference
from ml.fleet import Fleet
from ml.models import DEFAULT_MODEL, ModelName
from ml.plots import household_nights
from ml.plots import training as training_plots
from ml.scoring.detector import Detector
from ml.scoring.tables import WARMUP_NIGHTS, first_night_needed, score_fleet
from ml.training.fit import (
    FitResult,
    TrainerOptions,
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
from tasks.registry import ModelVersion, RunDescription
from tasks.reports import publish_artifact
from tasks.settings import get_settings
from tasks.training_log import MlflowTrainingLogger
from tasks.training_processes import detect_training_processes, launch_training_processes

PLOTTED_HOUSEHOLDS: Final = 100
"""Held-out households from which the dozen example nights are taken. Chosen: few to score, and a
thousand nights and more to take them from."""
PICTURE_DPI: Final = 110
"""Dots per inch of the pictures that MLflow shows, as of the benchmark's."""
ONNX_CHECK_SIZE: Final = 512
"""Household-nights on which the ONNX program is compared with its network. Chosen: several batches,
of every part of the lake's time."""
# Fields of `FittedDetector`, by what they are in MLflow.
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
"""Fields of `TrainParameters` that override the model's recipe."""

log = logging.getLogger(__name__)


class TrainParameters(BaseModel):
    """The parameters of `train`: what to learn from, and how."""

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
        description="make it the champion if it finds more injected anomalies than the present one",
    )
    max_epochs: int | None = Field(
        None,
        ge=1,
        le=100,
        description="most epochs (default: the model's own); training ends once the validation "
        "loss no longer falls",
    )
    batch_size: int | None = Field(
        None,
        ge=2,
        le=1 << 20,
        description="household-nights a step learns from (default: the model's own); "
        "one that memory does not hold is learned from in parts, their gradients added up",
    )


class TrainingJob(NamedTuple):
    """What a training learns from, and how."""

    key: str
    """The same for the same readings, conditions and parameters."""
    data_fingerprint: str
    parameters: FitParameters
    nights: list[date]
    n_households: int
    n_household_nights: int
    """With at least one reading."""

    def describe_run(self) -> RunDescription:
        """Return name, parameters and tags of the training's MLflow run, as far as known before."""
        until = self.nights[-1]
        return RunDescription(
            run_name=f"{self.parameters.model} until {until}, seed {self.parameters.seed}",
            parameters=self.parameters.model_dump() | {"until": until},
            tags={
                "data": self.data_fingerprint,
                "until": str(until),
                "opset": str(ONNX_OPSET),
            }
            | read_code_version(),
        )


class FittedDetector(BaseModel):
    """A trained detector that waits to be registered, in the directory of its key."""

    model_config = ConfigDict(frozen=True)

    key: str
    parameters: FitParameters
    data_fingerprint: str
    run_description: RunDescription
    """Of the MLflow run; without what is only known after the fit."""
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
    """Household-nights per second and MB of memory, by `name/precision/batch size`."""
    validation_error_kwh: float
    onnx_difference: float
    """Largest difference of any output of the ONNX program on held-out household-nights."""
    epoch_metrics: list[dict[str, float]]

    @property
    def best_validation_loss(self) -> float:
        """Return the validation loss of the best epoch, whose weights the detector has."""
        return self.epoch_metrics[self.best_epoch]["val_loss"]

    def line(self) -> str:
        """Return in one line how the fit went."""
        return (
            f"{self.parameters.model}, epoch {self.best_epoch + 1} of {self.n_epochs} kept, "
            f"validation loss {self.best_validation_loss:.4f}, "
            f"{self.household_nights_per_s:,.0f} household-nights/s "
            f"in {self.resources.precision} on {self.resources.device}, "
            f"{timedelta(seconds=round(self.duration_s))}"
        )


class TrainReceipt(BaseModel):
    """What a training did."""

    version: str
    decision: PromotionDecision
    fitted: FittedDetector

    @property
    def is_promoted(self) -> bool:
        """Return whether the version is the champion now."""
        return self.decision.is_promoted

    def line(self) -> str:
        """Return in one line what the training did."""
        outcome = "is the champion now" if self.is_promoted else "was registered, not promoted"
        return f"version {self.version} {outcome}: {self.decision.why}; {self.fitted.line()}"


def resolve_last_night(parameters: TrainParameters) -> date:
    """Return the last night that a training learns from, within the lake.

    `until` if it is given, otherwise the last night that most of the fleet reports: readings of the
    nights after it are still arriving.

    Raises:
        UserError: the lake is empty, or begins later.
    """
    lake_begin, lake_end = storage.read_night_range()
    last = min(parameters.until or find_last_well_reported_night(), lake_end)
    if last < lake_begin:
        raise UserError(f"no night to learn from: the lake begins on {lake_begin}, after {last}")
    return last


@task(name="fit")
def fit_detector(parameters: TrainParameters) -> FittedDetector:
    """Train a detector and leave it in its training directory, ready to be registered.

    A training of the same data and parameters that was stopped goes on from its last checkpoint;
    one that had ended is returned as it is.

    Raises:
        UserError: too few nights, or MLflow is down.
    """
    # First of all: a store that is down is told now, not after an hour of training.
    registry.prepare_store()
    with (
        _hold_training_lock(),
        launch_training_processes(parameters.model_dump_json()) as processes,
    ):
        return _train_and_export(parameters, processes)


def is_data_parallel_worker() -> bool:
    """Return whether this process was launched to help another one train."""
    return detect_training_processes().rank > 0


def run_data_parallel_worker(parameters: TrainParameters) -> None:
    """Take part in the training of these parameters as a process that writes nothing.

    It loads the same fleet, checks what the first process checks, and so takes the same branch.
    """
    job, fleet = _prepare_job(parameters)
    if _read_fitted_detector(job.key) is None:
        directory = paths.training_checkpoint_dir(job.key)
        refuse_infinite_inputs(fleet)
        train_network(
            fleet,
            job.parameters,
            get_settings().min_readings,
            str(directory),
            find_latest_checkpoint(directory),
            TrainerOptions(processes=detect_training_processes()),
        )


@task(name="register")
def register_version(fitted: FittedDetector) -> ModelVersion:
    """Register a fitted detector as the next version, in the MLflow run that showed its training.

    Raises:
        StoreDownError: MLflow does not answer.
    """
    description = fitted.run_description
    nights = {
        name: str(getattr(fitted, name)) for name in ("first_night", "first_calibration_night")
    }
    parameters = (
        description.parameters
        | fitted.resources.model_dump()
        | fitted.model_dump(include=LOGGED_COUNTS)
        | nights
    )
    return registry.record_version(
        paths.training_dir(fitted.key),
        description.model_copy(update={"parameters": parameters}),
        run_id=_read_run_id(fitted.key),
        epoch_metrics=fitted.epoch_metrics,
        final_metrics=fitted.model_dump(include=LOGGED_METRICS) | fitted.training_speed,
    )


@task(name="promote")
def promote_version(
    fitted: FittedDetector, version: ModelVersion, *, is_requested: bool
) -> PromotionDecision:
    """Make a version the champion if it finds more injected anomalies than the present one.

    The decision and its reason become tags of the version; the training directory is removed.
    """
    decision = compare_with_champion(fitted, is_requested=is_requested)
    if decision.is_promoted:
        registry.set_champion(version)
    registry.set_version_tags(version, promoted=str(decision.is_promoted), why=decision.why)
    shutil.rmtree(paths.training_dir(fitted.key))
    return decision


def compare_with_champion(fitted: FittedDetector, *, is_requested: bool) -> PromotionDecision:
    """Return whether a fitted detector should become the champion, and why.

    Both score anomalies injected into the calibration nights of held-out households, from which
    neither of them has learned.
    """
    champion = registry.find_champion_version()
    if champion is None:
        return decide_promotion(None, None, is_requested=is_requested)
    min_readings = get_settings().min_readings
    begin = max(first_night_needed(fitted.first_calibration_night), storage.read_night_range()[0])
    fleet = select_held_out_households(load_fleet(begin, fitted.last_night, only_reporting=True))
    nights = slice(fleet.nights.index(fitted.first_calibration_night), len(fleet.nights))
    superiority = compare_detectors(
        load_detector(paths.training_dir(fitted.key)),
        load_detector(paths.model_dir(champion.version)),
        build_promotion_trial(fleet, nights, min_readings),
    )
    return decide_promotion(superiority, champion.version, is_requested=is_requested)


def report_training(receipt: TrainReceipt) -> None:
    """Leave a Markdown report of the training with the flow run."""
    fitted = receipt.fitted
    outcome = "Promoted" if receipt.is_promoted else "Not promoted"
    lines = (
        f"## Version {receipt.version}",
        "",
        f"{outcome}: {receipt.decision.why}.",
        "",
        f"- Data `{fitted.data_fingerprint}`: {fitted.n_households:,} households, "
        f"{fitted.n_nights} nights, {fitted.n_household_nights:,} household-nights with readings",
        f"- Split: {fitted.n_held_out:,} households held out of the training from "
        f"{fitted.first_night}; calibrated on their nights from {fitted.first_calibration_night} "
        f"until {fitted.last_night}",
        f"- Fit of `{fitted.parameters.model}`: {fitted.n_epochs} epochs in "
        f"{fitted.duration_s:.0f} s ({fitted.household_nights_per_s:,.0f} household-nights a "
        f"second, {fitted.resources.precision}, {fitted.resources.device}), "
        f"best epoch {fitted.best_epoch + 1}, validation loss {fitted.best_validation_loss:.4f}",
        f"- Error of the expected profile there: {fitted.validation_error_kwh:.4f} kWh a half-hour",
        f"- Curves and pictures: {registry.build_version_url(receipt.version)}",
    )
    publish_artifact(f"train-{fitted.last_night}", "\n".join(lines))


@contextmanager
def _hold_training_lock() -> Iterator[None]:
    """Let one training at a time work in the home: two of the same key would share checkpoints."""
    lock_file = paths.training_lock_file()
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock_file):
        yield


def _read_fitted_detector(key: str) -> FittedDetector | None:
    """Return a training that has ended; None if there is none, or one of another release."""
    file = paths.fitted_detector_file(key)
    if not file.exists():
        return None
    try:
        return FittedDetector.model_validate_json(file.read_bytes())
    except ValidationError as error:
        log.warning(
            "%s is not of this release (%d fields differ): the training goes on from its last "
            "checkpoint",
            file,
            error.error_count(),
        )
        return None


def _prepare_job(parameters: TrainParameters) -> tuple[TrainingJob, Fleet]:
    """Return what a training learns from, with its key, and the fleet."""
    fit_parameters = FitParameters(
        **parameters.model_dump(include=FIT_PARAMETER_NAMES, exclude_none=True)
    )
    first = storage.read_night_range()[0]
    fleet = load_fleet(first, resolve_last_night(parameters), only_reporting=True)
    fingerprint = fingerprint_fleet(fleet)
    identity = f"{fingerprint} {get_settings().min_readings} {fit_parameters}"
    job = TrainingJob(
        key=hashlib.sha256(identity.encode()).hexdigest()[:16],
        data_fingerprint=fingerprint,
        parameters=fit_parameters,
        nights=fleet.nights,
        n_households=len(fleet.household_ids),
        n_household_nights=int((fleet.n_readings > 0).sum()),
    )
    return job, fleet


def _train_and_export(parameters: TrainParameters, processes: TrainingProcesses) -> FittedDetector:
    """Train, or go on from the last checkpoint; write the detector, its program and pictures."""
    job, fleet = _prepare_job(parameters)
    fitted = _read_fitted_detector(job.key)
    if fitted is not None:
        return fitted
    directory = paths.training_dir(job.key)
    result = _train_detector(job, fleet, processes)
    log.info("trained on %s", result.resources)
    held_out_fleet = select_held_out_households(fleet)
    # Trainer, module and data module reference one another, so only the cycle collector frees the
    # training fleet, most of the memory. What follows needs the held-out households alone.
    del fleet
    gc.collect()
    save_detector(result.detector, directory)
    with show_spinner("exporting"):
        save_onnx(result.detector, directory)
    with show_spinner("measuring training steps"):
        speed_table = _measure_training_speed(result.detector, held_out_fleet)
    with show_spinner("drawing pictures"):
        _save_figures(result, held_out_fleet, speed_table, directory)
        fitted = _build_fitted_detector(job, held_out_fleet, result, speed_table)
    # Last, since it says that all the rest is there.
    storage.replace_bytes(
        paths.fitted_detector_file(job.key), fitted.model_dump_json(indent=2).encode()
    )
    return fitted


def _train_detector(job: TrainingJob, fleet: Fleet, processes: TrainingProcesses) -> FitResult:
    directory = paths.training_checkpoint_dir(job.key)
    run_id = _open_training_run(job)
    with TrainingProgressBar() as bar:
        return train_and_calibrate(
            fleet,
            job.parameters,
            get_settings().min_readings,
            str(directory),
            resume_from=find_latest_checkpoint(directory),
            options=TrainerOptions(
                callbacks=[bar],
                processes=processes,
                checkpoint_io=AtomicCheckpointIO(),
                logger=None if run_id is None else MlflowTrainingLogger(run_id),
            ),
        )


def _open_training_run(job: TrainingJob) -> str | None:
    """Return the id of the MLflow run that shows a training, that of its former sittings if any.

    None if MLflow is down: the training goes on, and its run is made when it is registered.
    """
    try:
        run_id = registry.open_training_run(job.describe_run(), _read_run_id(job.key))
    except registry.StoreDownError as outage:
        log.warning("%s; the training is not shown before it is registered", outage)
        return None
    storage.replace_bytes(paths.training_run_file(job.key), run_id.encode())
    return run_id


def _read_run_id(key: str) -> str | None:
    file = paths.training_run_file(key)
    return file.read_text() if file.exists() else None


def _measure_training_speed(detector: Detector, fleet: Fleet) -> pl.DataFrame:
    min_readings = get_settings().min_readings
    network = detector.network
    windows = FleetWindows(fleet, network.context_nights, min_readings)
    return measure_training_speed(network, windows, usable_household_nights(fleet, min_readings))


def _save_figures(
    result: FitResult, held_out_fleet: Fleet, speed_table: pl.DataFrame, directory: Path
) -> None:
    """Write the pictures of a training, and the table behind one of them."""
    detector = result.detector
    settings = get_settings()
    recent = select_nights_from(
        held_out_fleet.select_households(slice(PLOTTED_HOUSEHOLDS)),
        result.calibration_nights.start - WARMUP_NIGHTS,
    )
    n_nights = result.calibration_nights.stop - result.calibration_nights.start
    nights = slice(len(recent.nights) - n_nights, None)
    alert_threshold = _find_alert_threshold(detector, settings.alert_budget)
    scores = score_fleet(detector, recent, settings.min_readings)
    alert_p_value = detector.calibration.alert_p_values(scores.p_value, scores.evidence)
    # The nights before lack their warm-up.
    alert_p_value[:, : nights.start] = np.nan
    examples = household_nights.select_examples(
        recent,
        scores,
        alert_p_value,
        alert_p_value <= (alert_threshold or 0.0),
        min_readings=settings.min_readings,
        reason_config=detector.config.reasons,
    )
    latent_plane = compute_latent_plane(detector.network, held_out_fleet, settings.min_readings)
    for name, figure in {
        "loss": training_plots.draw_loss_curve(result.epoch_metrics, result.best_epoch),
        "profiles": household_nights.draw_profiles(
            examples,
            "Nights of held-out households, least urgent first; shaded: the half-hours that made "
            "the score",
        ),
        "scores": training_plots.draw_score_distribution(
            detector.calibration.reference_scores.numpy(),
            detector.config.scoring.calibration,
            alert_threshold,
            settings.alert_budget,
        ),
        "latent": training_plots.draw_latent_plane(latent_plane),
        "pace": training_plots.draw_training_speed(speed_table, result.resources.device),
    }.items():
        figure.savefig(directory / f"{name}.png", dpi=PICTURE_DPI)
    speed_table.write_csv(directory / "pace.csv")


def _find_alert_threshold(detector: Detector, alert_budget: float) -> float | None:
    """Return the alert p-value that flags, None where the calibration cannot hold the budget."""
    try:
        return detector.calibration.alert_threshold(alert_budget)
    except UserError:
        return None


def _build_fitted_detector(
    job: TrainingJob, held_out_fleet: Fleet, result: FitResult, speed_table: pl.DataFrame
) -> FittedDetector:
    calibration_nights = result.calibration_nights
    min_readings = get_settings().min_readings
    return FittedDetector(
        key=job.key,
        parameters=job.parameters,
        data_fingerprint=job.data_fingerprint,
        run_description=job.describe_run(),
        first_night=job.nights[0],
        first_calibration_night=job.nights[calibration_nights.start],
        last_night=job.nights[-1],
        n_households=job.n_households,
        n_held_out=len(held_out_fleet.household_ids),
        n_nights=len(job.nights),
        n_household_nights=job.n_household_nights,
        n_epochs=len(result.epoch_metrics),
        best_epoch=result.best_epoch,
        duration_s=result.duration_s,
        household_nights_per_s=result.household_nights_per_s,
        resources=result.resources,
        training_speed=_flatten_speed_metrics(speed_table),
        validation_error_kwh=compute_validation_error_kwh(
            result.detector, held_out_fleet, calibration_nights, min_readings
        ),
        onnx_difference=_measure_onnx_difference(paths.training_dir(job.key), held_out_fleet),
        epoch_metrics=result.epoch_metrics,
    )


def _flatten_speed_metrics(speed_table: pl.DataFrame) -> dict[str, float]:
    """Return the measured values of training steps by `name/precision/batch size`."""
    values = speed_table.unpivot(index=["precision", "batch_size"]).drop_nulls("value")
    return {
        f"{name}/{precision}/{batch_size}": value
        for precision, batch_size, name, value in values.iter_rows()
    }


def _measure_onnx_difference(directory: Path, fleet: Fleet) -> float:
    """Return the largest difference between the ONNX program and the network as it scores."""
    min_readings = get_settings().min_readings
    detector = load_detector(directory)
    exported = load_detector(directory, "onnx")
    indices = select_evenly(usable_household_nights(fleet, min_readings), ONNX_CHECK_SIZE)
    windows = FleetWindows(
        fleet, detector.network.context_nights, min_readings, peer_config=detector.config.peers
    ).gather_windows(indices)
    return measure_output_difference(detector.scoring_function, exported.scoring_function, windows)
