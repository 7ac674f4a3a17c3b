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

from ml import plots
from ml.benchmark.figures import estimate_superiority
from ml.benchmark.plant import inject_anomalies, repeat_households
from ml.detector import Detector
from ml.errors import UserError
from ml.export import ONNX_OPSET, measure_output_difference
from ml.features import Fleet
from ml.latent import compute_latent_plane
from ml.loop import FitParameters, TrainingProcesses, TrainingResources, select_evenly
from ml.models import DEFAULT_MODEL, ModelName
from ml.pace import measure_training_speed
from ml.score import WARMUP_NIGHTS, first_night_needed, score_fleet
from ml.train import (
    FitResult,
    compute_validation_error_kwh,
    refuse_infinite_inputs,
    select_held_out_households,
    select_nights_from,
    train_and_calibrate,
    train_network,
    usable_household_nights,
)
from ml.windows import FleetWindows
from tasks import lake, registry, task
from tasks.artefact import load, save, save_onnx
from tasks.checkpoints import WholeFiles, latest
from tasks.fleet import last_common_night, load_fleet
from tasks.progress import TrainingBar, at
from tasks.provenance import code_version, fingerprint
from tasks.registry import Version
from tasks.report import leave
from tasks.settings import settings
from tasks.team import assembled, present

SURE: Final = 0.95
PICTURED: Final = 100
EXPORTED_ROWS: Final = 512
"""Household-nights on which an exported program is held against its model."""
PLANTED_ROWS: Final = 136
"""Copies of homes in which nights are planted to hold two detectors against each other."""
NUMBERS: Final = {"households", "held_out", "nights", "rows", "best_epoch"}
FIGURES: Final = {"error_kwh", "onnx_difference", "seconds", "rows_per_second"}
CHOICES: Final = {"model", "seed", "max_epochs", "batch_size"}

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


class Work(NamedTuple):
    """What is learned from, its digest, and the key of learning from it in this way."""

    key: str
    data: str
    parameters: FitParameters
    nights: list[date]
    households: int
    rows: int


class Fitted(BaseModel):
    """A detector that waits to be registered, in the directory of its key."""

    model_config = ConfigDict(frozen=True)

    key: str
    parameters: FitParameters
    data: str
    first: date
    calibration: date
    until: date
    households: int
    held_out: int
    nights: int
    rows: int
    epochs: int
    best_epoch: int
    seconds: float
    rows_per_second: float
    resources: TrainingResources
    pace: dict[str, float]
    """Household-nights a second and memory of training steps, by precision and batch size."""
    error_kwh: float
    onnx_difference: float
    """The most that any figure of the ONNX program differs by on nights of homes held out."""
    history: list[dict[str, float]]

    @property
    def best_loss(self) -> float:
        """The validation loss of the weights kept."""
        return self.history[self.best_epoch]["val_loss"]

    def line(self) -> str:
        """How the fit went."""
        return (
            f"{self.parameters.model}, epoch {self.best_epoch + 1} of {self.epochs} kept, "
            f"validation loss {self.best_loss:.4f}, {self.rows_per_second:,.0f} household-nights/s "
            f"in {self.resources.precision} on {self.resources.device}, "
            f"{timedelta(seconds=round(self.seconds))}"
        )


class Verdict(BaseModel):
    """Whether a version became the champion, and why."""

    promoted: bool
    champion_version: str | None
    sureness: float | None
    """Share of bootstrap resamples of the households in which it ranks better than the champion."""
    why: str


class TrainReceipt(BaseModel):
    """What a training did."""

    version: str
    verdict: Verdict
    fitted: Fitted

    @property
    def promoted(self) -> bool:
        """Whether the version is the champion now."""
        return self.verdict.promoted

    def line(self) -> str:
        """What there is to say in one line."""
        outcome = "is the champion now" if self.promoted else "was registered, not promoted"
        return f"version {self.version} {outcome}: {self.verdict.why}; {self.fitted.line()}"


def last_night(parameters: TrainParameters) -> date:
    """The last night of the lake that a training learns from: by default, of a reporting fleet.

    Raises:
        UserError: the lake is empty, or begins later.
    """
    begin, end = lake.extent()
    last = min(parameters.until or last_common_night(), end)
    if last < begin:
        raise UserError(f"no night to learn from: the lake begins on {begin}, after {last}")
    return last


@task(name="fit")
def fit_detector(parameters: TrainParameters) -> Fitted:
    """Train on the nights up to `until`, or take up where the same training was stopped.

    Raises:
        UserError: too few nights, or MLflow is down.
    """
    registry.prepare()
    with _one_at_a_time(), assembled(parameters.model_dump_json()) as team:
        return _fitted(parameters, team)


def is_assistant() -> bool:
    """Whether this process was launched to help another one train."""
    return present().rank > 0


