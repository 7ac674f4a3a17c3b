"""`meterwatch evaluate`: from a lake to a table, pictures and runs."""

from pathlib import Path

import mlflow
import polars as pl
import pytest

from flows.cli import main
from ml.evaluation import benchmark as benchmark_module
from ml.evaluation.benchmark import resolve_detectors
from ml.evaluation.report import FLAG_COLUMNS
from tasks import paths, registry
from tasks.evaluation import EvaluateParameters, run_benchmark
from tests import fleets
from tests.lake_fixtures import copy_mlflow_database, write_lake

HOUSEHOLDS, NIGHTS = 24, 130


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A METERWATCH_HOME with one benchmark of the rules and a network."""
    home = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("METERWATCH_HOME", str(home))
        # So few calibration nights can only tell thresholds of a high budget.
        environment.setenv("METERWATCH_ALERT_BUDGET", "100")
        environment.setattr(benchmark_module, "TARGET_ROWS", 40)
        copy_mlflow_database(empty_store)
        write_lake(fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS))
        names = ("rules", "conditional_autoencoder")
        run_benchmark(EvaluateParameters(detectors=names, seed=1))
    return home


@pytest.fixture
def directory(benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the benchmark wrote, with its METERWATCH_HOME in use."""
    monkeypatch.setenv("METERWATCH_HOME", str(benchmark))
    (found,) = (benchmark / "benchmark").iterdir()
    return found


def test_every_detector_has_all_metrics_for_training_and_held_out_households(
    directory: Path,
) -> None:
    table = pl.read_parquet(directory / "figures.parquet")
    names = {*resolve_detectors(["rules"]), "conditional_autoencoder"}
    names |= {f"conditional_autoencoder {kind}" for kind in ("evidence", "one-sided")}
    assert set(table["detector"]) == names
    keys = ("households", "metric", "subset")
    of_flags = pl.col("metric").is_in(FLAG_COLUMNS)
    (per_detector,) = set(table.filter(~of_flags).group_by("detector").len()["len"])
    assert table.select("detector", *keys).is_unique().all()
    assert per_detector == table.filter(~of_flags).select(keys).n_unique()
    assert set(table["households"]) == {"held_out", "training"}
    bounded = table.filter(pl.col("low").is_finite() & pl.col("value").is_finite())
    assert bounded.select((pl.col("low") <= pl.col("high")).all()).item()


def test_only_the_calibrated_detector_has_metrics_of_flags(directory: Path) -> None:
    table = pl.read_parquet(directory / "figures.parquet")
    of_flags = table.filter(pl.col("metric").is_in(FLAG_COLUMNS))
    assert set(of_flags["detector"]) == {"conditional_autoencoder"}
    assert set(of_flags.select("households", "metric").rows()) == {
        (households, metric) for households in ("held_out", "training") for metric in FLAG_COLUMNS
    }
    assert of_flags["value"].is_finite().all()
    row = next(
        line
        for line in (directory / "table.md").read_text().splitlines()
        if line.startswith("| fusion |")
    )
    assert row.startswith("| fusion |  |  |  | 0.")  # no calibration, nothing to show


def test_fusion_finds_stuck_readings_in_simulated_noise(directory: Path) -> None:
    """An identical run is never natural in simulated noise: the benchmark can see what is good."""
    table = pl.read_parquet(directory / "figures.parquet").filter(
        households="held_out", metric="auc", detector="fusion"
    )
    stuck = table.filter(subset="stuck")["value"].item()
    assert stuck > 0.95
    assert table.filter(pl.col("subset").is_null())["value"].item() > 0.8


def test_benchmark_writes_markdown_table_and_plots(directory: Path) -> None:
    text = (directory / "table.md").read_text()
    assert text.count("| fusion |") == 7
    assert "held-out households, injected" in text
    assert "conditional_autoencoder: " in text
    assert text.count("| nothing injected |") == 1
    assert {path.stem for path in directory.glob("*.png")} == {
        "precision_recall",
        "recall_per_kind",
        "calibration",
        "time_to_detection",
        "alarms_per_household",
        "reasons",
    }


def test_each_detector_is_a_child_run_of_the_benchmark(directory: Path) -> None:
    client = mlflow.MlflowClient(registry.resolve_store_uri())
    experiment = client.get_experiment_by_name("meterwatch benchmark")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_name for run in parents] == [directory.name]
    below = {run.info.run_name: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    table = pl.read_parquet(directory / "figures.parquet")
    assert set(below) == set(table["detector"])
    value = table.filter(
        pl.col("subset").is_null(), detector="fusion", households="held_out", metric="auc"
    )["value"].item()
    assert below["fusion"].data.metrics["held_out/auc"] == value
    kept = {file.path for file in client.list_artifacts(parents[0].info.run_id)}
    assert {"table.md", "figures.parquet", "recall_per_kind.png"} <= kept


@pytest.mark.usefixtures("home")
def test_too_few_nights_fails_with_one_line(
    capfd: pytest.CaptureFixture[str], empty_store: Path
) -> None:
    copy_mlflow_database(empty_store)
    write_lake(fleets.simulate_readings_kwh(6, 40))
    assert main(["evaluate", "--detectors", "rules"]) == 1
    _, said = capfd.readouterr()
    assert said.count("\n") == 1
    assert "needs 28 nights to learn from and 28 after them" in said
    assert not (paths.home_dir() / "benchmark").exists()
