"""Says what a training learns from and how, under which key, and what came of it."""

import hashlib
import logging
from datetime import date, timedelta
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ml.errors import UserError
from ml.export import ONNX_OPSET
from ml.fleet import Fleet
from ml.models import DEFAULT_MODEL, ModelName
from ml.training.parameters import FitParameters
from ml.training.trainer import TrainingResources
from tasks import paths, storage
from tasks.fleet_loading import find_last_well_reported_night, load_fleet
from tasks.provenance import fingerprint_fleet, read_code_version
from tasks.registry import RunDescription
from tasks.settings import get_settings

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
            parameters=self.parameters.model_dump() | {"until": str(until)},
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


def prepare_job(parameters: TrainParameters) -> tuple[TrainingJob, Fleet]:
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


def read_fitted_detector(key: str) -> FittedDetector | None:
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
