"""Every path of the home, and nothing else that knows one.

HOME/lake/days/month=YYYY-MM/days.parquet          household-nights, one file a month
HOME/lake/<reference table>.parquet                households, weather, holidays, tariffs
HOME/lake/{deliveries,quarantine,spans}/*.parquet  ledgers, one file a delivery
HOME/staging/                                      an ingest at work; gone when none is
HOME/runs/*.parquet                                ledger of runs, one file a run
HOME/tables/<table>/night=YYYY-MM-DD/*.parquet     results, one file a night
HOME/score_cache/night=YYYY-MM-DD/*.parquet        network outputs that need not be computed again
HOME/pictures/                                     flagged nights, drawn
HOME/models/<version>/, HOME/models/champion.json  local copies of registered detectors
HOME/benchmark/<id>/                               metrics, table and pictures of a benchmark
HOME/training/<key>/                               a training at work; gone once registered
HOME/simulated/                                    the fleet that the main job simulates
HOME/mlflow/, HOME/prefect/, HOME/landing/         stores of their own

HOME is `METERWATCH_HOME`. Release 0.1.0 kept its score cache in HOME/memory, which nothing reads
any more.
"""

from datetime import date
from pathlib import Path
from typing import Final

from tasks.settings import get_settings

TABLE_GLOBS: Final = {
    "days": "lake/days/month=*/*.parquet",
    "households": "lake/households.parquet",
    "weather": "lake/weather.parquet",
    "holidays": "lake/holidays.parquet",
    "tariffs": "lake/tariffs.parquet",
    "deliveries": "lake/deliveries/*.parquet",
    "quarantine": "lake/quarantine/*.parquet",
    "spans": "lake/spans/*.parquet",
    "runs": "runs/*.parquet",
    "scores": "tables/scores/night=*/*.parquet",
    "anomalies": "tables/anomalies/night=*/*.parquet",
    "episodes": "tables/episodes/night=*/*.parquet",
    "nights": "tables/nights/night=*/*.parquet",
}
"""The files of each table that SQL can ask for, below the home."""
SCORE_CACHE_GLOBS: Final = {"score_cache": "score_cache/night=*/*.parquet"}
RESULT_FILES_GLOB: Final = "tables/**"
"""All files below the result tables, also those that should not be there."""


def home_dir() -> Path:
    """Return the root of all state."""
    return get_settings().home


# Tables


def list_table_files(table: str) -> list[Path]:
    """Return the files of a table, in the order of their names."""
    return sorted(home_dir().glob((TABLE_GLOBS | SCORE_CACHE_GLOBS)[table]))


def has_table_files(table: str) -> bool:
    """Return whether a table has any file."""
    return any(True for _ in home_dir().glob((TABLE_GLOBS | SCORE_CACHE_GLOBS)[table]))


def month_file(month: date, root: Path) -> Path:
    """Return the lake's file of a month, below `root`: the home or a directory of its shape."""
    return root / f"lake/days/month={month:%Y-%m}/days.parquet"


def reference_table_file(table: str, root: Path) -> Path:
    """Return the file of a reference table below `root`."""
    return root / f"lake/{table}.parquet"


def ledger_entry_file(ledger: str, key: str, root: Path) -> Path:
    """Return the file of a ledger's entry below `root`."""
    return root / Path(TABLE_GLOBS[ledger]).with_name(f"{key}.parquet")


def result_file(table: str, night: date) -> Path:
    """Return the file of a result table's night."""
    return home_dir() / f"tables/{table}/night={night}/{table}.parquet"


def score_cache_file(night: date) -> Path:
    """Return the score cache of a night."""
    return home_dir() / f"score_cache/night={night}/score_cache.parquet"


# Writing


def write_lock_file() -> Path:
    """Return the file whose lock a writer of the home holds."""
    return home_dir() / ".lock"


def staging_dir() -> Path:
    """Return the directory in which a writer that holds the lock works."""
    return home_dir() / "staging"


def prepared_dir() -> Path:
    """Return the root under which files wait to be published together."""
    return staging_dir() / "prepared"


def publishing_dir() -> Path:
    """Return the root of the files whose publication has begun and must be finished.

    Its name is that of release 0.1.0, so that what a killed writer of that release began is
    finished by this one.
    """
    return staging_dir() / "decided"


# Models, trainings, benchmarks


def model_dir(version: str) -> Path:
    """Return the local copy of a registered detector."""
    return home_dir() / "models" / version


def champion_file() -> Path:
    """Return the file that says which local copy was the last known champion."""
    return home_dir() / "models/champion.json"


def training_dir(key: str) -> Path:
    """Return the directory of a training of this data and these parameters."""
    return home_dir() / "training" / key


def training_checkpoint_dir(key: str) -> Path:
    """Return the directory of a training's checkpoints."""
    return training_dir(key) / "checkpoints"


def training_run_file(key: str) -> Path:
    """Return the file that holds the id of the MLflow run in which a training is shown."""
    return training_dir(key) / "mlflow_run_id"


def fitted_detector_file(key: str) -> Path:
    """Return the file that says all about a training that has ended and waits for registration."""
    return training_dir(key) / "fitted.json"


def training_lock_file() -> Path:
    """Return the file whose lock a training holds."""
    return training_dir(".lock")


def benchmark_dir(key: str) -> Path:
    """Return the directory of a benchmark's metrics, table and pictures."""
    return home_dir() / "benchmark" / key


def picture_file(night: date) -> Path:
    """Return the picture of a span of nights, named by its last one."""
    return home_dir() / f"pictures/{night}.png"


# Stores and processes


def mlflow_dir() -> Path:
    """Return the directory of MLflow's own store."""
    return home_dir() / "mlflow"


def prefect_dir() -> Path:
    """Return the directory of Prefect's own store and of the logs of served processes."""
    return home_dir() / "prefect"


def simulated_dir() -> Path:
    """Return the directory of the fleet that the main job simulates."""
    return home_dir() / "simulated"
