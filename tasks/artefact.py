"""A detector on disk, never pickled: its configuration as JSON, its weights as safetensors."""

from pathlib import Path
from typing import Final

import safetensors.torch

from ml.detector import Detector, DetectorConfig
from ml.schemas import HALF_HOURS
from tasks import lake

CONFIG: Final = "config.json"
WEIGHTS: Final = "weights.safetensors"


def save(detector: Detector, directory: Path) -> None:
    """Write a detector as JSON and safetensors."""
    state = {name: value.contiguous() for name, value in detector.state_dict().items()}
    lake.replace_bytes(directory / CONFIG, detector.config.model_dump_json(indent=2).encode())
    lake.replace_bytes(directory / WEIGHTS, safetensors.torch.save(state))


def load(directory: Path) -> Detector:
    """Read a detector that `save` wrote."""
    config = DetectorConfig.model_validate_json((directory / CONFIG).read_bytes())
    detector = Detector(config)
    detector.load_state_dict(safetensors.torch.load_file(directory / WEIGHTS))
    return detector.eval()


def export(detector: Detector, path: Path) -> None:
    """Write a detector as an MLflow model: an exported graph with signature and dynamic batch."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.pytorch import save_model
    from mlflow.types import Schema, TensorSpec

    def tensors(**shapes: tuple[int, ...]) -> Schema:
        kind = np.dtype("float32")
        return Schema([TensorSpec(kind, shape, name) for name, shape in shapes.items()])

    window = (detector.network.lead_nights + 1, HALF_HOURS)
    n_conditions = len(detector.config.conditions)
    save_model(
        detector,
        path,
        signature=ModelSignature(
            inputs=tensors(kwh=(-1, *window), level=(-1,), conditions=(-1, n_conditions)),
            outputs=tensors(expected=(-1, HALF_HOURS), half_hour=(-1, HALF_HOURS), score=(-1,)),
        ),
        input_example=tuple(
            np.ones((2, *shape), dtype=np.float32) for shape in (window, (), (n_conditions,))
        ),
        pip_requirements=["torch"],
        serialization_format="pt2",
    )
