"""The model registry and the records of trainings: the only module that talks to MLflow.

    HOME/mlflow/mlflow.db, HOME/mlflow/artifacts/   unless METERWATCH_MLFLOW_URI names a store
    HOME/models/<version>/, HOME/models/champion.json   local copies that scoring reads

A training's run is created before its first epoch and ends when its version is registered. It
then holds the detector as `detector/config.json` and `detector/weights.safetensors`, which scoring
reads, as `detector/model.onnx`, and as an exported graph with its signature in `model/`, which
MLflow's own tools load. Nothing is pickled.
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
from typing import TYPE_CHECKING, Any, Final, Literal

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
"""Name of the registered model, and of the experiment that holds the trainings' runs."""
CHAMPION_ALIAS: Final = "champion"
MLFLOW_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Seconds, and tries after the first. MLflow's own 120 s and seven would hold up a night for
    # minutes before it takes the local copy of the champion.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
"""Set before MLflow is imported, which reads some of them once."""
CHAMPION_QUERY: Final = """
    SELECT v.version, v.run_id
    FROM registered_model_aliases a JOIN model_versions v USING (workspace, name, version)
    WHERE a.name = ? AND a.alias = ?
"""
"""Reads MLflow's private tables on purpose: `MlflowClient` takes 3.3 s of processor time for its
first answer (import 1.8 s, opening the database and looking up 1.5 s), this 0.002 s, and a night
has about 4 s for all that is not its computation. MLflow is pinned to a minor version, and tests
read the champion both ways."""
OUTAGE_MESSAGE_WIDTH: Final = 160
"""Characters of an outage's cause that are told. Chosen: one line, without MLflow's traceback."""

log = logging.getLogger(__name__)


class StoreDownError(UserError):
    """Raised if MLflow does not answer, or not sensibly."""


class ModelVersion(BaseModel):
    """A registered version and the run that made it.

    The run's id tells versions of different stores apart, whose numbers repeat.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    run_id: str


class RunDescription(BaseModel):
    """What an MLflow run is called and found by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_name: str
    parameters: dict[str, Any]
    tags: dict[str, str]


def resolve_store_uri() -> str:
    """Return the address of the MLflow store: the one that is set, or the home's database."""
    return get_settings().mlflow_uri or f"sqlite:///{_database_path().resolve()}"


def build_version_url(version: str) -> str:
    """Return the address of a version in the UI of the MLflow server, or of `make serve`'s."""
    uri = get_settings().mlflow_uri or ""
    local = f"http://127.0.0.1:{get_settings().mlflow_port}"
    return f"{uri if uri.startswith('http') else local}/#/models/{MODEL_NAME}/versions/{version}"


