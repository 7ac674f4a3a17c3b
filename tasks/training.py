"""Trains a detector, registers it, promotes it if it is better.

HOME/training/<key>/ holds a training until its version is compared with the champion: checkpoints,
the id of its MLflow run, then the detector, pictures and fitted.json. The key is the same for the
same readings and parameters, so that a training that was killed is taken up where it stopped.
"""

import gc
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import polars as pl
from filelock import FileLock
from pydantic import BaseModel

from ml.evaluation.promotion import (
    PromotionDecision,
    build_promotion_trial,
    compare_detectors,
    decide_promotion,
)
from ml.fleet import Fleet
from ml.scoring.detector import OtherInputsError
from ml.scoring.tables import first_night_needed
from ml.training.fit import (
    FitResult,
    TrainerOptions,
    compute_validation_error_kwh,
    refuse_infinite_inputs,
    train_and_calibrate,
    train_network,
)
from ml.training.parameters import TrainingProcesses
from ml.training.split import (
    select_held_out_households,
)
from tasks import paths, registry, storage, task
from tasks.checkpoints import AtomicCheckpointIO, find_latest_checkpoint
from tasks.fleet_loading import load_fleet
from tasks.model_files import load_detector, save_detector, save_onnx
from tasks.progress import TrainingProgressBar, show_spinner
from tasks.registry import ModelVersion
from tasks.reports import publish_artifact
from tasks.settings import get_settings
from tasks.training_job import (
    FittedDetector,
    TrainingJob,
    TrainParameters,
    prepare_job,
    read_fitted_detector,
)
from tasks.training_log import MlflowTrainingLogger
from tasks.training_outputs import (
    flatten_speed_metrics,
    measure_detector_speed,
    measure_onnx_difference,
    save_training_figures,
)
from tasks.training_processes import detect_training_processes, launch_training_processes

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
log = logging.getLogger(__name__)


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


@task(name="fit")
def fit_detector(parameters: TrainParameters) -> FittedDetector:
    """Train a detector and leave it in its training directory, ready to be registered.

    A training of the same data and parameters that was stopped goes on from its last checkpoint;
    one that had ended is returned as it is.

    Raises:
        UserError: too few nights, or MLflow is down.
    """
    # First: a store that is down is reported now, not after an hour of training.
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
    job, fleet = prepare_job(parameters)
    if read_fitted_detector(job.key) is None:
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
    try:
        champion_detector = load_detector(paths.model_dir(champion.version))
    except OtherInputsError as refusal:
        # Made by a release with other conditions or features: a new version must replace it.
        return decide_promotion(
            None, champion.version, is_requested=is_requested, champion_refusal=str(refusal)
        )
    min_readings = get_settings().min_readings
    begin = max(first_night_needed(fitted.first_calibration_night), storage.read_night_range()[0])
    fleet = select_held_out_households(load_fleet(begin, fitted.last_night, only_reporting=True))
    nights = slice(fleet.nights.index(fitted.first_calibration_night), len(fleet.nights))
    superiority = compare_detectors(
        load_detector(paths.training_dir(fitted.key)),
        champion_detector,
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


def _train_and_export(parameters: TrainParameters, processes: TrainingProcesses) -> FittedDetector:
    """Train, or go on from the last checkpoint; write the detector, its program and pictures."""
    job, fleet = prepare_job(parameters)
    fitted = read_fitted_detector(job.key)
    if fitted is not None:
        return fitted
    settings = get_settings()
    directory = paths.training_dir(job.key)
    result = _train_detector(job, fleet, processes, settings.min_readings)
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
        speed_table = measure_detector_speed(result.detector, held_out_fleet, settings.min_readings)
    with show_spinner("drawing pictures"):
        save_training_figures(result, held_out_fleet, speed_table, directory, settings)
        fitted = _build_fitted_detector(
            job, held_out_fleet, result, speed_table, settings.min_readings
        )
    # Last, since it says that all the rest is there.
    storage.replace_bytes(
        paths.fitted_detector_file(job.key), fitted.model_dump_json(indent=2).encode()
    )
    return fitted


def _train_detector(
    job: TrainingJob, fleet: Fleet, processes: TrainingProcesses, min_readings: int
) -> FitResult:
    directory = paths.training_checkpoint_dir(job.key)
    run_id = _open_training_run(job)
    with TrainingProgressBar() as bar:
        return train_and_calibrate(
            fleet,
            job.parameters,
            min_readings,
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


def _build_fitted_detector(
    job: TrainingJob,
    held_out_fleet: Fleet,
    result: FitResult,
    speed_table: pl.DataFrame,
    min_readings: int,
) -> FittedDetector:
    calibration_nights = result.calibration_nights
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
        training_speed=flatten_speed_metrics(speed_table),
        validation_error_kwh=compute_validation_error_kwh(
            result.detector, held_out_fleet, calibration_nights, min_readings
        ),
        onnx_difference=measure_onnx_difference(
            paths.training_dir(job.key), held_out_fleet, min_readings
        ),
        epoch_metrics=result.epoch_metrics,
    )
