"""A file a model: its configuration above its network. A new file is a new model.

Nothing of torch is imported before a network is asked for, so that the command line can name the
models at once.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from ml.models.network import Network

MODEL_NAMES: Final = tuple(sorted({module.name for module in iter_modules(__path__)} - {"network"}))
DEFAULT_MODEL: Final = "history_network"

if TYPE_CHECKING:
    ModelName = str
else:
    ModelName = Literal[MODEL_NAMES]


def import_network_class(name: ModelName) -> type["Network"]:
    """The network that the file of this name defines.

    Raises:
        ValueError: there is no such model.
    """
    if name not in MODEL_NAMES:
        raise ValueError(f"no model {name!r}; there are {', '.join(MODEL_NAMES)}")
    from ml.models.network import Network

    module = import_module(f"{__name__}.{name}")
    kinds = (kind for kind in vars(module).values() if isinstance(kind, type))
    own = (kind for kind in kinds if issubclass(kind, Network))
    (found,) = (kind for kind in own if kind.__module__ == module.__name__)
    return found
