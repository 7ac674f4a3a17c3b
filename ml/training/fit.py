"""The fit of a detector: train its network, restore the best weights, calibrate."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import lightning as L  # noqa: N812
import numpy as np
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.memory import garbage_collection_cuda

from ml.errors import UserError
from ml.fleet import Fleet
from ml.scoring.detector import Detector, DetectorConfig
from ml.scoring.tables import WARMUP_NIGHTS
from ml.training.data import TrainingDataModule, build_data_module
from ml.training.lightning_module import NetworkModule
from ml.training.parameters import SINGLE_PROCESS, FitParameters, TrainingProcesses
from ml.training.split import is_held_out, select_calibration_nights, select_nights_from
from ml.training.trainer import (
    TrainerSetup,
    TrainingResources,
    build_trainer,
    is_out_of_memory,
    leave_process_group,
    suppress_expected_warnings,
)

MIN_DEVICE_BATCH_SIZE: Final = 2
"""Household-nights that batch normalisation needs at once."""
log = logging.getLogger(__name__)


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
    config = detector.config.scoring
    apart, count = is_held_out(fleet.household_ids), len(fleet.nights)
    warm = min(detector.network.context_nights + config.base_rate_nights, count * 3 // 4)
    nights = min(count - warm, -(-config.calibration.max_reference_scores // int(apart.sum())))
    learnt = sorted(itertools.compress(fleet.household_ids, ~apart))
    recent = select_nights_from(fleet, count - nights - WARMUP_NIGHTS).select_households(apart)
    detector.calibrate(recent, nights, min_readings, learnt)


def compute_validation_error_kwh(
    detector: Detector, fleet: Fleet, nights: slice, min_readings: int
) -> float:
    """Mean absolute error of the expected profile, in kWh a half-hour, over these nights."""
    judged = detector.run_network(fleet, nights, min_readings)
    deviation = np.abs(judged.expected_kwh - fleet.kwh[:, nights])
    usable = fleet.n_readings[:, nights] >= min_readings
    return float(np.nanmean(deviation[usable]))
