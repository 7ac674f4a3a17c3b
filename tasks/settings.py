"""Read the settings, each an environment variable `METERWATCH_*`."""

import functools
import os
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml.errors import UserError
from ml.limits import MIN_READINGS, SUPPLY_LIMIT_KWH

ENVIRONMENT_PREFIX: Final = "METERWATCH_"

ScoringEngine = Literal["torch", "onnx", "int8"]
"""PyTorch, ONNX Runtime, or ONNX Runtime with the products of linear layers in 8-bit integers."""


class Settings(BaseSettings):
    """Everything a user may configure; `tests/test_docs.py` compares the README with the fields."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, frozen=True, extra="forbid")

    home: Path = Field(Path("data"), description="where all state lives")
    landing: Path | None = Field(None, description="where deliveries land (default: HOME/landing)")
    # 3 of 1,000 nights are about 17 false episodes a night of the full trial's 5,567 households.
    alert_budget: float = Field(
        3.0, gt=0, le=100, description="false alert episodes per 1,000 normal household-nights"
    )
    min_readings: int = Field(
        MIN_READINGS, ge=1, le=48, description="readings of 48 that a night needs to be scored"
    )
    supply_limit_kwh: float = Field(
        SUPPLY_LIMIT_KWH, gt=0, description="most that a supply can deliver in a half-hour"
    )
    mlflow_uri: str | None = Field(
        None, description="MLflow tracking server (default: SQLite in HOME)"
    )
    # The default ports of Prefect and of MLflow themselves.
    prefect_port: int = Field(4200, ge=1, le=65535, description="port of `make serve`'s Prefect")
    mlflow_port: int = Field(5000, ge=1, le=65535, description="port of `make serve`'s MLflow")
    threads: int | None = Field(None, ge=1, description="cores that torch uses (default: all)")
    devices: int | None = Field(
        None, ge=1, description="devices that train together (default: all GPUs, or 1 CPU)"
    )
    engine: ScoringEngine = Field(
        "torch", description="what scores: PyTorch, or ONNX Runtime, also with int8 products"
    )

    @property
    def landing_dir(self) -> Path:
        """Return the directory that `nightly` ingests."""
        return self.landing or self.home / "landing"


def get_settings() -> Settings:
    """Read the settings from the environment, once for each state of it.

    Raises:
        UserError: a variable has a value that its field refuses.
    """
    return _read_environment(
        frozenset(
            (name, value)
            for name, value in os.environ.items()
            if name.upper().startswith(ENVIRONMENT_PREFIX)
        )
    )


@functools.cache
def _read_environment(_variables: frozenset[tuple[str, str]]) -> Settings:
    """Validate the settings; `_variables` is only the cache's key.

    Every path of the home is asked of the settings, and building them takes about a millisecond.
    Cached by the variables, not for good, since tests and the main job change them.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = ENVIRONMENT_PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise UserError(f"{name}: {first['msg']} (got {first['input']!r})") from None
