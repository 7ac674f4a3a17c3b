"""Every path of the home.

HOME/lake/days/month=YYYY-MM/days.parquet       household-days, one file a month
HOME/lake/<reference>.parquet                   households, weather, holidays, tariffs
HOME/lake/{deliveries,quarantine,spans}/*.parquet  one file a delivery
HOME/staging/                                   an ingest at work; gone when none is
HOME/runs/*.parquet                             one file a run
HOME/tables/<table>/night=YYYY-MM-DD/*.parquet  results, one file a night
HOME/score_cache/night=YYYY-MM-DD/*.parquet   what a network made of a night, to be used again
HOME/pictures/                                  flagged nights, drawn
HOME/models/<version>/, HOME/models/champion.json   local copies of registered detectors
HOME/benchmark/<id>/                            figures, table and pictures of a benchmark
HOME/training/<key>/                            a training at work; gone once registered
HOME/mlflow/, HOME/prefect/, HOME/landing/      stores of their own
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
SCORE_CACHE_GLOBS: Final = {"score_cache": "score_cache/night=*/*.parquet"}


def home_dir() -> Path:
    """The root of all state."""
    return get_settings().home


def model_dir(version: str) -> Path:
    """The local copy of a registered detector."""
    return home_dir() / "models" / version


def champion_file() -> Path:
    """Which of the local copies was the last known champion."""
    return home_dir() / "models/champion.json"


def training_dir(key: str) -> Path:
    """Where a training of this data and these parameters works."""
    return home_dir() / "training" / key


def benchmark_dir(key: str) -> Path:
    """What a benchmark leaves."""
    return home_dir() / "benchmark" / key


def picture_file(night: date) -> Path:
    """The picture of a span of nights, by its last one."""
    return home_dir() / f"pictures/{night}.png"


def mlflow_dir() -> Path:
    """The directory of MLflow's own store."""
    return home_dir() / "mlflow"


def list_table_files(table: str) -> list[Path]:
    """The files of a table, in order."""
    return sorted(home_dir().glob((TABLE_GLOBS | SCORE_CACHE_GLOBS)[table]))


def has_table_files(table: str) -> bool:
    """Whether a table has any file."""
    return any(True for _ in home_dir().glob((TABLE_GLOBS | SCORE_CACHE_GLOBS)[table]))
