"""Time ingest and scoring beside a peer that does the same work in the same run.

    .venv/bin/python -m tests.benchmarks.speed [HOUSEHOLDS] [DAYS]

Ingest's peer is the same job in DuckDB SQL without its quarantine; scoring's is the seed's way, the
same network called for a household at a time. Peak memory is that of a process of its own.
"""

import multiprocessing as mp
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table

from flows.ingest import ingest
from ml.detector import Detector, DetectorConfig
from ml.features import CONDITIONS, Fleet
from ml.score import LEAD_NIGHTS, score_nights
from ml.simulate.surroundings import FleetConfig
from ml.windows import FleetWindows
from tasks.simulate import simulate

DUCKDB_JOB = """
    COPY (
        WITH kept AS (
            SELECT LCLid AS household_id, tstp, any_value("energy(kWh/hh)")::FLOAT AS kwh
            FROM '{source}/halfhourly/*.parquet'
            WHERE "energy(kWh/hh)" BETWEEN 0 AND 12
                AND extract('minute' FROM tstp) % 30 = 0 AND extract('second' FROM tstp) = 0
            GROUP BY ALL
        )
        SELECT household_id, tstp::DATE AS night, map_from_entries(list((tstp, kwh))) AS kwh
        FROM kept GROUP BY ALL
    ) TO '{out}' (FORMAT parquet, COMPRESSION zstd)
"""


Job = Callable[[Path, Path], None]
Figures = tuple[float, float, float]


def ingest_ours(source: Path, scratch: Path) -> None:
    os.environ["METERWATCH_HOME"] = str(scratch / "home")
    ingest.fn([str(source / "halfhourly")])


def ingest_duckdb(source: Path, scratch: Path) -> None:
    duckdb.execute("SET enable_progress_bar = false")
    duckdb.execute(DUCKDB_JOB.format(source=source, out=scratch / "days.parquet"))


def score_ours(source: Path, scratch: Path) -> None:
    detector, fleet = _night(source)
    score_nights(
        detector,
        fleet,
        fleet.nights[LEAD_NIGHTS],
        min_readings=36,
        alert_budget=3.0,
        model_version="0",
    )


def score_seed(source: Path, scratch: Path) -> None:
    detector, fleet = _night(source)
    windows = FleetWindows(fleet, 0, 36)
    with torch.inference_mode():
        for place in torch.arange(LEAD_NIGHTS, fleet.kwh[..., 0].size, len(fleet.nights)):
            detector.network(windows.take(place[None])).score.item()


def _night(source: Path) -> tuple[Detector, Fleet]:
    households = len(pl.read_csv(source / "informations_households.csv"))
    kwh = np.random.default_rng(0).gamma(1, 0.2, (households, LEAD_NIGHTS + 1, 48))
    nights = [date.fromordinal(734_000 + i) for i in range(LEAD_NIGHTS + 1)]
    known = np.zeros((households, LEAD_NIGHTS + 1, len(CONDITIONS)), dtype=np.float32)
    ids = [f"MAC{i:06d}" for i in range(households)]
    detector = Detector(DetectorConfig(model="conditional_autoencoder"))
    detector.fit_calibration(torch.rand(100_000) * 5)
    return detector, Fleet(ids, nights, kwh.astype(np.float32), known)


def _measured(job: Job, source: Path, results: "mp.SimpleQueue[Figures]") -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        started, cpu = time.perf_counter(), time.process_time()
        job(source, Path(scratch))
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    results.put((wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6))


def measure(job: Job, source: Path) -> Figures:
    """Wall and CPU seconds after imports, and peak gigabytes of a job in a fresh process."""
    spawn = mp.get_context("spawn")
    results: mp.SimpleQueue[Figures] = spawn.SimpleQueue()
    process = spawn.Process(target=_measured, args=(job, source, results))
    process.start()
    process.join()
    return results.get()


def main(households: int, days: int) -> None:
    """Print each job beside its peer."""
    table = Table(
        "job", "peer", "wall s", "peer s", "ratio", "cpu s", "peer cpu s", "GB", "peer GB"
    )
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "fleet"
        receipt = simulate(source, FleetConfig(households=households, days=days))
        for title, ours, peer, theirs in (
            (f"ingest {receipt.rows:,} rows", ingest_ours, "DuckDB SQL", ingest_duckdb),
            (f"score a night of {households:,}", score_ours, "a home at a time", score_seed),
        ):
            (wall, cpu, peak), (wall_2, cpu_2, peak_2) = (
                measure(ours, source),
                measure(theirs, source),
            )
            figures = (wall, wall_2, wall / wall_2, cpu, cpu_2, peak, peak_2)
            table.add_row(title, peer, *(f"{figure:.2f}" for figure in figures))
    Console(width=120).print(table)


if __name__ == "__main__":
    main(*(map(int, sys.argv[1:]) if sys.argv[1:] else (5567, 60)))
