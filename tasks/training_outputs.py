"""Writes and measures what a version is judged by: pictures, speed, the ONNX program's error."""

from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from ml.errors import UserError
from ml.export import measure_output_difference
from ml.fleet import Fleet
from ml.plots import household_nights
from ml.plots import training as training_plots
from ml.scoring.detector import Detector
from ml.scoring.tables import WARMUP_NIGHTS, score_fleet
from ml.training.fit import (
    FitResult,
)
from ml.training.latent_plane import compute_latent_plane
from ml.training.speed import measure_training_speed
from ml.training.split import (
    select_evenly,
    select_nights_from,
    usable_household_nights,
)
from ml.windows import FleetWindows
from tasks.model_files import load_detector
from tasks.settings import Settings

PLOTTED_HOUSEHOLDS: Final = 100
"""Held-out households from which the dozen example nights are taken. Chosen: few to score, and a
thousand nights and more to take them from."""
PICTURE_DPI: Final = 110
"""Dots per inch of the pictures that MLflow shows, as of the benchmark's."""
ONNX_CHECK_SIZE: Final = 512
"""Household-nights on which the ONNX program is compared with its network. Chosen: several batches,
of every part of the lake's time."""


def measure_detector_speed(detector: Detector, fleet: Fleet, min_readings: int) -> pl.DataFrame:
    """Return `measure_training_speed` of a detector's network on the fleet's household-nights."""
    windows = FleetWindows(fleet, detector.network.context_nights, min_readings)
    indices = usable_household_nights(fleet, min_readings)
    return measure_training_speed(detector.network, windows, indices)


def save_training_figures(
    result: FitResult,
    held_out_fleet: Fleet,
    speed_table: pl.DataFrame,
    directory: Path,
    settings: Settings,
) -> None:
    """Write the pictures of a training, and the table behind the one of its speed."""
    detector = result.detector
    alert_threshold = _find_alert_threshold(detector, settings.alert_budget)
    examples = _select_examples(result, held_out_fleet, alert_threshold, settings.min_readings)
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


def _select_examples(
    result: FitResult, held_out_fleet: Fleet, alert_threshold: float | None, min_readings: int
) -> list[household_nights.ProfileExample]:
    """Return example nights of the calibration nights, from the most urgent to ordinary ones."""
    detector = result.detector
    recent = select_nights_from(
        held_out_fleet.select_households(slice(PLOTTED_HOUSEHOLDS)),
        result.calibration_nights.start - WARMUP_NIGHTS,
    )
    n_nights = result.calibration_nights.stop - result.calibration_nights.start
    first_night = len(recent.nights) - n_nights
    scores = score_fleet(detector, recent, min_readings)
    alert_p_value = detector.calibration.alert_p_values(scores.p_value, scores.evidence)
    # The nights before lack their warm-up.
    alert_p_value[:, :first_night] = np.nan
    return household_nights.select_examples(
        recent,
        scores,
        alert_p_value,
        alert_p_value <= (alert_threshold or 0.0),
        min_readings=min_readings,
        reason_config=detector.config.reasons,
    )


def _find_alert_threshold(detector: Detector, alert_budget: float) -> float | None:
    """Return the alert p-value that flags, None where the calibration cannot hold the budget."""
    try:
        return detector.calibration.alert_threshold(alert_budget)
    except UserError:
        return None


def flatten_speed_metrics(speed_table: pl.DataFrame) -> dict[str, float]:
    """Return the measured values of training steps by `name/precision/batch size`."""
    values = speed_table.unpivot(index=["precision", "batch_size"]).drop_nulls("value")
    return {
        f"{name}/{precision}/{batch_size}": value
        for precision, batch_size, name, value in values.iter_rows()
    }


def measure_onnx_difference(directory: Path, fleet: Fleet, min_readings: int) -> float:
    """Return the largest difference between the ONNX program and the network as it scores.

    Of any output, on household-nights spread over the fleet.
    """
    detector = load_detector(directory)
    exported = load_detector(directory, "onnx")
    indices = select_evenly(usable_household_nights(fleet, min_readings), ONNX_CHECK_SIZE)
    windows = FleetWindows(
        fleet, detector.network.context_nights, min_readings, peer_config=detector.config.peers
    ).gather_windows(indices)
    return measure_output_difference(detector.scoring_function, exported.scoring_function, windows)
