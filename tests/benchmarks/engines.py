"""Measures what scoring on each engine costs, and its average precision on injected nights.

    METERWATCH_HOME=DIR .venv/bin/python -m tests.benchmarks.engines [--nights N] [--rows R]

Scores with the champion of METERWATCH_HOME, on the last nights of its held-out households, on one
core; the last column is the share of PyTorch's speed. Prints a table in Markdown.
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
from ml.markdown import render_frame
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

N_COMPARED_NIGHTS: Final = 3000
"""Household-nights on which the outputs of engines are compared."""
N_ROUNDS: Final = 3
"""Rounds of which the fastest counts: others may have shared the cores."""

app = App(help="Measure what scoring on each engine costs.")


@app.default
def main(nights: int = 28, rows: int = 136) -> None:
    """Inject into `rows` copies of households over the last `nights`, and score by each engine."""
    torch.set_num_threads(1)
    min_readings = get_settings().min_readings
    held_out = select_held_out_households(
        load_fleet(
            storage.read_night_range()[0], find_last_well_reported_night(), only_reporting=True
        )
    )
    recent = select_nights_from(held_out, len(held_out.nights) - nights - WARMUP_NIGHTS)
    last_nights = slice(len(recent.nights) - nights, None)
    n_households = len(recent.household_ids)
    copies = repeat_households(np.arange(n_households), -(-rows // n_households))
    injected, truth = inject_anomalies(
        recent, copies, last_nights, seed=0, min_readings=min_readings
    )
    comparison_windows = _sample_windows(held_out)
    table = pl.DataFrame(list(_measure_engines(injected, truth, last_nights, comparison_windows)))
    speed = pl.col("nights per CPU second")
    print(render_frame(table.with_columns(ratio=speed / speed.first())))


def _sample_windows(fleet: Fleet) -> Windows:
    """Return household-nights of all households and seasons, as the champion takes them."""
    min_readings = get_settings().min_readings
    champion, _ = registry.load_champion()
    windows = FleetWindows(
        fleet, champion.network.context_nights, min_readings, peer_config=champion.config.peers
    )
    return windows.gather_windows(
        select_evenly(usable_household_nights(fleet, min_readings), N_COMPARED_NIGHTS)
    )


def _measure_engines(
    fleet: Fleet, truth: GroundTruth, nights: slice, comparison_windows: Windows
) -> Iterator[dict[str, Any]]:
    """Yield a row for each engine; the first, PyTorch, is what the others are compared with."""
    min_readings = get_settings().min_readings
    exact = None
    for name, detector in _load_engines():
        exact = exact or detector.scoring_function
        score, seconds = _time_best_round(
            lambda scored_by=detector: scored_by.run_network(fleet, nights, min_readings).log_odds
        )
        is_scored = truth.is_tested[:, nights] & np.isfinite(score)
        is_injected = truth.is_injected[:, nights][is_scored]
        difference = measure_output_difference(exact, detector.scoring_function, comparison_windows)
        yield {
            "engine": name,
            "nights": int(is_scored.sum()),
            "injected": int(is_injected.sum()),
            "AP": float(average_precision_score(is_injected, score[is_scored])),
            "nights per CPU second": float(is_scored.sum() / seconds),
            "largest difference": f"{difference:.1e}",
        }


def _load_engines() -> Iterator[tuple[str, Detector]]:
    """Yield the champion as each engine runs it."""
    directory = paths.model_dir(registry.load_champion()[1])
    yield "torch", load_detector(directory)
    mlflow.set_tracking_uri(registry.resolve_store_uri())
    graph = mlflow.pytorch.load_model("models:/meterwatch@champion")
    exported = load_detector(directory)
    exported.exported_program = lambda windows: NetworkOutput(*graph(*windows))
    yield "torch.export", exported
    yield "onnx", load_detector(directory, "onnx")
    yield "int8", load_detector(directory, "int8")


def _time_best_round(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return the function's result, and the CPU seconds of its fastest round."""
    seconds = []
    for _ in range(N_ROUNDS):
        started = time.process_time()
        result = function()
        seconds.append(time.process_time() - started)
    return result, min(seconds)


if __name__ == "__main__":
    app()