def prepare_store() -> None:
    """Create the store in the home or upgrade its schema; ask a store that is set for an answer.

    One process at a time: four that opened a new database at once broke it for good.

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


def open_training_run(description: RunDescription, run_id: str | None = None) -> str:
    """Return the id of a training's run, which is running from now on.

    The run `run_id` if the store has it, so that a resumed training goes on in its run; otherwise a
    new one. Its parameters and tags are set anew.

    Raises:
        StoreDownError: MLflow does not answer.
    """
    with _translate_outages():
        client = _create_client()
        if run_id is None or not _has_run(client, run_id):
            experiment_id = _get_or_create_experiment(client)
            run = client.create_run(experiment_id, run_name=description.run_name)
            run_id = str(run.info.run_id)
        else:
            client.update_run(run_id, status="RUNNING")
        _log_run(client, run_id, description.parameters, {}, tags=description.tags)
    return run_id


def find_logged_epochs(run_id: str) -> set[int]:
    """Return the epochs, counted from 0, whose metrics a training's run holds.

    Raises:
        StoreDownError: MLflow does not answer.
    """
    with _translate_outages():
        return {metric.step for metric in _create_client().get_metric_history(run_id, "epoch")}


def log_epoch_metrics(run_id: str, metrics_by_epoch: Mapping[int, Mapping[str, float]]) -> None:
    """Add the metrics of epochs to a training's run, a step an epoch.

    Raises:
        StoreDownError: MLflow does not answer.
    """
    from mlflow.entities import Metric

    now_ms = _now_ms()
    metrics = [
        Metric(name, value, now_ms, epoch)
        for epoch, values in metrics_by_epoch.items()
        for name, value in values.items()
    ]
    with _translate_outages():
        _create_client().log_batch(run_id, metrics=metrics)


def set_run_status(run_id: str, status: Literal["RUNNING", "FAILED"]) -> None:
    """Set the status of a training's run.

    Raises:
        StoreDownError: MLflow does not answer.
    """
    with _translate_outages():
        if status == "FAILED":
            _create_client().set_terminated(run_id, status)
        else:
            _create_client().update_run(run_id, status=status)


def record_version(
    directory: Path,
    description: RunDescription,
    *,
    run_id: str | None,
    epoch_metrics: Sequence[Mapping[str, float]],
    final_metrics: Mapping[str, float],
) -> ModelVersion:
    """Complete a training's run and register its detector as the next version.

    `directory` holds the detector as `save_detector` writes it, pictures, and CSV of what they
    show. `run_id` is the run that showed the training, if there is one; epochs that it misses are
    added. `epoch_metrics` is one mapping an epoch, `final_metrics` are of the whole training. A run
    whose version is registered already keeps it: the process was killed after that.
    """
    run_id = open_training_run(description, run_id)
    client = _create_client()
    try:
        logged_epochs = find_logged_epochs(run_id)
        missing = {
            epoch: metrics
            for epoch, metrics in enumerate(epoch_metrics)
            if epoch not in logged_epochs
        }
        log_epoch_metrics(run_id, missing)
        _log_run(client, run_id, {}, final_metrics, step=len(epoch_metrics))
        for path in (directory / name for name in (CONFIG_FILE, WEIGHTS_FILE, ONNX_FILE)):
            client.log_artifact(run_id, str(path), "detector")
        for path in sorted((*directory.glob("*.png"), *directory.glob("*.csv"))):
            client.log_artifact(run_id, str(path), "pictures")
        with tempfile.TemporaryDirectory() as exported:
            export_mlflow_model(load_detector(directory), Path(exported) / "model")
            client.log_artifacts(run_id, str(Path(exported) / "model"), "model")
        version = _get_or_create_version(client, run_id, description.tags)
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
    """Record a benchmark as a run with the files of `directory`; return the run's id.

    Below it each detector has a run of its own with its metrics, so that MLflow compares them.
    """
    client = _create_client()
    experiment = _get_or_create_experiment(client, f"{MODEL_NAME} benchmark")
    run = client.create_run(experiment, tags=dict(tags), run_name=directory.name)
    parent = str(run.info.run_id)
    _log_run(client, parent, parameters, {})
    client.log_artifacts(parent, str(directory))
    for name, metrics in metrics_by_detector.items():
        below = dict(tags) | {"mlflow.parentRunId": parent}
        child = client.create_run(experiment, tags=below, run_name=name).info.run_id
        _log_run(client, child, {"detector": name, **parameters}, metrics)
        client.set_terminated(child)
    client.set_terminated(parent)
    return parent


def set_champion(version: ModelVersion) -> None:
    """Point the champion's alias at a version, and store a local copy of its detector."""
    _create_client().set_registered_model_alias(MODEL_NAME, CHAMPION_ALIAS, version.version)
    _store_local_champion(version)


def set_version_tags(version: ModelVersion, **tags: str) -> None:
    """Set tags of a version, those of the same name replaced."""
    client = _create_client()
    for key, value in tags.items():
        client.set_model_version_tag(MODEL_NAME, version.version, key, value)


