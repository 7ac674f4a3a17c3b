"""Training: households held out, the fit of a detector, and how good its expectation is."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

import lightning as L  # noqa: N812
import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.memory import garbage_collection_cuda
from numpy.typing import NDArray
from torch import Tensor

from ml.calibration import hash_household_ids
from ml.detector import CALIBRATION_SIZE, Detector, DetectorConfig
from ml.errors import UserError
from ml.fleet import Fleet
from ml.models.base import Network
from ml.score import BASE_RATE_NIGHTS, WARMUP_NIGHTS, calibrate_detector, run_network
from ml.training.lightning_module import (
    SINGLE_PROCESS,
    FitParameters,
    NetworkModule,
    TrainerSetup,
    TrainingDataModule,
    TrainingProcesses,
    TrainingResources,
    build_trainer,
    is_out_of_memory,
    leave_process_group,
    select_evenly,
    suppress_expected_warnings,
)
from ml.windows import FleetWindows

HELD_OUT_SHARE: Final = 1 / 8
CALIBRATION_NIGHTS: Final = 28
MIN_TRAINING_NIGHTS: Final = 28
SCALE_SAMPLE_SIZE: Final = 1 << 14
MIN_DEVICE_BATCH_SIZE: Final = 2
"""Household-nights that batch normalisation needs at once."""

log = logging.getLogger(__name__)

# Lightning advertises and repeats itself at level INFO.
for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class FitResult:
    """A calibrated detector with its best weights, and how it came about."""

    detector: Detector
    calibration_nights: slice
    """The last nights, on whose held-out households versions are compared."""
    epoch_metrics: list[dict[str, float]]
    """One entry an epoch."""
    best_epoch: int
    duration_s: float
    household_nights_per_s: float
    resources: TrainingResources


@dataclass(frozen=True)
class CompletedTraining:
    """A detector whose training has ended, its last weights in it, and what trained it."""

    detector: Detector
    data_module: TrainingDataModule
    network_module: NetworkModule
    trainer_setup: TrainerSetup


def is_held_out(household_ids: list[str]) -> NDArray[np.bool_]:
    """Which households no network learns from, `[H]`: those whose hash falls under 1/8.

    It stays the same as a fleet grows; where none falls under it, the one of the smallest hash.
    """
    hashes = hash_household_ids(household_ids).view(np.uint64) / 2.0**64
    return hashes <= max(HELD_OUT_SHARE, hashes.min(initial=1.0))


def select_calibration_nights(nights: list[date]) -> slice:
    """The last nights of a history: 28, and a quarter of less than 112.

    Raises:
        UserError: there are fewer than `MIN_TRAINING_NIGHTS`.
    """
    count = len(nights)
    if count < MIN_TRAINING_NIGHTS:
        held = f"{count} up to {nights[-1]}" if nights else "none"
        raise UserError(
            f"training needs {MIN_TRAINING_NIGHTS} nights or more, the lake holds {held}"
        )
    return slice(count - min(CALIBRATION_NIGHTS, count // 4), count)


def train_and_calibrate(
    fleet: Fleet,
    parameters: FitParameters,
    min_readings: int,
    checkpoint_dir: str,
    *,
    resume_from: str | None = None,
    callbacks: Sequence[Callback] = (),
    processes: TrainingProcesses = SINGLE_PROCESS,
    checkpoint_io: CheckpointIO | None = None,
) -> FitResult:
    """Train, restore the best weights, and calibrate on households that training has not seen.

    Checkpoints go to `checkpoint_dir` through `checkpoint_io`; `resume_from` is the last one of a training that
    was stopped.

    Raises:
        UserError: too few nights, no usable household-night to learn from or to hold out, an
            infinite reading, a loss that is not finite, or too little memory.
    """
    nights = select_calibration_nights(fleet.nights)
    refuse_infinite_inputs(fleet)
    learnt = train_network(
        fleet,
        parameters,
        min_readings,
        checkpoint_dir,
        resume_from,
        callbacks,
        processes=processes,
        checkpoint_io=checkpoint_io,
    )
    module, detector = learnt.network_module, learnt.detector.cpu().eval()
    best_epoch = module.restore_weights(learnt.trainer_setup.checkpoint_callback.best_model_path)
    calibrate_on_held_out(detector, fleet, min_readings)
    refuse_non_finite_state(detector)
    seconds = learnt.trainer_setup.timer.time_elapsed()
    rows = learnt.data_module.train_dataloader().epoch_size * len(module.epoch_metrics)
    return FitResult(
        detector=detector,
        calibration_nights=nights,
        epoch_metrics=module.epoch_metrics,
        best_epoch=best_epoch,
        duration_s=seconds,
        household_nights_per_s=rows / seconds,
        resources=TrainingResources.from_data_module(learnt.data_module),
    )


def train_network(
    fleet: Fleet,
    parameters: FitParameters,
    min_readings: int,
    checkpoint_dir: str,
    resume_from: str | None,
    callbacks: Sequence[Callback] = (),
    *,
    processes: TrainingProcesses = SINGLE_PROCESS,
    checkpoint_io: CheckpointIO | None = None,
) -> CompletedTraining:
    """Train a new detector, in smaller parts of a batch for as long as memory does not suffice.

    The first step is the trial; one that fails later goes on from the last checkpoint.

    Raises:
        UserError: two household-nights at once are too much for the memory.
    """
    parts = 1
    while True:
        L.seed_everything(parameters.seed, verbose=False)
        detector = Detector(DetectorConfig(model=parameters.model))
        data = build_data_module(
            detector.network, fleet, parameters, min_readings, parts, processes
        )
        module = NetworkModule(
            detector.network, parameters, accumulation_steps=parts, processes=processes
        )
        loop = build_trainer(
            parameters,
            checkpoint_dir,
            callbacks,
            accumulation_steps=parts,
            processes=processes,
            checkpoint_io=checkpoint_io,
        )
        try:
            with suppress_expected_warnings():
                loop.trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
            return CompletedTraining(detector, data, module, loop)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            tried, resume_from = (
                data.device_batch_size,
                loop.checkpoint_callback.last_model_path or resume_from,
            )
        finally:
            leave_process_group()
        # Out here nothing holds the failed step's tensors.
        del detector, data, module, loop
        garbage_collection_cuda()
        if tried < 2 * MIN_DEVICE_BATCH_SIZE or processes.n_processes > 1:
            raise UserError(f"out of memory with {tried} household-nights at once on a device")
        parts *= 2
        log.warning("out of memory with %d household-nights at once, now half as many", tried)


def refuse_infinite_inputs(fleet: Fleet) -> None:
    """Raise where a reading or a condition is infinite.

    Raises:
        UserError: which household and night.
    """
    readings = np.array([np.isinf(home).any(axis=1) for home in fleet.kwh])
    conditions = np.asarray(np.isinf(fleet.conditions).any(axis=2))[fleet.condition_group]
    for name, found in (("reading", readings), ("condition", conditions)):
        if found.any():
            h, d = np.argwhere(found)[0]
            raise UserError(
                f"an infinite {name} of {fleet.household_ids[h]} on {fleet.nights[d]}: "
                f"{found.sum():,} household-nights hold one"
            )


def refuse_non_finite_state(detector: Detector) -> None:
    """Raise where a weight or a reference is not finite, so that nobody keeps the detector.

    Raises:
        UserError: which.
    """
    state = detector.state_dict().items()
    if broken := [name for name, value in state if not value.isfinite().all()]:
        raise UserError(f"training broke: {', '.join(broken)} of the detector are not finite")


def calibrate_on_held_out(detector: Detector, fleet: Fleet, min_readings: int) -> None:
    """Take the references from the households held out: all their nights that have a past.

    Of a short history the last quarter, and no more nights than the calibration holds.
    """
    apart, count = is_held_out(fleet.household_ids), len(fleet.nights)
    warm = min(detector.network.context_nights + BASE_RATE_NIGHTS, count * 3 // 4)
    nights = min(count - warm, -(-CALIBRATION_SIZE // int(apart.sum())))
    learnt = sorted(itertools.compress(fleet.household_ids, ~apart))
    recent = select_nights_from(fleet, count - nights - WARMUP_NIGHTS).select_households(apart)
    calibrate_detector(detector, recent, nights, min_readings, learnt)


def build_data_module(
    network: Network,
    fleet: Fleet,
    parameters: FitParameters,
    min_readings: int,
    accumulation_steps: int = 1,
    processes: TrainingProcesses = SINGLE_PROCESS,
) -> TrainingDataModule:
    """Split by household, and give the network the scales of what it will learn from.

    Raises:
        UserError: no household-night of either side has enough readings.
    """
    windows = FleetWindows(fleet, network.context_nights, min_readings)
    apart = is_held_out(fleet.household_ids)
    train = require_usable_household_nights(fleet, ~apart, "to learn from", min_readings)
    validation = require_usable_household_nights(fleet, apart, "held out", min_readings)
    network.fit_scales(windows.gather_windows(select_evenly(train, SCALE_SAMPLE_SIZE)))
    return TrainingDataModule(
        windows,
        train,
        validation,
        parameters,
        accumulation_steps=accumulation_steps,
        processes=processes,
    )


def usable_household_nights(fleet: Fleet, min_readings: int) -> Tensor:
    """All household-nights `[N]` with enough readings, counted through the fleet's `[H, D]`."""
    return torch.from_numpy(np.flatnonzero(fleet.n_readings >= min_readings))


