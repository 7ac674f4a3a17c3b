"""The model registry: the only module that talks to MLflow.

    HOME/mlflow/mlflow.db, HOME/mlflow/artifacts/   unless METERWATCH_MLFLOW_URI names a store
    HOME/models/<version>/, HOME/models/champion.json   local copies that scoring reads

A run holds a detector as `detector/config.json` and `detector/weights.safetensors`, which scoring
reads, as `detector/model.onnx`, and as an exported graph in `model/` with its signature. Nothing is
pickled.
"""

import logging
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Final

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from ml.errors import UserError
from ml.scoring.detector import Detector
from tasks import paths, storage
from tasks.model_files import (
    CONFIG_FILE,
    ONNX_FILE,
    WEIGHTS_FILE,
    export_mlflow_model,
    load_detector,
)
from tasks.settings import get_settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_NAME: Final = "meterwatch"
CHAMPION_ALIAS: Final = "champion"
MLFLOW_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
CHAMPION_QUERY: Final = """
    SELECT v.version, v.run_id
    FROM registered_model_aliases a JOIN model_versions v USING (workspace, name, version)
    WHERE a.name = ? AND a.alias = ?
"""

OUTAGE_MESSAGE_WIDTH: Final = 160

log = logging.getLogger(__name__)


class StoreDownError(UserError):
    """MLflow does not answer, or not sensibly."""


class ModelVersion(BaseModel):
    """A registered version and the run that made it; version numbers repeat among stores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    run_id: str


def resolve_store_uri() -> str:
    """The MLflow store."""
    return get_settings().mlflow_uri or f"sqlite:///{_database_path().resolve()}"


def build_version_url(version: str) -> str:
    """The address of a version in MLflow's UI, as `make serve` offers it or the named server."""
    uri = get_settings().mlflow_uri or ""
    local = f"http://127.0.0.1:{get_settings().mlflow_port}"
    return f"{uri if uri.startswith('http') else local}/#/models/{MODEL_NAME}/versions/{version}"


def prepare_store() -> None:
    """Create the store in the home, or bring it to the present version; one process at a time.

    Raises:
        UserError: the store cannot be reached or read.
    """
    if get_settings().mlflow_uri:
        with _translate_outages():
            _create_client().search_registered_models(max_results=1)
        return
    paths.mlflow_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(paths.mlflow_dir() / ".lock"):
        if _database_path().exists():
            with _translate_outages():
                _upgrade_database(_database_path())
            return
        partial = _database_path().with_suffix(".partial")
        partial.unlink(missing_ok=True)
        _upgrade_database(partial)
        partial.replace(_database_path())


def record_version(
    directory: Path,
    *,
    run_name: str,
    parameters: Mapping[str, Any],
    epoch_metrics: Sequence[Mapping[str, float]],
    final_metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> ModelVersion:
    """Record a training and register its detector as the next version.

    `directory` holds the detector as `save_detector` writes it, pictures, and CSV of what they show.
    `epoch_metrics` is one mapping an epoch, `final_metrics` are of the whole training.
    """
    client = _create_client()
    run = client.create_run(_get_or_create_experiment(client), tags=dict(tags), run_name=run_name)
    run_id = run.info.run_id
    try:
        _log_run(client, run_id, parameters, epoch_metrics, final_metrics)
        for path in (directory / name for name in (CONFIG_FILE, WEIGHTS_FILE, ONNX_FILE)):
            client.log_artifact(run_id, str(path), "detector")
        for path in sorted((*directory.glob("*.png"), *directory.glob("*.csv"))):
            client.log_artifact(run_id, str(path), "pictures")
        with tempfile.TemporaryDirectory() as exported:
            export_mlflow_model(load_detector(directory), Path(exported) / "model")
            client.log_artifacts(run_id, str(Path(exported) / "model"), "model")
        version = _create_version(client, run_id, f"{run.info.artifact_uri}/model", tags)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    return ModelVersion(version=version, run_id=run_id)


def record_benchmark(
    directory: Path,
    *,
    parameters: Mapping[str, Any],
    metrics_by_detector: Mapping[str, Mapping[str, float]],
    tags: Mapping[str, str],
) -> str:
    """Record a benchmark: a run with the files of `directory`, and one below it a detector.

    The run's id is returned. `metrics_by_detector` are the metrics of each detector.
    """
    client = _create_client()
    experiment = _get_or_create_experiment(client, f"{MODEL_NAME} benchmark")
    run = client.create_run(experiment, tags=dict(tags), run_name=directory.name)
    parent = str(run.info.run_id)
    _log_run(client, parent, parameters, [], {})
    client.log_artifacts(parent, str(directory))
    for name, metrics in metrics_by_detector.items():
        below = dict(tags) | {"mlflow.parentRunId": parent}
        child = client.create_run(experiment, tags=below, run_name=name).info.run_id
        _log_run(client, child, {"detector": name, **parameters}, [], metrics)
        client.set_terminated(child)
    client.set_terminated(parent)
    return parent


def set_champion(version: ModelVersion) -> None:
    """Make a version the champion, and keep a local copy."""
    _create_client().set_registered_model_alias(MODEL_NAME, CHAMPION_ALIAS, version.version)
    _store_local_champion(version)


def set_version_tags(version: ModelVersion, **tags: str) -> None:
    """Put tags on a version."""
    client = _create_client()
    for key, value in tags.items():
        client.set_model_version_tag(MODEL_NAME, version.version, key, value)


def load_champion() -> tuple[Detector, str]:
    """The champion and its version; when MLflow is down, the local copy of the last one.

    Raises:
        UserError: there is no champion yet.
    """
    version = find_champion_version()
    if version is None:
        raise UserError("no champion yet: run `meterwatch train` first")
    return load_detector(paths.model_dir(version.version), get_settings().engine), version.version


def find_champion_version() -> ModelVersion | None:
    """The champion's version, whose local copy is there; None if there is none yet.

    Raises:
        UserError: MLflow is down and there is no local copy of any champion.
    """
    kept = _read_local_champion()
    try:
        found = _query_champion()
        if found is not None and found != kept:
            _store_local_champion(found)
    except StoreDownError as outage:
        if kept is None:
            raise
        log.warning("%s; using the local copy of champion %s", outage, kept.version)
        return kept
    return found


def _database_path() -> Path:
    return paths.mlflow_dir() / "mlflow.db"


def _create_client() -> "MlflowClient":
    os.environ.update(MLFLOW_ENVIRONMENT)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=resolve_store_uri(), registry_uri=resolve_store_uri())


