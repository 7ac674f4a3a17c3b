"""The conditional autoencoder of the London study: a reconstruction through a plane.

It is given the night's 48 readings and 15 conditions (calendar, weather, kind of household). The
bottleneck has two values, so that it can be plotted.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ml.conditions import CONDITIONS
from ml.models.base import ErrorScoredNetwork, NetworkConfig, TrainingRecipe
from ml.schemas import HALF_HOURS


class ConditionalAutoencoderConfig(NetworkConfig):
    """Sizes of the network, those of the study: 1,106 parameters."""

    hidden: int = Field(8, ge=1, description="units of the hidden layers")
    latent: int = Field(2, ge=1, description="values of the bottleneck")


class ConditionalAutoencoder(ErrorScoredNetwork):
    """Reconstructs the night from its readings and conditions."""

    config_class: ClassVar[type[NetworkConfig]] = ConditionalAutoencoderConfig
    # A step of so small a network costs the same for 4,096 nights as for a hundred; the learning
    # rate is raised with the batch.
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
        """Return the latent point `[B, latent]` of standardised readings `[B, 48]`."""
        latent: Tensor = self.encoder(torch.cat((readings, conditions), dim=1))
        return latent

    def decode(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Return the standardised readings `[B, 48]` of a latent point under these conditions."""
        readings: Tensor = self.decoder(torch.cat((latent, conditions), dim=1))
        return readings

    def encode_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:
        """Return the night's latent point `[B, latent]`."""
        return self.encode(readings[:, -1], conditions)

    def predict_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:
        """Return the night's reconstructed readings `[B, 48]`."""
        return self.decode(self.encode_standardized(readings, conditions), conditions)
