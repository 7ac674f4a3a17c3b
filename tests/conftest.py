"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest

from tasks import paths

# Two workers on two cores: a second thread of torch would only spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The calibration of a small fleet resolves no smaller one.
os.environ.setdefault("METERWATCH_ALERT_BUDGET", "100")

LONDON_DIRECTORY = Path(__file__).parents[2] / "shared" / "lcl"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own."""
    path = tmp_path / "home"
    monkeypatch.setenv("METERWATCH_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def london() -> Path:
    """The real readings of Low Carbon London."""
    if not LONDON_DIRECTORY.is_dir():
        pytest.skip("the real London readings are not at ../shared/lcl")
    return LONDON_DIRECTORY


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database, which takes MLflow seconds to make."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("METERWATCH_HOME", str(tmp_path_factory.mktemp("store")))
        from tasks import registry

        registry.prepare_store()
        return paths.mlflow_dir() / "mlflow.db"
