"""What is registered comes back bit for bit, unpickled, and also when MLflow is down."""

import json
import logging
import shutil
import socket
import time
import zipfile
from pathlib import Path

import mlflow
import pytest
import torch

from flows.train import train
from ml.errors import UserError
from tasks import paths, registry
from tasks.model_files import load_detector
from tasks.training_job import TrainParameters
from tests import fleets
from tests.lake_fixtures import copy_mlflow_database, write_lake
from tests.training_fixtures import have_equal_weights

HOUSEHOLDS, NIGHTS = 12, 60


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A home with two versions: the better one, then one that was trained for a single epoch."""
    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("METERWATCH_HOME", str(home))
        copy_mlflow_database(empty_store)
        write_lake(fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS))
        good = train.fn(TrainParameters(max_epochs=12))
        poor = train.fn(TrainParameters(model=fleets.TEST_MODEL, max_epochs=1))
    assert (good.version, good.is_promoted) == ("1", True)
    assert (poor.version, poor.is_promoted) == ("2", False)
    assert "of resamples, 95% are needed" in poor.line()
    assert "conditional_autoencoder, epoch 1 of 1 kept, validation loss " in poor.line()
    return home


@pytest.fixture
def trained_home(trained: Path, home: Path) -> Path:
    """A copy of the trained home; its database still names the artifacts of the first."""
    shutil.copytree(trained, home)
    return home


def test_registered_version_loads_bit_for_bit(trained_home: Path) -> None:
    """The local copy is the registered artifact, and the exported graph computes the same."""
    detector, version = registry.load_champion()
    assert version == "1"
    shutil.rmtree(paths.home_dir() / "models")
    fetched, _ = registry.load_champion()
    assert have_equal_weights(fetched.state_dict(), detector.state_dict())
    assert fetched.config == detector.config
    mlflow.set_tracking_uri(registry.resolve_store_uri())
    graph = mlflow.pytorch.load_model("models:/meterwatch@champion")
    kwh, level, conditions = torch.rand(7, 46, 48), torch.rand(7), torch.rand(7, 15)
    kwh[0, -1, :5], conditions[1, 2] = torch.nan, torch.nan
    rows = (kwh, level, conditions)
    with torch.no_grad():
        for one, other in zip(detector(*rows), graph(*rows), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5, equal_nan=True)


def test_version_records_signature_parameters_and_metrics(trained_home: Path) -> None:
    mlflow.set_tracking_uri(registry.resolve_store_uri())
    signature = mlflow.models.get_model_info("models:/meterwatch@champion").signature
    assert signature.inputs.input_names() == ["kwh", "level", "conditions"]
    assert [spec.shape for spec in signature.inputs.inputs] == [(-1, 46, 48), (-1,), (-1, 15)]
    client = mlflow.MlflowClient(registry.resolve_store_uri(), registry.resolve_store_uri())
    version = client.get_model_version("meterwatch", "1")
    run = client.get_run(version.run_id)
    assert run.data.metrics["onnx_difference"] < 1e-4
    assert {
        "n_households": "12",
        "n_nights": "60",
        "n_household_nights": "720",
    }.items() <= run.data.params.items()
    assert {"data", "until", "package", "promoted", "why"} <= version.tags.keys()
    epochs = client.get_metric_history(version.run_id, "val_loss")
    assert [metric.step for metric in epochs] == list(range(len(epochs)))
    pictures = {Path(file.path).stem for file in client.list_artifacts(version.run_id, "pictures")}
    assert pictures == {"loss", "profiles", "scores", "latent", "pace"}
    assert {
        "nights_per_second/32-true/16",
        "saved_tensors_mb/32-true/16",
    } <= run.data.metrics.keys()
    assert run.data.params["device"]


def test_artifacts_contain_no_pickles(trained: Path) -> None:
    """What an exported graph holds beside JSON, MLflow itself refuses unless it is tensors."""
    artefacts = [path for part in ("mlflow", "models") for path in (trained / part).rglob("*.*")]
    suffixes = {path.suffix for path in artefacts if path.is_file()}
    assert {".safetensors", ".pt2"} <= suffixes
    assert not suffixes & {".pkl", ".pickle", ".pth", ".pt", ".ckpt", ".bin", ".joblib"}
    graphs = [zipfile.ZipFile(path).namelist() for path in artefacts if path.suffix == ".pt2"]
    assert not [name for names in graphs for name in names if name.endswith(".pkl")]
    assert not list((trained / "training").glob("*/*"))


def test_champion_alias_stays_with_better_version(trained_home: Path) -> None:
    """Version 2 finds fewer of the same injected anomalies."""
    version = registry.find_champion_version()
    assert version is not None
    assert version.version == "1"


def test_champion_that_this_release_refuses_is_replaced_by_a_new_version(
    trained_home: Path,
) -> None:
    config_file = paths.model_dir("1") / "config.json"
    config = json.loads(config_file.read_text())
    config["conditions"][0] = "is_payday"
    config_file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="other condition inputs"):
        registry.load_champion()

    receipt = train.fn(TrainParameters(model=fleets.TEST_MODEL, max_epochs=1, seed=1))

    assert receipt.is_promoted
    assert "the champion cannot score any more, the model was trained on other" in receipt.line()
    assert registry.load_champion()[1] == receipt.version


def test_version_is_not_promoted_unless_requested(trained_home: Path) -> None:
    receipt = train.fn(TrainParameters(model=fleets.TEST_MODEL, max_epochs=2, promote=False))
    assert (receipt.version, receipt.is_promoted) == ("3", False)
    assert receipt.decision.why.startswith("promotion was not asked for")
    assert registry.load_champion()[1] == "1"


@pytest.mark.parametrize("fault", ["deleted", "corrupt", "unreachable"])
def test_champion_loads_from_local_copy_while_mlflow_is_down(
    fault: str,
    trained_home: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = paths.mlflow_dir() / "mlflow.db"
    if fault == "deleted":
        database.unlink()
    elif fault == "corrupt":
        database.write_bytes(b"not a database" * 1000)
    else:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        monkeypatch.setenv("METERWATCH_MLFLOW_URI", f"http://127.0.0.1:{port}")
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="tasks.registry"):
        detector, version = registry.load_champion()
    assert time.monotonic() - started < 20
    assert version == "1"
    assert have_equal_weights(
        detector.state_dict(), load_detector(paths.model_dir("1")).state_dict()
    )
    assert "is down" in caplog.text
    assert "using the local copy of champion 1" in caplog.text


def test_missing_champion_raises_user_error(home: Path, empty_store: Path) -> None:
    for _ in ("no store", "an empty store"):
        with pytest.raises(UserError, match=r"no champion yet: run `meterwatch train` first"):
            registry.load_champion()
        copy_mlflow_database(empty_store)


def test_training_stops_at_start_when_store_is_down(home: Path) -> None:
    paths.mlflow_dir().mkdir(parents=True)
    (paths.mlflow_dir() / "mlflow.db").write_bytes(b"not a database" * 1000)
    write_lake(fleets.simulate_readings_kwh(2, 40))
    with pytest.raises(UserError, match=r"MLflow at sqlite:.* is down: "):
        train.fn(TrainParameters())
    assert not (paths.home_dir() / "training").exists()
