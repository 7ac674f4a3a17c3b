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
from lightning.pytorch.loggers import Logger
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
"""Fewest household-nights on a device at once: batch normalisation has no variance of one."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerOptions:
    """What a caller adds to a training: where it runs and what it tells while it does."""

    callbacks: Sequence[Callback] = ()
    processes: TrainingProcesses = SINGLE_PROCESS
    checkpoint_io: CheckpointIO | None = None
    """Writes and reads checkpoints; Lightning's own if None."""
    logger: Logger | None = None
    """Is given the metrics of each epoch when it ends."""


DEFAULT_OPTIONS: Final = TrainerOptions()


@dataclass(frozen=True)
class FitResult:
    """A calibrated detector with the weights of its best epoch, and how it came about."""

    detector: Detector
    calibration_nights: slice
    """The fleet's last nights, on whose held-out households versions are compared."""
    epoch_metrics: list[dict[str, float]]
    """One mapping an epoch, as `NetworkModule` records them."""
    best_epoch: int
    """Of the least validation loss, counted from 0."""
    duration_s: float
    """Of the epochs, checkpoints included; of all sittings if it was resumed."""
    household_nights_per_s: float
    resources: TrainingResources


@dataclass(frozen=True)
class CompletedTraining:
    """A detector whose training has ended, with its last weights, and what trained it."""

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
    options: TrainerOptions = DEFAULT_OPTIONS,
) -> FitResult:
    """Return a trained detector with its best weights, calibrated on held-out households.

    Checkpoints go to `checkpoint_dir`; `resume_from` is the last one of a stopped training.

    Raises:
        UserError: too few nights, no usable household-night to learn from or to hold out, an
            infinite reading, a loss that is not finite, or too little memory.
    """
    calibration_nights = select_calibration_nights(fleet.nights)
    refuse_infinite_inputs(fleet)
    training = train_network(fleet, parameters, min_readings, checkpoint_dir, resume_from, options)
    detector = training.detector.cpu().eval()
    best_epoch = _restore_best_weights(training)
    calibrate_on_held_out(detector, fleet, min_readings)
    refuse_non_finite_state(detector)
    epoch_metrics = training.network_module.epoch_metrics
    epoch_size = training.data_module.train_dataloader().epoch_size
    duration_s = training.trainer_setup.timer.time_elapsed()
    return FitResult(
        detector=detector,
        calibration_nights=calibration_nights,
        epoch_metrics=epoch_metrics,
        best_epoch=best_epoch,
        duration_s=duration_s,
        household_nights_per_s=epoch_size * len(epoch_metrics) / duration_s,
        resources=TrainingResources.from_data_module(training.data_module),
    )


def train_network(
    fleet: Fleet,
    parameters: FitParameters,
    min_readings: int,
    checkpoint_dir: str,
    resume_from: str | None,
    options: TrainerOptions = DEFAULT_OPTIONS,
) -> CompletedTraining:
    """Train a new detector's network, with more gradient accumulation if memory does not suffice.

    The first step is the trial: batches begin whole, and each time memory runs out they are
    learned from in twice as many parts, from the last checkpoint on. The sum of a batch's gradients
    stays the same. Lightning's `BatchSizeFinder` makes the batch itself smaller, so that the
    machine would decide what a recipe's learning rate means; the decorator
    `accelerate.find_executable_batch_size` begins anew each time.

    Raises:
        UserError: two household-nights at once are too much for the memory.
    """
    accumulation_steps = 1
    while True:
        # Each attempt starts from the same weights as the first.
        L.seed_everything(parameters.seed, verbose=False)
        detector = Detector(DetectorConfig(model=parameters.model))
        data_module = build_data_module(
            detector.network, fleet, parameters, min_readings, accumulation_steps, options.processes
        )
        module = NetworkModule(
            detector.network,
            parameters,
            accumulation_steps=accumulation_steps,
            processes=options.processes,
        )
        setup = build_trainer(
            parameters,
            checkpoint_dir,
            options.callbacks,
            accumulation_steps=accumulation_steps,
            processes=options.processes,
            checkpoint_io=options.checkpoint_io,
            logger=options.logger,
        )
        try:
            with suppress_expected_warnings():
                setup.trainer.fit(
                    module, datamodule=data_module, ckpt_path=resume_from, weights_only=True
                )
            return CompletedTraining(detector, data_module, module, setup)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            tried_size = data_module.device_batch_size
            resume_from = setup.checkpoint_callback.last_model_path or resume_from
        finally:
            leave_process_group()
        # Outside the handler, whose traceback holds the failed step's tensors.
        del detector, data_module, module, setup
        garbage_collection_cuda()
        # Several processes cannot agree on another attempt: the others wait in the failed step.
        if tried_size < 2 * MIN_DEVICE_BATCH_SIZE or options.processes.n_processes > 1:
            raise UserError(f"out of memory with {tried_size} household-nights at once on a device")
        accumulation_steps *= 2
        log.warning("out of memory with %d household-nights at once, now half as many", tried_size)


