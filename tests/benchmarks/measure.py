"""Time a job in a process of its own, and what the machine could do at most."""

import multiprocessing as mp
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

BenchmarkJob = Callable[[Path, Path], float | None]
"""Works on a source in a scratch directory; what it returns is told beside its time."""


class JobMeasurements(NamedTuple):
    """What a job took, imports apart."""

    wall_s: float
    cpu_s: float
    peak_gb: float
    read_gb: float
    job_result: float | None


def measure_job(job: BenchmarkJob, source: Path, scratch: Path) -> JobMeasurements:
    """Run a job in a fresh process, as many threads as it likes.

    Raises:
        RuntimeError: the job failed; it has said why.
    """
    spawn = mp.get_context("spawn")
    results: mp.SimpleQueue[JobMeasurements] = spawn.SimpleQueue()
    process = spawn.Process(target=_run_measured, args=(job, source, scratch, results))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{job.__name__} failed")
    return results.get()


def _run_measured(
    job: BenchmarkJob, source: Path, scratch: Path, results: "mp.SimpleQueue[JobMeasurements]"
) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ["METERWATCH_HOME"] = str(scratch)
    wall, cpu, read = time.perf_counter(), time.process_time(), _read_gb()
    told = job(source, scratch)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    results.put(JobMeasurements(wall, cpu, _peak_memory_gb(), _read_gb() - read, told))


def _read_gb() -> float:
    """Bytes that this process has asked the kernel for, from the disk or its cache."""
    counted = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counted["rchar"]) / 1e9


def _peak_memory_gb() -> float:
    """Most memory of this process; what `getrusage` says may be its parent's."""
    said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(said["VmHWM"].split()[0]) / 1e6


def measure_memory_gb_s(size_gb: float = 0.5) -> float:
    """How much a core reads and writes when it copies, the best of three."""
    source = np.ones(int(size_gb * 1e9 / 8))
    target = np.empty_like(source)
    target[:] = 0  # so that no page is new
    return max(
        2 * source.nbytes / 1e9 / _time_call(lambda: np.copyto(target, source)) for _ in "123"
    )


def measure_file_gb_s(directory: Path, size_gb: float = 0.5) -> float:
    """How much of a file that was just written a core reads, the best of three."""
    path = directory / "rate"
    path.write_bytes(bytes(int(size_gb * 1e9)))
    seconds = min(_time_call(path.read_bytes) for _ in "123")
    path.unlink()
    return size_gb / seconds


def measure_matrix_gflop_s(size: int = 2048) -> float:
    """Operations of a square matrix product in single precision on all cores."""
    matrix = np.ones((size, size), dtype=np.float32)
    return max(2 * size**3 / 1e9 / _time_call(lambda: matrix @ matrix) for _ in "123")


def as_markdown() -> pl.Config:
    """A context in which frames print as Markdown tables."""
    return pl.Config(
        tbl_formatting="MARKDOWN",
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=200,
        fmt_str_lengths=60,
        float_precision=3,
        thousands_separator=True,
    )


def _time_call(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
