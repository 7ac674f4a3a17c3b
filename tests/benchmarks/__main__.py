"""Times the product beside other tools, in one run.

    .venv/bin/python -m tests.benchmarks [SHARE...] [--out DIR]

A share is that of the London trial's 5,567 households, each over 626 nights: 1 is 161 million rows.
Writes a table, `speed.md`, and a picture of how cost grows, `growth.png`.
"""

import os
import shutil
import tempfile
from datetime import date
from pathlib import Path
from typing import Final

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from cyclopts import App

from ml.markdown import render_frame
from ml.simulation.environment import FleetConfig
from tasks.simulation import simulate
from tests.benchmarks import jobs
from tests.benchmarks.measure import (
    BenchmarkJob,
    measure_file_gb_s,
    measure_job,
    measure_matrix_gflop_s,
    measure_memory_gb_s,
)

TRIAL_CONFIG: Final = {"days": 626, "start": date(2012, 4, 1), "seed": 7}
TRIAL_HOUSEHOLDS: Final = 5567
MAX_PANDAS_SHARE: Final = 0.1
"""Largest share that pandas is given: it takes 4.8 GB for it, and ten times as much for all."""
ROWS_PER_CSV_FILE: Final = 1_000_000
BENCHMARK_ALERT_BUDGET: Final = "100"
"""False episodes per 1,000: the champion of two epochs has too few calibration nights for fewer."""

app = App(help="Time the product beside other tools.")


class BenchmarkRun:
    """Runs jobs and collects what they took."""

    def __init__(self, work_directory: Path) -> None:
        self.work_directory = work_directory
        self.results: list[dict[str, object]] = []

    def run_job(
        self,
        job_name: str,
        tool: str,
        share: float,
        n_items: int,
        job_function: BenchmarkJob,
        *paths: Path,
        gflop: float = 0.0,
    ) -> None:
        """Time a job on `paths`: a source and a METERWATCH_HOME, by default one of its own.

        `gflop` is the least number of operations that one item takes.
        """
        own_home = self.work_directory / f"{job_name} {tool} {share}"
        source = paths[0]
        home = paths[1] if len(paths) > 1 else own_home
        measured = measure_job(job_function, source, home)
        row = {
            "job": job_name,
            "tool": tool,
            "share": share,
            "size": n_items,
            "gflop": gflop * n_items,
        }
        self.results.append(row | measured._asdict())
        result = "" if measured.job_result is None else f", result {measured.job_result:,.3f}"
        print(
            f"{job_name}, {tool}, {n_items:,}: {measured.wall_s:.2f} s, "
            f"{measured.cpu_s:.2f} s of CPU, "
            f"{measured.peak_gb:.2f} GB at most, {measured.read_gb:.2f} GB read{result}",
            flush=True,
        )

    def build_table(self) -> pl.DataFrame:
        """Return all measurements, with ours over theirs and the share of the machine's limit.

        The limit is the time to read what is read from the disk cache, or to multiply what is
        multiplied, whichever is longer.
        """
        table = pl.DataFrame(self.results)
        ours = table.filter(tool="ours").select("job", "share", ours_s="wall_s")
        joined = table.join(ours, on=("job", "share"), how="left", maintain_order="left")
        read_s = pl.col("read_gb") / measure_file_gb_s(self.work_directory)
        multiply_s = pl.col("gflop") / measure_matrix_gflop_s()
        limit_s = pl.max_horizontal(read_s, multiply_s)
        return joined.with_columns(
            ratio=pl.col("ours_s") / pl.col("wall_s"),
            limit_s=limit_s,
            of_limit=limit_s / pl.col("wall_s"),
        ).drop("ours_s", "gflop")


@app.default
def main(*shares: float, out: Path = Path("data/speed")) -> None:
    """Run every benchmark at each share of the trial (default: 0.01 0.1 1)."""
    os.environ["METERWATCH_ALERT_BUDGET"] = BENCHMARK_ALERT_BUDGET
    sizes = sorted(shares or (0.01, 0.1, 1.0))
    with tempfile.TemporaryDirectory() as scratch:
        bench = BenchmarkRun(Path(scratch))
        for share in sizes:
            _benchmark_ingest(bench, share)
        _benchmark_scoring(bench, sizes)
        _benchmark_other_tools(bench, sizes[-1])
    out.mkdir(parents=True, exist_ok=True)
    table = bench.build_table()
    report = f"{render_frame(table)}\n\n{_describe_limits(table)}\n"
    (out / "speed.md").write_text(report)
    _draw_growth(table, out / "growth.png")
    print(f"\n{report}\nwritten to {out}")