def refuse_infinite_inputs(fleet: Fleet) -> None:
    """Raise if a reading or a condition is infinite.

    Raises:
        UserError: which household and night, and how many there are.
    """
    # A household at a time: a mask of the whole fleet's readings takes a quarter of their memory.
    has_infinite_reading = np.array([np.isinf(kwh).any(axis=1) for kwh in fleet.kwh])
    has_infinite_condition = np.asarray(np.isinf(fleet.conditions).any(axis=2))
    for name, found in (
        ("reading", has_infinite_reading),
        ("condition", has_infinite_condition[fleet.condition_group]),
    ):
        if found.any():
            household, night = np.argwhere(found)[0]
            raise UserError(
                f"an infinite {name} of {fleet.household_ids[household]} on {fleet.nights[night]}: "
                f"{found.sum():,} household-nights hold one"
            )


def refuse_non_finite_state(detector: Detector) -> None:
    """Raise if a weight or buffer is not finite, so that such a detector is never registered.

    Raises:
        UserError: which.
    """
    broken = [name for name, value in detector.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"training broke: {', '.join(broken)} of the detector are not finite")


def calibrate_on_held_out(detector: Detector, fleet: Fleet, min_readings: int) -> None:
    """Fit a detector's calibration on the held-out households of the fleet it was trained on.

    On all their nights that have full context and base rate before them, at most as many as fill
    the calibration set, and at least the last quarter of a short history.
    """
    config = detector.config.scoring
    held_out = is_held_out(fleet.household_ids)
    n_nights = len(fleet.nights)
    warmup = min(detector.network.context_nights + config.base_rate_nights, n_nights * 3 // 4)
    nights_to_fill = -(-config.calibration.max_reference_scores // int(held_out.sum()))
    n_calibration = min(n_nights - warmup, nights_to_fill)
    training_household_ids = sorted(itertools.compress(fleet.household_ids, ~held_out))
    recent = select_nights_from(fleet, n_nights - n_calibration - WARMUP_NIGHTS)
    detector.calibrate(
        recent.select_households(held_out), n_calibration, min_readings, training_household_ids
    )


def compute_validation_error_kwh(
    detector: Detector, fleet: Fleet, nights: slice, min_readings: int
) -> float:
    """Return the mean absolute error of the expected profiles of `nights`, in kWh per half-hour.

    Over the half-hours that are there, of household-nights with enough readings.
    """
    output = detector.run_network(fleet, nights, min_readings)
    error_kwh = np.abs(output.expected_kwh - fleet.kwh[:, nights])
    is_usable = fleet.n_readings[:, nights] >= min_readings
    return float(np.nanmean(error_kwh[is_usable]))


def _restore_best_weights(training: CompletedTraining) -> int:
    """Load the weights of the least validation loss into the network; return their epoch."""
    setup = training.trainer_setup
    # Through the trainer's checkpoint plugin, as they were written: no file is opened here.
    checkpoint = setup.trainer.strategy.checkpoint_io.load_checkpoint(
        setup.checkpoint_callback.best_model_path, weights_only=True
    )
    training.network_module.load_state_dict(checkpoint["state_dict"])
    return int(checkpoint["epoch"])
