"""Times a job in a process of its own, and measures what the machine could do at most."""

import multiprocessing as mp
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

BenchmarkJob = Callable[[Path, Path], float | None]
"""Works on a source in a scratch directory; what it returns is printed beside its time."""


class JobMeasurements(NamedTuple):
    """What a job took, without its imports."""

    wall_s: float
    cpu_s: float
    peak_gb: float
    read_gb: float
    job_result: float | None


def measure_job(job: BenchmarkJob, source: Path, scratch: Path) -> JobMeasurements:
    """Run a job in a fresh process and return what it took; its threads are not limited.

    Raises:
        RuntimeError: the job failed; its traceback is on standard error.
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
    read_before_gb = _read_gb()
    wall_start = time.perf_counter()
    cpu_start = time.process_time()
    job_result = job(source, scratch)
    wall_s = time.perf_counter() - wall_start
    cpu_s = time.process_time() - cpu_start
    read_gb = _read_gb() - read_before_gb
    results.put(JobMeasurements(wall_s, cpu_s, _peak_memory_gb(), read_gb, job_result))


def _read_gb() -> float:
    """Return what this process has asked the kernel for so far, from the disk or its cache."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"]) / 1e9


def _peak_memory_gb() -> float:
    """Return the peak resident memory of this process; `getrusage` may return its parent's."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1e6


def measure_memory_gb_s(size_gb: float = 0.5) -> float:
    """Return GB/s that a core reads and writes when it copies, the best of three."""
    source = np.ones(int(size_gb * 1e9 / 8))
    target = np.empty_like(source)
    # The kernel gives memory page by page when it is first written to.
    target[:] = 0
    return max(
        2 * source.nbytes / 1e9 / _time_call(lambda: np.copyto(target, source)) for _ in "123"
    )


def measure_file_gb_s(directory: Path, size_gb: float = 0.5) -> float:
    """Return GB/s that a core reads of a file that is in the disk cache, the best of three."""
    path = directory / "rate"
    path.write_bytes(bytes(int(size_gb * 1e9)))
    seconds = min(_time_call(path.read_bytes) for _ in "123")
    path.unlink()
    return size_gb / seconds


def measure_matrix_gflop_s(size: int = 2048) -> float:
    """Return GFLOP/s of a square matrix product in single precision on all cores."""
    matrix = np.ones((size, size), dtype=np.float32)
    return max(2 * size**3 / 1e9 / _time_call(lambda: matrix @ matrix) for _ in "123")


def _time_call(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