def _benchmark_ingest(run: BenchmarkRun, share: float) -> None:
    """Time the ingest of a simulated fleet, from Parquet and from CSV."""
    source = run.work_directory / f"fleet {share}"
    receipt = simulate(
        source, FleetConfig(households=round(TRIAL_HOUSEHOLDS * share), **TRIAL_CONFIG)
    )
    rows = source / "halfhourly"
    for path in rows.glob("*.csv"):
        path.unlink()
    run.run_job(
        "ingest", "ours", share, receipt.n_rows, jobs.ingest_ours, rows, _home_directory(run, share)
    )
    run.run_job("ingest", "DuckDB", share, receipt.n_rows, jobs.ingest_duckdb, rows)
    if share <= MAX_PANDAS_SHARE:
        run.run_job("ingest", "pandas", share, receipt.n_rows, jobs.ingest_pandas, rows)
    as_csv = _convert_to_csv(rows)
    run.run_job("ingest CSV", "ours", share, receipt.n_rows, jobs.ingest_ours, as_csv)
    run.run_job(
        "ingest CSV", "Polars, as it is", share, receipt.n_rows, jobs.convert_csv_polars, as_csv
    )
    shutil.rmtree(as_csv)


def _convert_to_csv(readings_directory: Path) -> Path:
    """Write the same rows as CSV files of a million each; return their directory."""
    out = readings_directory.with_name("csv")
    out.mkdir()
    stamp = "%Y-%m-%d %H:%M:%S.0000000"
    batches = pl.scan_parquet(readings_directory / "*.parquet").collect_batches(
        chunk_size=ROWS_PER_CSV_FILE, lazy=True
    )
    for number, part in enumerate(batches):
        part.write_csv(out / f"{number:03d}.csv", datetime_format=stamp)
    return out


def _benchmark_scoring(run: BenchmarkRun, shares: list[float]) -> None:
    """Time the scoring of nights, with a champion trained on the smallest share of the trial."""
    trained = run.work_directory / "champion"
    run.run_job(
        "train the champion, 2 epochs", "ours", shares[0], 2 << 17, jobs.train_champion,
        run.work_directory / f"fleet {shares[0]}/halfhourly", trained,
    )  # fmt: skip
    gflop_per_night = jobs.count_inference_gflop()
    for share in shares:
        home = _home_directory(run, share)
        n_households = round(TRIAL_HOUSEHOLDS * share)
        for store in ("mlflow", "models"):
            shutil.copytree(trained / store, home / store)
        for title, nights, job, gflop in (
            ("features of 112 nights", 112, jobs.load_features, 0.0),
            ("first night", 57, jobs.score_first_night, gflop_per_night),
            ("next night", 1, jobs.score_next_night, gflop_per_night),
            ("14 nights", 14, jobs.score_fortnight, gflop_per_night),
        ):
            run.run_job(title, "ours", share, nights * n_households, job, home, home, gflop=gflop)


def _benchmark_other_tools(run: BenchmarkRun, share: float) -> None:
    """Time other tools on the largest share: scoring, training, and queries over 850 nights."""
    home = _home_directory(run, share)
    n_households = round(TRIAL_HOUSEHOLDS * share)
    training_gflop = jobs.N_EPOCHS * jobs.count_training_gflop()
    for title, tool, size, job, gflop in (
        ("next night", "a household at a time", n_households, jobs.score_seed_model, 0.0),
        ("next night", "PyOD ECOD", n_households, jobs.score_ecod, 0.0),
        ("next night", "PyOD kNN", n_households, jobs.score_knn, 0.0),
        ("train the seed's", "ours", 60 * n_households, jobs.train_ours, training_gflop),
        (
            "train the seed's",
            "data loader",
            60 * n_households,
            jobs.train_seed_loop,
            training_gflop,
        ),
        (
            "train the seed's",
            "plain loop",
            60 * n_households,
            jobs.train_plain_loop,
            training_gflop,
        ),
        ("fill 850 nights", "ours", 850 * n_households, jobs.fill_tables, 0.0),
        ("every query", "ours", 850 * n_households, jobs.run_every_query, 0.0),
    ):
        run.run_job(title, tool, share, size, job, home, home, gflop=gflop)


def _home_directory(run: BenchmarkRun, share: float) -> Path:
    return run.work_directory / f"home {share}"


def _describe_limits(table: pl.DataFrame) -> str:
    """Return in words what the machine could do at most, and how the time of an ingest grows."""
    text = (
        f"A core copies {measure_memory_gb_s():.1f} GB/s; "
        f"matrices: {measure_matrix_gflop_s():.0f} GFLOP/s. "
    )
    large = table.filter(pl.col("share") >= MAX_PANDAS_SHARE, job="ingest", tool="ours").sort(
        "size"
    )
    if large.height > 1:
        log_rows = np.log(large["size"].to_numpy())
        log_seconds = np.log(large["wall_s"].to_numpy())
        text += f"Ingest grows as rows to the power {np.polyfit(log_rows, log_seconds, 1)[0]:.2f}."
    return text


def _draw_growth(table: pl.DataFrame, path: Path) -> None:
    """Draw wall time and peak memory over the number of rows, of all tools that ingest."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for panel, column, label in zip(
        panels, ("wall_s", "peak_gb"), ("wall time, s", "peak memory, GB"), strict=True
    ):
        ingests = table.filter(pl.col("job").str.starts_with("ingest"))
        for (job, tool), rows in ingests.group_by("job", "tool", maintain_order=True):
            style = "-o" if tool == "ours" else "--o"
            panel.plot(rows["size"], rows[column], style, label=f"{job}, {tool}")
        panel.set(xscale="log", yscale="log", xlabel="rows", ylabel=label)
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    app()
