"""The networks by name. A new model is a module of its own and one line in `NETWORK_MODULES`.

A network is imported when it is asked for: torch takes seconds to import, and the command line
lists the models without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final, Literal, get_args

if TYPE_CHECKING:
    from ml.models.base import Network

ModelName = Literal[
    "batchnorm_autoencoder", "conditional_autoencoder", "history_network", "lstm", "transformer"
]
NETWORK_MODULES: Final[dict[ModelName, tuple[str, str]]] = {
    "batchnorm_autoencoder": ("ml.models.batchnorm_autoencoder", "BatchnormAutoencoder"),
    "conditional_autoencoder": ("ml.models.conditional_autoencoder", "ConditionalAutoencoder"),
    "history_network": ("ml.models.history.network", "HistoryNetwork"),
    "lstm": ("ml.models.lstm", "Lstm"),
    "transformer": ("ml.models.transformer", "Transformer"),
}
"""Module and class of each network, by the model's name on the command line."""
MODEL_NAMES: Final[tuple[ModelName, ...]] = get_args(ModelName)
DEFAULT_MODEL: Final[ModelName] = "history_network"


def import_network_class(name: ModelName) -> type["Network"]:
    """Import the module of a model and return its network class.

    Raises:
        ValueError: there is no such model.
    """
    if name not in NETWORK_MODULES:
        raise ValueError(f"no model {name!r}; there are {', '.join(MODEL_NAMES)}")
    module, class_name = NETWORK_MODULES[name]
    network_class: type[Network] = getattr(import_module(module), class_name)
    return network_class
