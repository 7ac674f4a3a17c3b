"""Time everything beside its peers, in one run.

    .venv/bin/python -m tests.benchmarks [SHARE...] [--out DIR]

A share is that of the real trial's 5,567 households, each over 626 nights: 1 is 161 million rows.
Ends with a table, `speed.md`, and a picture of how cost grows, `growth.png`.
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

from ml.simulation.environment import FleetConfig
from tasks.simulation import simulate
from tests.benchmarks import jobs
from tests.benchmarks.measure import (
    BenchmarkJob,
    as_markdown,
    measure_file_gb_s,
    measure_job,
    measure_matrix_gflop_s,
    measure_memory_gb_s,
)

TRIAL_CONFIG: Final = {"days": 626, "start": date(2012, 4, 1), "seed": 7}
TRIAL_HOUSEHOLDS: Final = 5567
MAX_PANDAS_SHARE: Final = 0.1
"""pandas takes 4.8 GB for it, and ten times as much for all."""
ROWS_PER_CSV_FILE: Final = 1_000_000

app = App(help="Time everything beside its peers.")


class BenchmarkRun:
    """Runs jobs and keeps their figures."""

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
        """Time a job on a source and a home (by default one of its own) and keep the figures.

        `gflop` are the operations that one of `size` takes at the least.
        """
        source, home = (*paths, self.work_directory / f"{job_name} {tool} {share}")[:2]
        figures = measure_job(job_function, source, home)
        row = {
            "job": job_name,
            "who": tool,
            "share": share,
            "size": n_items,
            "gflop": gflop * n_items,
        }
        self.results.append(row | figures._asdict())
        told = "" if figures.job_result is None else f", told {figures.job_result:,.3f}"
        print(
            f"{job_name}, {tool}, {n_items:,}: {figures.wall_s:.2f} s, {figures.cpu_s:.2f} s of CPU, "
            f"{figures.peak_gb:.2f} GB at most, {figures.read_gb:.2f} GB read{told}",
            flush=True,
        )

    def build_table(self) -> pl.DataFrame:
        """All figures, with the ratio to ours of the same size and the share of the limit reached.

        The limit: to read what is read from memory, and to multiply what is multiplied.
        """
        table = pl.DataFrame(self.results)
        ours = table.filter(who="ours").select("job", "share", ours_s="wall_s")
        joined = table.join(ours, on=("job", "share"), how="left", maintain_order="left")
        read_s = pl.col("read_gb") / measure_file_gb_s(self.work_directory)
        multiply_s = pl.col("gflop") / measure_matrix_gflop_s()
        return joined.with_columns(
            ratio=pl.col("ours_s") / pl.col("wall_s"),
            limit_s=(limit_s := pl.max_horizontal(read_s, multiply_s)),
            of_limit=limit_s / pl.col("wall_s"),
        ).drop("ours_s", "gflop")


@app.default
def main(*shares: float, out: Path = Path("data/speed")) -> None:
    """Run every benchmark at each share of the trial (default: 0.01 0.1 1)."""
    os.environ["METERWATCH_ALERT_BUDGET"] = "100"
    sizes = sorted(shares or (0.01, 0.1, 1.0))
    with tempfile.TemporaryDirectory() as scratch:
        bench = BenchmarkRun(Path(scratch))
        for share in sizes:
            _benchmark_ingest(bench, share)
        _benchmark_scoring(bench, sizes)
        _benchmark_other_tools(bench, sizes[-1])
    out.mkdir(parents=True, exist_ok=True)
    table = bench.build_table()
    with as_markdown():
        said = f"{table}\n\n{_describe_limits(table)}\n"
    (out / "speed.md").write_text(said)
    _draw_growth(table, out / "growth.png")
    print(f"\n{said}\nwritten to {out}")


def _benchmark_ingest(run: BenchmarkRun, share: float) -> None:
    """Rows into the lake, from Parquet and from CSV."""
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
    """The same rows as CSV files of a million."""
    out = readings_directory.with_name("csv")
    out.mkdir()
    stamp = "%Y-%m-%d %H:%M:%S.0000000"
    every = pl.scan_parquet(readings_directory / "*.parquet").collect_batches(
        chunk_size=ROWS_PER_CSV_FILE, lazy=True
    )
    for number, part in enumerate(every):
        part.write_csv(out / f"{number:03d}.csv", datetime_format=stamp)
    return out


def _benchmark_scoring(run: BenchmarkRun, shares: list[float]) -> None:
    """Nights with a champion that was trained on the least share of the trial."""
    trained = run.work_directory / "champion"
    run.run_job(
        "train the champion, 2 epochs", "ours", shares[0], 2 << 17, jobs.train_champion,
        run.work_directory / f"fleet {shares[0]}/halfhourly", trained,
    )  # fmt: skip
    each = jobs.count_inference_gflop()
    for share in shares:
        home, homes = _home_directory(run, share), round(TRIAL_HOUSEHOLDS * share)
        for store in ("mlflow", "models"):
            shutil.copytree(trained / store, home / store)
        for title, nights, job, gflop in (
            ("features of 112 nights", 112, jobs.load_features, 0.0),
            ("first night", 57, jobs.score_first_night, each),
            ("next night", 1, jobs.score_next_night, each),
            ("14 nights", 14, jobs.score_fortnight, each),
        ):
            run.run_job(title, "ours", share, nights * homes, job, home, home, gflop=gflop)


def _benchmark_other_tools(run: BenchmarkRun, share: float) -> None:
    """Peers of the largest share: scoring, training, and questions over 850 nights."""
    home, homes = _home_directory(run, share), round(TRIAL_HOUSEHOLDS * share)
    learned = jobs.N_EPOCHS * jobs.count_training_gflop()
    for title, who, size, job, gflop in (
        ("next night", "a home at a time", homes, jobs.score_seed_model, 0.0),
        ("next night", "PyOD ECOD", homes, jobs.score_ecod, 0.0),
        ("next night", "PyOD kNN", homes, jobs.score_knn, 0.0),
        ("train the seed's", "ours", 60 * homes, jobs.train_ours, learned),
        ("train the seed's", "data loader", 60 * homes, jobs.train_seed_loop, learned),
        ("train the seed's", "plain loop", 60 * homes, jobs.train_plain_loop, learned),
        ("fill 850 nights", "ours", 850 * homes, jobs.fill_tables, 0.0),
        ("every query", "ours", 850 * homes, jobs.run_every_query, 0.0),
    ):
        run.run_job(title, who, share, size, job, home, home, gflop=gflop)


def _home_directory(run: BenchmarkRun, share: float) -> Path:
    return run.work_directory / f"home {share}"


def _describe_limits(table: pl.DataFrame) -> str:
    """What the machine could do at most, and how an ingest grows."""
    said = f"A core copies {measure_memory_gb_s():.1f} GB/s; matrices: {measure_matrix_gflop_s():.0f} GFLOP/s. "
    large = table.filter(pl.col("share") >= MAX_PANDAS_SHARE, job="ingest", who="ours").sort("size")
    if large.height > 1:
        (rows, seconds) = (np.log(large[name].to_numpy()) for name in ("size", "wall_s"))
        said += f"Ingest grows as rows to the power {np.polyfit(rows, seconds, 1)[0]:.2f}."
    return said


def _draw_growth(table: pl.DataFrame, path: Path) -> None:
    """Wall time and peak memory over the number of rows, ours and the peers'."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for panel, column, label in zip(
        panels, ("wall_s", "peak_gb"), ("wall time, s", "peak memory, GB"), strict=True
    ):
        of_ingest = table.filter(pl.col("job").str.starts_with("ingest"))
        for (job, who), rows in of_ingest.group_by("job", "who", maintain_order=True):
            style = "-o" if who == "ours" else "--o"
            panel.plot(rows["size"], rows[column], style, label=f"{job}, {who}")
        panel.set(xscale="log", yscale="log", xlabel="rows", ylabel=label)
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    app()