def load_champion() -> tuple[Detector, str]:
    """Return the champion and its version number; while MLflow is down, the last known one.

    Raises:
        UserError: there is no champion yet.
    """
    version = find_champion_version()
    if version is None:
        raise UserError("no champion yet: run `meterwatch train` first")
    return load_detector(paths.model_dir(version.version), get_settings().engine), version.version


def find_champion_version() -> ModelVersion | None:
    """Return the champion's version, whose local copy is in the home; None if there is none yet.

    Raises:
        StoreDownError: MLflow is down and there is no local copy of any champion.
    """
    local = _read_local_champion()
    try:
        registered = _query_champion()
        if registered is not None and registered != local:
            _store_local_champion(registered)
    except StoreDownError as outage:
        if local is None:
            raise
        log.warning("%s; using the local copy of champion %s", outage, local.version)
        return local
    return registered


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
    # A server knows where its artifacts belong; beside a database the working directory would.
    artifact_location = (
        None if get_settings().mlflow_uri else (paths.mlflow_dir() / "artifacts").resolve().as_uri()
    )
    return client.create_experiment(name, artifact_location=artifact_location)


def _has_run(client: "MlflowClient", run_id: str) -> bool:
    """Return whether the store has a run: it may be another store than when the run began."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return False
        raise
    return bool(run.info.lifecycle_stage == "active")


def _log_run(
    client: "MlflowClient",
    run_id: str,
    parameters: Mapping[str, Any],
    metrics: Mapping[str, float],
    *,
    step: int = 0,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Add parameters, tags and metrics of a single step to a run."""
    from mlflow.entities import Metric, Param, RunTag

    now_ms = _now_ms()
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, now_ms, step) for name, value in metrics.items()],
        params=[Param(name, str(value)) for name, value in parameters.items()],
        tags=[RunTag(name, value) for name, value in (tags or {}).items()],
    )


def _now_ms() -> int:
    return int(time.time() * 1000)


def _get_or_create_version(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> str:
    registered = client.search_model_versions(f"run_id = '{run_id}'")
    if registered:
        return str(registered[0].version)
    if not client.search_registered_models(f"name = '{MODEL_NAME}'"):
        client.create_registered_model(MODEL_NAME)
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    return str(client.create_model_version(MODEL_NAME, source, run_id, tags=dict(tags)).version)


def _query_champion() -> ModelVersion | None:
    """Return the version that the champion's alias names now, None if there is none.

    Raises:
        StoreDownError: the store does not answer.
    """
    uri = resolve_store_uri()
    with _translate_outages():
        if not uri.startswith("sqlite:///"):
            return _query_champion_from_server()
        path = Path(uri.removeprefix("sqlite:///"))
        # A home in which nothing was trained yet. Where there was a champion, a store that is gone
        # is an outage, which opening it raises.
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
    """Copy a registered detector to the home, then name it the champion there.

    In this order: a process killed in between leaves the former champion named, and whole.
    """
    with tempfile.TemporaryDirectory() as scratch:
        with _translate_outages():
            fetched = Path(_create_client().download_artifacts(version.run_id, "detector", scratch))
        for file in fetched.iterdir():
            storage.replace_bytes(paths.model_dir(version.version) / file.name, file.read_bytes())
    storage.replace_bytes(paths.champion_file(), version.model_dump_json().encode())


@contextmanager
def _translate_outages() -> Iterator[None]:
    """Raise `StoreDownError` with a message of one line for whatever an outage raised."""
    try:
        yield
    except Exception as error:
        if not _is_outage(error):
            raise
        line = shorten(str(error) or type(error).__name__, width=OUTAGE_MESSAGE_WIDTH)
        raise StoreDownError(f"MLflow at {resolve_store_uri()} is down: {line}") from error


def _is_outage(error: Exception) -> bool:
    """Return whether an error means that the store of MLflow does not answer, or not sensibly."""
    if isinstance(error, OSError | sqlite3.Error):
        return True
    # Not imported, it has raised nothing, and importing it would take two seconds.
    if "mlflow.exceptions" not in sys.modules:
        return False
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, MlflowException | SQLAlchemyError)
