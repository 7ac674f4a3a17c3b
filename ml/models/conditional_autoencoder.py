"""The conditional autoencoder of the London study: 48 readings and 15 conditions through a plane.

A reconstruction that knows the calendar, the weather and the kind of household; its bottleneck of
two is meant to be looked at.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ml.conditions import CONDITIONS
from ml.models.base import ErrorScoredNetwork, NetworkConfig, TrainingRecipe
from ml.schemas import HALF_HOURS


class ConditionalAutoencoderConfig(NetworkConfig):
    """Sizes of the network; 8 and 2 make 1,106 parameters."""

    hidden: int = Field(8, ge=1)
    latent: int = Field(2, ge=1)


class ConditionalAutoencoder(ErrorScoredNetwork):
    """Readings `[B, 48]` and conditions `[B, 15]` in, readings rebuilt out."""

    config_class: ClassVar[type[NetworkConfig]] = ConditionalAutoencoderConfig
    # A step of so small a network costs the same for a few thousand nights as for a hundred.
    recipe: ClassVar[TrainingRecipe] = TrainingRecipe(batch_size=4096, learning_rate=1.5e-2)

    def __init__(self, config: ConditionalAutoencoderConfig) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(HALF_HOURS + len(CONDITIONS), config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(config.latent + len(CONDITIONS), config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, HALF_HOURS),
        )

    def encode(self, readings: Tensor, conditions: Tensor) -> Tensor:
        """The latent point `[B, latent]`."""
        z: Tensor = self.encoder(torch.cat((readings, conditions), dim=1))
        return z

    def decode(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """The readings `[B, 48]` of a latent point under these conditions."""
        x: Tensor = self.decoder(torch.cat((latent, conditions), dim=1))
        return x

    def encode_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:
        """The night encoded."""
        return self.encode(readings[:, -1], conditions)

    def predict_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:
        """Rebuild the night."""
        return self.decode(self.encode_standardized(readings, conditions), conditions)
