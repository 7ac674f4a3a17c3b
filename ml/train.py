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
from ml.features import Fleet
from ml.loop import (
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
from ml.models.network import Network
from ml.score import BASE_RATE_NIGHTS, WARMUP_NIGHTS, calibrate_detector, run_network
from ml.windows import FleetWindows

HELD_OUT_SHARE: Final = 1 / 8
CALIBRATION_NIGHTS: Final = 28
MIN_NIGHTS: Final = 28
SCALE_ROWS: Final = 1 << 14
LEAST_ROWS: Final = 2
"""Household-nights that batch normalisation needs at once."""

log = logging.getLogger(__name__)

# Lightning advertises and repeats itself at level INFO.
for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class FitResult:
    """A calibrated detector with its best weights, and how it came about."""

    detector: Detector
    calibration: slice
    """The last nights, on whose held-out households versions are compared."""
    history: list[dict[str, float]]
    """One entry an epoch."""
    best_epoch: int
    seconds: float
    rows_per_second: float
    resources: TrainingResources


@dataclass(frozen=True)
class Learnt:
    """A detector whose training has ended, its last weights in it, and what trained it."""

    detector: Detector
    data: TrainingDataModule
    module: NetworkModule
    loop: TrainerSetup


def held_out(household_ids: list[str]) -> NDArray[np.bool_]:
    """Which households no network learns from, `[H]`: those whose hash falls under 1/8.

    It stays the same as a fleet grows; where none falls under it, the one of the smallest hash.
    """
    hashes = hash_household_ids(household_ids).view(np.uint64) / 2.0**64
    return hashes <= max(HELD_OUT_SHARE, hashes.min(initial=1.0))


def calibration_nights(nights: list[date]) -> slice:
    """The last nights of a history: 28, and a quarter of less than 112.

    Raises:
        UserError: there are fewer than `MIN_NIGHTS`.
    """
    count = len(nights)
    if count < MIN_NIGHTS:
        held = f"{count} up to {nights[-1]}" if nights else "none"
        raise UserError(f"training needs {MIN_NIGHTS} nights or more, the lake holds {held}")
    return slice(count - min(CALIBRATION_NIGHTS, count // 4), count)


def fit(
    fleet: Fleet,
    parameters: FitParameters,
    min_readings: int,
    directory: str,
    *,
    resume: str | None = None,
    callbacks: Sequence[Callback] = (),
    team: TrainingProcesses = SINGLE_PROCESS,
    files: CheckpointIO | None = None,
) -> FitResult:
    """Train, restore the best weights, and calibrate on households that training has not seen.

    Checkpoints go to `directory`, by way of `files`; `resume` is the last one of a training that
    was stopped.

    Raises:
        UserError: too few nights, no usable household-night to learn from or to hold out, an
            infinite reading, a loss that is not finite, or too little memory.
    """
    nights = calibration_nights(fleet.nights)
    refuse_infinite(fleet)
    learnt = learn(
        fleet,
        parameters,
        min_readings,
        directory,
        resume,
        callbacks,
        team=team,
        files=files,
    )
    module, detector = learnt.module, learnt.detector.cpu().eval()
    best_epoch = module.restore_weights(learnt.loop.checkpoint_callback.best_model_path)
    calibrate_on(detector, fleet, min_readings)
    refuse_broken(detector)
    seconds = learnt.loop.timer.time_elapsed()
    rows = learnt.data.train_dataloader().epoch_size * len(module.epoch_metrics)
    return FitResult(
        detector=detector,
        calibration=nights,
        history=module.epoch_metrics,
        best_epoch=best_epoch,
        seconds=seconds,
        rows_per_second=rows / seconds,
        resources=TrainingResources.from_data_module(learnt.data),
    )


def learn(
    fleet: Fleet,
    parameters: FitParameters,
    min_readings: int,
    directory: str,
    resume: str | None,
    callbacks: Sequence[Callback] = (),
    *,
    team: TrainingProcesses = SINGLE_PROCESS,
    files: CheckpointIO | None = None,
) -> Learnt:
    """Train a new detector, in smaller parts of a batch for as long as memory does not suffice.

    The first step is the trial; one that fails later goes on from the last checkpoint.

    Raises:
        UserError: two household-nights at once are too much for the memory.
    """
    parts = 1
    while True:
        L.seed_everything(parameters.seed, verbose=False)
        detector = Detector(DetectorConfig(model=parameters.model))
        data = nights_data(detector.network, fleet, parameters, min_readings, parts, team)
        module = NetworkModule(
            detector.network, parameters, accumulation_steps=parts, processes=team
        )
        loop = build_trainer(
            parameters,
            directory,
            callbacks,
            accumulation_steps=parts,
            processes=team,
            checkpoint_io=files,
        )
        try:
            with suppress_expected_warnings():
                loop.trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
            return Learnt(detector, data, module, loop)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            tried, resume = (
                data.device_batch_size,
                loop.checkpoint_callback.last_model_path or resume,
            )
        finally:
            leave_process_group()
        # Out here nothing holds the failed step's tensors.
        del detector, data, module, loop
        garbage_collection_cuda()
        if tried < 2 * LEAST_ROWS or team.n_processes > 1:
            raise UserError(f"out of memory with {tried} household-nights at once on a device")
        parts *= 2
        log.warning("out of memory with %d household-nights at once, now half as many", tried)


def refuse_infinite(fleet: Fleet) -> None:
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


def refuse_broken(detector: Detector) -> None:
    """Raise where a weight or a reference is not finite, so that nobody keeps the detector.

    Raises:
        UserError: which.
    """
    state = detector.state_dict().items()
    if broken := [name for name, value in state if not value.isfinite().all()]:
        raise UserError(f"training broke: {', '.join(broken)} of the detector are not finite")


def calibrate_on(detector: Detector, fleet: Fleet, min_readings: int) -> None:
    """Take the references from the households held out: all their nights that have a past.

    Of a short history the last quarter, and no more nights than the calibration holds.
    """
    apart, count = held_out(fleet.household_ids), len(fleet.nights)
    warm = min(detector.network.context_nights + BASE_RATE_NIGHTS, count * 3 // 4)
    nights = min(count - warm, -(-CALIBRATION_SIZE // int(apart.sum())))
    learnt = sorted(itertools.compress(fleet.household_ids, ~apart))
    recent = since(fleet, count - nights - WARMUP_NIGHTS).select_households(apart)
    calibrate_detector(detector, recent, nights, min_readings, learnt)


def nights_data(
    network: Network,
    fleet: Fleet,
    parameters: FitParameters,
    min_readings: int,
    parts: int = 1,
    team: TrainingProcesses = SINGLE_PROCESS,
) -> TrainingDataModule:
    """Split by household, and give the network the scales of what it will learn from.

    Raises:
        UserError: no household-night of either side has enough readings.
    """
    windows = FleetWindows(fleet, network.context_nights, min_readings)
    apart = held_out(fleet.household_ids)
    train = usable_places(fleet, ~apart, "to learn from", min_readings)
    validation = usable_places(fleet, apart, "held out", min_readings)
    network.fit_scales(windows.gather_windows(select_evenly(train, SCALE_ROWS)))
    return TrainingDataModule(
        windows, train, validation, parameters, accumulation_steps=parts, processes=team
    )


def everywhere(fleet: Fleet, min_readings: int) -> Tensor:
    """All household-nights `[N]` with enough readings, counted through the fleet's `[H, D]`."""
    return torch.from_numpy(np.flatnonzero(fleet.n_readings >= min_readings))


def usable_places(
    fleet: Fleet, households: NDArray[np.bool_], purpose: str, min_readings: int
) -> Tensor:
    """The household-nights `[N]` with enough readings, counted through the fleet's `[H, D]`.

    Raises:
        UserError: there is none among these households.
    """
    usable = (fleet.n_readings >= min_readings) & households[:, None]
    if not usable.any():
        first, last = fleet.nights[0], fleet.nights[-1]
        raise UserError(
            f"no household {purpose} has {min_readings} readings on a night {first} to {last}"
        )
    return torch.from_numpy(np.flatnonzero(usable))


def since(fleet: Fleet, start: int) -> Fleet:
    """The fleet's nights from place `start` on, all of them where it is negative."""
    return fleet.select_nights(max(start, 0))


def unseen(fleet: Fleet) -> Fleet:
    """The households of a fleet that no network learns from."""
    return fleet.select_households(held_out(fleet.household_ids))


def validation_error(detector: Detector, fleet: Fleet, nights: slice, min_readings: int) -> float:
    """Mean absolute error of the expected profile, in kWh a half-hour, over these nights."""
    judged = run_network(detector, fleet, nights, min_readings)
    deviation = np.abs(judged.expected_kwh - fleet.kwh[:, nights])
    usable = fleet.n_readings[:, nights] >= min_readings
    return float(np.nanmean(deviation[usable]))