def assist(parameters: TrainParameters) -> None:
    """Take part in the training of these parameters, as a process that registers nothing."""
    work, fleet = _prepared(parameters)
    if not _report(work.key).exists():
        directory = lake.training(work.key) / "checkpoints"
        refuse_infinite_inputs(fleet)
        train_network(
            *(fleet, work.parameters, settings().min_readings, str(directory)),
            latest(directory),
            processes=present(),
        )


@task(name="register")
def register_version(fitted: Fitted) -> Version:
    """Register a fitted detector as the next version, with all that is known of it."""
    numbers = fitted.model_dump(include=NUMBERS)
    spans = {name: str(getattr(fitted, name)) for name in ("first", "calibration")}
    return registry.register(
        lake.training(fitted.key),
        name=f"{fitted.parameters.model} until {fitted.until}, seed {fitted.parameters.seed}",
        parameters=fitted.parameters.model_dump()
        | fitted.resources.model_dump()
        | numbers
        | spans
        | {"until": fitted.until},
        history=fitted.history,
        figures=fitted.model_dump(include=FIGURES) | fitted.pace,
        tags={"data": fitted.data, "until": str(fitted.until), "opset": str(ONNX_OPSET)}
        | code_version(),
    )


@task(name="promote")
def promote_version(fitted: Fitted, version: Version, *, wanted: bool) -> Verdict:
    """Make a version the champion if it finds more of what is planted than the present one."""
    verdict = compare(fitted, wanted=wanted)
    if verdict.promoted:
        registry.promote(version)
    registry.note(version, promoted=str(verdict.promoted), why=verdict.why)
    shutil.rmtree(lake.training(fitted.key))
    return verdict


def compare(fitted: Fitted, *, wanted: bool) -> Verdict:
    """Hold a fitted detector against the champion on nights planted in homes new to both."""
    champion = registry.champion_version()
    sureness = None if champion is None else _sureness(fitted, champion)
    if sureness is None:
        is_better, why = True, "there was no champion"
    else:
        is_better = sureness >= SURE
        why = (
            f"it ranks planted nights better than the champion in {sureness:.0%} of resamples, "
            f"{SURE:.0%} are needed"
        )
    if not wanted:
        why = f"promotion was not asked for; {why}"
    return Verdict(
        promoted=wanted and is_better,
        champion_version=None if champion is None else champion.version,
        sureness=sureness,
        why=why,
    )


