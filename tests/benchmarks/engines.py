"""What scoring on each engine takes, and what it keeps of detection, on planted nights of a lake.

    METERWATCH_HOME=DIR .venv/bin/python -m tests.benchmarks.engines [--nights N] [--rows R]

Asks the champion of that home, on the last nights of households that it has not learned from. One
core each; the last column is the share of PyTorch's speed. Ends with a table in Markdown.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import mlflow
import numpy as np
import polars as pl
import torch
from cyclopts import App
from sklearn.metrics import average_precision_score

from ml.evaluation.inject import GroundTruth, inject_anomalies, repeat_households
from ml.export import measure_output_difference
from ml.fleet import Fleet
from ml.models.base import NetworkOutput, Windows
from ml.scoring.detector import Detector
from ml.scoring.tables import WARMUP_NIGHTS
from ml.training.split import (
    select_evenly,
    select_held_out_households,
    select_nights_from,
    usable_household_nights,
)
from ml.windows import FleetWindows
from tasks import paths, registry, storage
from tasks.fleet_loading import find_last_well_reported_night, load_fleet
from tasks.model_files import load_detector
from tasks.settings import get_settings
from tests.benchmarks.measure import as_markdown

N_COMPARED_NIGHTS: Final = 3000
N_ROUNDS: Final = 3

app = App(help="What scoring on each engine takes.")


@app.default
def main(nights: int = 28, rows: int = 136) -> None:
    """Plant `rows` copies of households over the last `nights`, and judge them by each engine."""
    torch.set_num_threads(1)
    least = get_settings().min_readings
    known = select_held_out_households(
        load_fleet(
            storage.read_night_range()[0], find_last_well_reported_night(), only_reporting=True
        )
    )
    recent = select_nights_from(known, len(known.nights) - nights - WARMUP_NIGHTS)
    last = slice(len(recent.nights) - nights, None)
    copies = repeat_households(
        np.arange(len(recent.household_ids)), -(-rows // len(recent.household_ids))
    )
    planted, truth = inject_anomalies(recent, copies, last, seed=0, min_readings=least)
    figures = pl.DataFrame(list(_measure_engines(planted, truth, last, _sample_windows(known))))
    with as_markdown():
        print(figures.with_columns(ratio=pl.col("a CPU second") / pl.first("a CPU second")))


def _sample_windows(fleet: Fleet) -> Windows:
    """Household-nights of all homes and seasons, in the shape that the champion takes."""
    least, champion = get_settings().min_readings, registry.load_champion()[0]
    windows = FleetWindows(
        fleet, champion.network.context_nights, least, peer_config=champion.config.peers
    )
    return windows.gather_windows(
        select_evenly(usable_household_nights(fleet, least), N_COMPARED_NIGHTS)
    )


def _measure_engines(
    fleet: Fleet, truth: GroundTruth, nights: slice, comparison_windows: Windows
) -> Iterator[dict[str, Any]]:
    least, exact = get_settings().min_readings, None
    for name, detector in _load_engines():
        exact = exact or detector.scoring_function
        score, seconds = _time_best_round(
            lambda by=detector: by.run_network(fleet, nights, least).log_odds
        )
        counts = truth.is_tested[:, nights] & np.isfinite(score)
        is_planted = truth.is_injected[:, nights][counts]
        yield {
            "engine": name,
            "nights": int(counts.sum()),
            "planted": int(is_planted.sum()),
            "AP": float(average_precision_score(is_planted, score[counts])),
            "a CPU second": counts.sum() / seconds,
            "largest difference": f"{measure_output_difference(exact, detector.scoring_function, comparison_windows):.1e}",
        }


def _load_engines() -> Iterator[tuple[str, Detector]]:
    directory = paths.model_dir(registry.load_champion()[1])
    yield "torch", load_detector(directory)
    mlflow.set_tracking_uri(registry.resolve_store_uri())
    graph = mlflow.pytorch.load_model("models:/meterwatch@champion")
    exported = load_detector(directory)
    exported.program = lambda windows: NetworkOutput(*graph(*windows))
    yield "torch.export", exported
    yield "onnx", load_detector(directory, "onnx")
    yield "int8", load_detector(directory, "int8")


def _time_best_round(function: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the CPU seconds of the fastest of some rounds."""
    took = []
    for _ in range(N_ROUNDS):
        started = time.process_time()
        given = function()
        took.append(time.process_time() - started)
    return given, min(took)


if __name__ == "__main__":
    app()
