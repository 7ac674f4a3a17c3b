"""The parameters of a training, and the processes that share it."""

from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field, model_validator

from ml.models import DEFAULT_MODEL, ModelName, import_network_class
from ml.models.base import TrainingRecipe


class FitParameters(TrainingRecipe):
    """How a network is trained: the recipe of its model, except for the fields that are given.

    Part of the key under which a stopped training is found again: same parameters, same key.
    """

    model: ModelName = DEFAULT_MODEL
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="of the initial weights, the batches and what a loss draws",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, values: Any) -> Any:
        """Take from the model's own recipe what is not given."""
        if isinstance(values, cls):
            return values
        recipe = import_network_class(values.get("model", DEFAULT_MODEL)).recipe
        return recipe.model_dump() | values


@dataclass(frozen=True)
class TrainingProcesses:
    """The processes that train together, each with one device, and the rank of this one."""

    rank: int = 0
    """Of this process among all, 0 to `n_processes` - 1; rank 0 writes and registers."""
    n_processes: int = 1
    n_machines: int = 1


SINGLE_PROCESS: Final = TrainingProcesses()
