"""Homes that tests train in."""

import shutil
from pathlib import Path

import numpy as np

from tasks import paths, storage
from tests import fleets


def write_lake(kwh: np.ndarray) -> None:
    """Write a lake of readings `[H, D, 48]`, NaN where missing."""
    household_nights = fleets.build_household_nights(kwh)
    storage.replace_reference_table("households", fleets.build_households(len(kwh)))
    months = household_nights["night"].dt.month_start()
    for (month,), part in household_nights.group_by(months):
        storage.replace_month(month, part)


def copy_mlflow_database(database: Path) -> None:
    """Copy an MLflow database into the home; making one takes seconds."""
    paths.mlflow_dir().mkdir(parents=True, exist_ok=True)
    shutil.copy(database, paths.mlflow_dir())
