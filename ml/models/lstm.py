"""The LSTM forecaster (Hochreiter & Schmidhuber 1997): 100 half-hours in, the next 12 out."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from ml.models.base import ForecastingNetwork, NetworkConfig, TrainingRecipe


class LstmConfig(NetworkConfig):
    """Sizes of the network, which is there to compare with: given, not tuned."""

    width: int = Field(64, ge=1, description="units of a layer's state")
    layers: int = Field(2, ge=1, description="recurrent layers")
    dropout: float = Field(0.1, ge=0, lt=1)


class Lstm(ForecastingNetwork):
    """Forecasts from the last state of the last layer."""

    config_class: ClassVar[type[NetworkConfig]] = LstmConfig
    scoring_batch_size: ClassVar[int] = 64
    recipe: ClassVar[TrainingRecipe] = TrainingRecipe(
        max_epochs=10,
        learning_rate=1e-3,
        batch_size=256,
        epoch_size=1 << 14,
        validation_size=1 << 11,
    )

    def __init__(self, config: LstmConfig) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(
            1, config.width, config.layers, batch_first=True, dropout=config.dropout
        )
        self.head = nn.Linear(config.width, self.horizon_half_hours)

    def encode_context(self, context: Tensor) -> Tensor:
        """Return the state `[N, width]` after the last half-hour."""
        states: Tensor = self.recurrent(context[..., None])[0]
        return states[:, -1]