def _sureness(fitted: Fitted, champion: Version) -> float:
    """How sure it is that a fitted detector finds more than the champion: `better`."""
    begin = max(first_night_needed(fitted.calibration), lake.extent()[0])
    fleet = select_held_out_households(load_fleet(begin, fitted.until, reporting=True))
    nights = slice(fleet.nights.index(fitted.calibration), len(fleet.nights))
    households = np.arange(len(fleet.household_ids))[:PLANTED_ROWS]
    rows = repeat_households(households, -(-PLANTED_ROWS // len(households)))
    least = settings().min_readings
    planted, truth = inject_anomalies(fleet, rows, nights, seed=0, min_readings=least)
    paths = lake.training(fitted.key), lake.model(champion.version)
    ours, theirs = (score_fleet(load(path), planted, least).score for path in paths)
    return estimate_superiority(ours, theirs, truth)


def report_training(receipt: TrainReceipt) -> None:
    """Leave what the training did with the flow run."""
    fitted, verdict = receipt.fitted, receipt.verdict
    lines = (
        f"## Version {receipt.version}",
        f"{'Promoted' if receipt.promoted else 'Not promoted'}: {verdict.why}.",
        f"- Data `{fitted.data}`: {fitted.households:,} households, {fitted.nights} nights, "
        f"{fitted.rows:,} household-nights with readings",
        f"- Split: {fitted.held_out:,} households held out of the training from {fitted.first}; "
        f"calibrated on their nights from {fitted.calibration} until {fitted.until}",
        f"- Fit of `{fitted.parameters.model}`: {fitted.epochs} epochs in {fitted.seconds:.0f} s "
        f"({fitted.rows_per_second:,.0f} household-nights a second, {fitted.resources.precision}, "
        f"{fitted.resources.device}), "
        f"best epoch {fitted.best_epoch + 1}, "
        f"validation loss {fitted.best_loss:.4f}",
        f"- Error of the expected profile there: {fitted.error_kwh:.4f} kWh a half-hour",
        f"- Curves and pictures: {registry.page(receipt.version)}",
    )
    leave(f"train-{fitted.until}", "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]))


def _report(key: str) -> Path:
    return lake.training(key) / "fitted.json"


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    lake.training("").mkdir(parents=True, exist_ok=True)
    with FileLock(lake.training(".lock")):
        yield


def _prepared(parameters: TrainParameters) -> tuple[Work, Fleet]:
    """What there is to learn from; its key is the same for the same data and choices."""
    chosen = FitParameters(**parameters.model_dump(include=CHOICES, exclude_none=True))
    fleet = load_fleet(lake.extent()[0], last_night(parameters), reporting=True)
    data = fingerprint(fleet)
    key = hashlib.sha256(f"{data} {settings().min_readings} {chosen}".encode()).hexdigest()[:16]
    rows = int((fleet.n_readings > 0).sum())
    return Work(key, data, chosen, fleet.nights, len(fleet.household_ids), rows), fleet


def _fitted(parameters: TrainParameters, team: TrainingProcesses) -> Fitted:
    """Train, or go on from the last checkpoint, and leave everything to register."""
    work, fleet = _prepared(parameters)
    if _report(work.key).exists():
        return Fitted.model_validate_json(_report(work.key).read_bytes())
    directory = lake.training(work.key)
    result = _fit(work, fleet, team)
    log.info("trained on %s", result.resources)
    apart = select_held_out_households(fleet)
    # Most of the memory, also held by Lightning's circles; the rest is about the homes held out.
    del fleet
    gc.collect()
    save(result.detector, directory)
    with at("exporting"):
        save_onnx(result.detector, directory)
    with at("measuring training steps"):
        table = _paces(result.detector, apart)
    with at("drawing pictures"):
        _draw(result, apart, table, directory)
        fitted = _summary(work, apart, result, table)
    lake.replace_bytes(_report(work.key), fitted.model_dump_json(indent=2).encode())
    return fitted


def _fit(work: Work, fleet: Fleet, team: TrainingProcesses) -> FitResult:
    directory = lake.training(work.key) / "checkpoints"
    with TrainingBar() as bar:
        return train_and_calibrate(
            fleet,
            work.parameters,
            settings().min_readings,
            str(directory),
            resume_from=latest(directory),
            callbacks=[bar],
            processes=team,
            checkpoint_io=WholeFiles(),
        )


def _paces(detector: Detector, fleet: Fleet) -> pl.DataFrame:
    least, network = settings().min_readings, detector.network
    windows = FleetWindows(fleet, network.context_nights, least)
    return measure_training_speed(network, windows, usable_household_nights(fleet, least))


def _draw(result: FitResult, fleet: Fleet, table: pl.DataFrame, directory: Path) -> None:
    recent = select_nights_from(
        fleet.select_households(slice(PICTURED)), result.calibration_nights.start - WARMUP_NIGHTS
    )
    nights = slice(len(recent.nights) - _length(result.calibration_nights), None)
    detector, least, budget = result.detector, settings().min_readings, settings().alert_budget
    days = plots.select_examples(detector, recent, nights, least, budget)
    for name, figure in {
        "loss": plots.draw_loss_curve(result.epoch_metrics, result.best_epoch),
        "profiles": plots.draw_profiles(
            days, "Nights of homes held out, least urgent first; shaded: the hours that are flagged"
        ),
        "scores": plots.draw_score_distribution(detector, budget),
        "latent": plots.draw_latent_plane(compute_latent_plane(detector.network, fleet, least)),
        "pace": plots.draw_training_speed(table, result.resources.device),
    }.items():
        figure.savefig(directory / f"{name}.png", dpi=110)
    table.write_csv(directory / "pace.csv")


def _summary(work: Work, apart: Fleet, result: FitResult, table: pl.DataFrame) -> Fitted:
    nights = work.nights
    return Fitted(
        key=work.key,
        parameters=work.parameters,
        data=work.data,
        first=nights[0],
        calibration=nights[result.calibration_nights.start],
        until=nights[-1],
        households=work.households,
        held_out=len(apart.household_ids),
        nights=len(nights),
        rows=work.rows,
        epochs=len(result.epoch_metrics),
        best_epoch=result.best_epoch,
        seconds=result.duration_s,
        rows_per_second=result.household_nights_per_s,
        resources=result.resources,
        pace=_metrics(table),
        error_kwh=compute_validation_error_kwh(
            result.detector, apart, result.calibration_nights, settings().min_readings
        ),
        onnx_difference=_onnx_difference(lake.training(work.key), apart),
        history=result.epoch_metrics,
    )


def _metrics(table: pl.DataFrame) -> dict[str, float]:
    """What was measured, under `figure/precision/batch size`."""
    figures = table.unpivot(index=["precision", "batch_size"]).drop_nulls("value")
    return {
        f"{name}/{precision}/{batch_size}": value
        for precision, batch_size, name, value in figures.iter_rows()
    }


def _onnx_difference(directory: Path, fleet: Fleet) -> float:
    """How far the ONNX program is from the model as it scores, on real nights spread out."""
    least = settings().min_readings
    model, exported = load(directory), load(directory, "onnx")
    places = select_evenly(usable_household_nights(fleet, least), EXPORTED_ROWS)
    rows = FleetWindows(
        fleet, model.network.context_nights, least, borrow_from_peers=True
    ).gather_windows(places)
    return measure_output_difference(model.scoring_function(), exported.scoring_function(), rows)


def _length(part: slice) -> int:
    return int(part.stop - part.start)
