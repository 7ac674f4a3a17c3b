"""Training: nights split by time, the fit of a detector, and how good its expectation is."""

import logging
from dataclasses import dataclass
from datetime import date
from typing import Final

import lightning as L  # noqa: N812
import numpy as np
import torch

from ml.detector import Detector, DetectorConfig
from ml.errors import UserError
from ml.features import Fleet, Scaled, scaled
from ml.loop import (
    AutoencoderModule,
    Batch,
    FitParameters,
    NightsData,
    Precision,
    expected_warnings,
    make_loop,
    precision,
)
from ml.score import LEAD_NIGHTS, calibrate, reconstruct

HELD_OUT_NIGHTS: Final = 28
MIN_NIGHTS: Final = 28

# Lightning advertises and repeats itself at level INFO.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Split:
    """Three consecutive spans of a fleet's nights, in time order."""

    train: slice
    validation: slice
    calibration: slice


@dataclass(frozen=True)
class FitResult:
    """A calibrated detector with its best weights, and how it came about."""

    detector: Detector
    split: Split
    history: list[dict[str, float]]
    """One entry an epoch; errors in standard deviations of the scaled readings."""
    best_epoch: int
    seconds: float
    rows_per_second: float
    precision: Precision


def split_nights(nights: list[date]) -> Split:
    """Cut a history in time order: train, then validation, then calibration at its end.

    Validation and calibration take 28 nights each, and a quarter each of less than 112 nights.

    Raises:
        UserError: there are fewer than `MIN_NIGHTS`.
    """
    count = len(nights)
    if count < MIN_NIGHTS:
        held = f"{count} up to {nights[-1]}" if nights else "none"
        raise UserError(f"training needs {MIN_NIGHTS} nights or more, the lake holds {held}")
    part = min(HELD_OUT_NIGHTS, count // 4)
    first, second = count - 2 * part, count - part
    return Split(slice(0, first), slice(first, second), slice(second, count))


def fit(
    fleet: Fleet,
    parameters: FitParameters,
    min_readings: int,
    directory: str,
    *,
    resume: str | None = None,
    progress: bool = False,
) -> FitResult:
    """Train, restore the best weights, and calibrate on nights that training has not seen.

    Checkpoints go to `directory`; `resume` is the last one of a training that was stopped.

    Raises:
        UserError: too few nights, or no usable household-night among them.
    """
    split = split_nights(fleet.nights)
    L.seed_everything(parameters.seed, verbose=False)
    detector = Detector(DetectorConfig(model=parameters.model))
    data = nights_data(detector, fleet, split, parameters, min_readings)
    module = AutoencoderModule(detector.network, parameters)
    loop = make_loop(parameters, directory, progress=progress)
    with expected_warnings():
        loop.trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    best_epoch = module.restore(loop.checkpoints.best_model_path)
    recent = since(fleet, split.calibration.start - LEAD_NIGHTS)
    calibrate(detector, recent, split.calibration.stop - split.calibration.start, min_readings)
    seconds = loop.timer.time_elapsed()
    rows = data.train_dataloader().size * len(module.history)
    return FitResult(
        detector=detector.cpu().eval(),
        split=split,
        history=module.history,
        best_epoch=best_epoch,
        seconds=seconds,
        rows_per_second=rows / seconds,
        precision=precision(),
    )


def nights_data(
    detector: Detector, fleet: Fleet, split: Split, parameters: FitParameters, min_readings: int
) -> NightsData:
    """Give the detector the scales of the training nights and standardise by them."""
    units = scaled(fleet, min_readings)
    train = usable_rows(fleet, units, split.train, min_readings)
    validation = usable_rows(fleet, units, split.validation, min_readings)
    detector.fit_scales(*train)
    return NightsData(standardised(detector, train), standardised(detector, validation), parameters)


def usable_rows(fleet: Fleet, units: Scaled, part: slice, min_readings: int) -> Batch:
    """Scaled readings `[N, 48]` and conditions `[N, 15]` of the household-nights fit to learn from.

    Raises:
        UserError: no household-night of the part has enough readings.
    """
    usable = fleet.n_readings[:, part] >= min_readings
    if not usable.any():
        first, last = fleet.nights[part][0], fleet.nights[part][-1]
        raise UserError(f"no household has {min_readings} readings on a night {first} to {last}")
    x, conditions = units.x[:, part][usable], fleet.conditions[:, part][usable]
    return torch.from_numpy(x), torch.from_numpy(conditions)


def standardised(detector: Detector, rows: Batch) -> Batch:
    """Rows in the detector's scales; a missing half-hour stays NaN, so that no loss counts it."""
    x, conditions = detector.standardise(*rows)
    return torch.where(torch.isnan(rows[0]), torch.nan, x), conditions


def since(fleet: Fleet, start: int) -> Fleet:
    """The fleet's nights from place `start` on, all of them where it is negative."""
    part = slice(max(start, 0), None)
    return Fleet(
        fleet.household_ids, fleet.nights[part], fleet.kwh[:, part], fleet.conditions[:, part]
    )


def reporting(fleet: Fleet) -> Fleet:
    """The households with any reading, in the same order."""
    kept = np.isfinite(fleet.kwh).any(axis=(1, 2))
    ids = [fleet.household_ids[place] for place in np.flatnonzero(kept)]
    return Fleet(ids, fleet.nights, fleet.kwh[kept], fleet.conditions[kept])


def validation_error(detector: Detector, fleet: Fleet, nights: slice, min_readings: int) -> float:
    """Mean absolute error of the expected profile, in kWh a half-hour, over these nights."""
    units = scaled(fleet, min_readings)
    part = Scaled(units.x[:, nights], units.level_kwh[:, nights])
    expected, _ = reconstruct(detector, part, fleet.conditions[:, nights])
    deviation = np.abs(np.expm1(expected) * part.level_kwh[:, :, None] - fleet.kwh[:, nights])
    usable = fleet.n_readings[:, nights] >= min_readings
    return float(np.nanmean(deviation[usable]))
