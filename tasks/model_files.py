"""A detector on disk, never pickled: JSON, safetensors, and exported programs."""

from pathlib import Path
from typing import Final

import safetensors.torch
import torch

from ml.errors import UserError
from ml.export import build_example_inputs, export_onnx, load_onnx_function, quantize_onnx_int8
from ml.schemas import HALF_HOURS
from ml.scoring.detector import Detector, DetectorConfig
from tasks import storage
from tasks.settings import ScoringEngine

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "weights.safetensors"
ONNX_FILE: Final = "model.onnx"


def save_detector(detector: Detector, directory: Path) -> None:
    """Write a detector as JSON and safetensors; `save_onnx` writes the program."""
    state = {name: value.contiguous() for name, value in detector.state_dict().items()}
    storage.replace_bytes(
        directory / CONFIG_FILE, detector.config.model_dump_json(indent=2).encode()
    )
    storage.replace_bytes(directory / WEIGHTS_FILE, safetensors.torch.save(state))


def save_onnx(detector: Detector, directory: Path) -> None:
    """Write a detector's network as an ONNX program, weights included."""
    storage.replace_bytes(directory / ONNX_FILE, export_onnx(detector))


def load_detector(directory: Path, engine: ScoringEngine = "torch") -> Detector:
    """Read a detector that `save_detector` wrote, judging by the engine named.

    Raises:
        UserError: there is no program for ONNX Runtime.
    """
    config = DetectorConfig.model_validate_json((directory / CONFIG_FILE).read_bytes())
    tensors = safetensors.torch.load_file(directory / WEIGHTS_FILE)
    detector = Detector.from_state(config, tensors)
    if engine != "torch":
        if not (directory / ONNX_FILE).exists():
            raise UserError(f"version {directory.name} has no {ONNX_FILE}: score it with torch")
        program = (directory / ONNX_FILE).read_bytes()
        detector.exported_program = load_onnx_function(
            quantize_onnx_int8(program) if engine == "int8" else program
        )
    return detector.eval()


@torch.no_grad()
def export_mlflow_model(detector: Detector, path: Path) -> None:
    """Write a detector as an MLflow model: an exported graph with signature and dynamic batch."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.pytorch import save_model
    from mlflow.types import Schema, TensorSpec

    def build_schema(**shapes: tuple[int, ...]) -> Schema:
        kind = np.dtype("float32")
        return Schema([TensorSpec(kind, shape, name) for name, shape in shapes.items()])

    window = (detector.network.context_nights + 1, HALF_HOURS)
    n_conditions = len(detector.config.conditions)
    save_model(
        detector,
        path,
        signature=ModelSignature(
            inputs=build_schema(kwh=(-1, *window), level=(-1,), conditions=(-1, n_conditions)),
            outputs=build_schema(
                expected_kwh=(-1, HALF_HOURS),
                half_hour_log_odds=(-1, HALF_HOURS),
                log_odds=(-1,),
            ),
        ),
        input_example=tuple(part.numpy() for part in build_example_inputs(detector)),
        pip_requirements=["torch"],
        serialization_format="pt2",
    )