def _upgrade_database(database: Path) -> None:
    os.environ.update(MLFLOW_ENVIRONMENT)
    from mlflow.db import upgrade

    assert upgrade.callback is not None
    upgrade.callback(f"sqlite:///{database.resolve()}")


def _get_or_create_experiment(client: "MlflowClient", name: str = MODEL_NAME) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = (
        None if get_settings().mlflow_uri else (paths.mlflow_dir() / "artifacts").resolve().as_uri()
    )
    return client.create_experiment(name, artifact_location=local)


def _log_run(
    client: "MlflowClient",
    run_id: str,
    parameters: Mapping[str, Any],
    epoch_metrics: Sequence[Mapping[str, float]],
    final_metrics: Mapping[str, float],
) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    steps = [
        Metric(key, value, now, step)
        for step, metrics in enumerate(epoch_metrics)
        for key, value in metrics.items()
    ]
    final = [Metric(key, value, now, len(epoch_metrics)) for key, value in final_metrics.items()]
    params = [Param(key, str(value)) for key, value in parameters.items()]
    client.log_batch(run_id, metrics=steps + final, params=params)


def _create_version(
    client: "MlflowClient", run_id: str, source: str, tags: Mapping[str, str]
) -> str:
    if not client.search_registered_models(f"name = '{MODEL_NAME}'"):
        client.create_registered_model(MODEL_NAME)
    return str(client.create_model_version(MODEL_NAME, source, run_id, tags=dict(tags)).version)


def _query_champion() -> ModelVersion | None:
    """What the alias names now. A SQLite store is asked without the seconds MLflow's import takes.

    Raises:
        StoreDownError: the store does not answer.
    """
    uri = resolve_store_uri()
    with _translate_outages():
        if not uri.startswith("sqlite:///"):
            return _query_champion_from_server()
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.exists() and _read_local_champion() is None:
            return None
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            row = database.execute(CHAMPION_QUERY, (MODEL_NAME, CHAMPION_ALIAS)).fetchone()
        return None if row is None else ModelVersion(version=str(row[0]), run_id=row[1])


def _query_champion_from_server() -> ModelVersion | None:
    client = _create_client()
    models = client.search_registered_models(f"name = '{MODEL_NAME}'")
    if not models or CHAMPION_ALIAS not in models[0].aliases:
        return None
    found = client.get_model_version_by_alias(MODEL_NAME, CHAMPION_ALIAS)
    return ModelVersion(version=str(found.version), run_id=str(found.run_id))


def _read_local_champion() -> ModelVersion | None:
    file = paths.champion_file()
    if not file.exists():
        return None
    version = ModelVersion.model_validate_json(file.read_bytes())
    copies = (paths.model_dir(version.version) / name for name in (CONFIG_FILE, WEIGHTS_FILE))
    return version if all(copy.exists() for copy in copies) else None


def _store_local_champion(version: ModelVersion) -> None:
    """Copy a registered detector to the home, then say that it is the champion."""
    with tempfile.TemporaryDirectory() as scratch:
        with _translate_outages():
            fetched = Path(_create_client().download_artifacts(version.run_id, "detector", scratch))
        for file in fetched.iterdir():
            storage.replace_bytes(paths.model_dir(version.version) / file.name, file.read_bytes())
    storage.replace_bytes(paths.champion_file(), version.model_dump_json().encode())


@contextmanager
def _translate_outages() -> Iterator[None]:
    """Say in one line that MLflow is down, whatever it raised."""
    try:
        yield
    except Exception as error:
        if not _is_outage(error):
            raise
        line = shorten(str(error) or type(error).__name__, width=OUTAGE_MESSAGE_WIDTH)
        raise StoreDownError(f"MLflow at {resolve_store_uri()} is down: {line}") from error


def _is_outage(error: Exception) -> bool:
    if isinstance(error, OSError | sqlite3.Error):
        return True
    if "mlflow.exceptions" not in sys.modules:
        return False
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, MlflowException | SQLAlchemyError)