def require_usable_household_nights(
    fleet: Fleet, household_mask: NDArray[np.bool_], purpose: str, min_readings: int
) -> Tensor:
    """The household-nights `[N]` with enough readings, counted through the fleet's `[H, D]`.

    Raises:
        UserError: there is none among these households.
    """
    usable = (fleet.n_readings >= min_readings) & household_mask[:, None]
    if not usable.any():
        first, last = fleet.nights[0], fleet.nights[-1]
        raise UserError(
            f"no household {purpose} has {min_readings} readings on a night {first} to {last}"
        )
    return torch.from_numpy(np.flatnonzero(usable))


def select_nights_from(fleet: Fleet, first_index: int) -> Fleet:
    """The fleet's nights from `first_index` on, all of them where it is negative."""
    return fleet.select_nights(max(first_index, 0))


def select_held_out_households(fleet: Fleet) -> Fleet:
    """The households of a fleet that no network learns from."""
    return fleet.select_households(is_held_out(fleet.household_ids))


def compute_validation_error_kwh(
    detector: Detector, fleet: Fleet, nights: slice, min_readings: int
) -> float:
    """Mean absolute error of the expected profile, in kWh a half-hour, over these nights."""
    judged = run_network(detector, fleet, nights, min_readings)
    deviation = np.abs(judged.expected_kwh - fleet.kwh[:, nights])
    usable = fleet.n_readings[:, nights] >= min_readings
    return float(np.nanmean(deviation[usable]))
