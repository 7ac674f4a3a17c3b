"""The parameters of a training, and the processes that share it."""

from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field, model_validator

from ml.models import DEFAULT_MODEL, ModelName, import_network_class
from ml.models.base import TrainingRecipe


class FitParameters(TrainingRecipe):
    """How a network is trained: its own recipe, except for what is given."""

    model: ModelName = DEFAULT_MODEL
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, values: Any) -> Any:
        """Fill in the model's own recipe."""
        if isinstance(values, cls):
            return values
        return import_network_class(values.get("model", DEFAULT_MODEL)).recipe.model_dump() | values


@dataclass(frozen=True)
class TrainingProcesses:
    """The processes, a device each, that train together, and which of them this is."""

    rank: int = 0
    n_processes: int = 1
    n_machines: int = 1


SINGLE_PROCESS: Final = TrainingProcesses()
