"""The conditional autoencoder of the London study: 48 readings and 15 conditions through a plane.

A reconstruction that knows the calendar, the weather and the kind of household; its bottleneck of
two is meant to be looked at.
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class ConditionalAutoencoderConfig(BaseModel):
    """Sizes of the network; 48, 15, 8 and 2 make 1,106 parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_readings: int = Field(48, ge=1)
    n_conditions: int = Field(15, ge=0)
    hidden: int = Field(8, ge=1)
    latent: int = Field(2, ge=1)


class ConditionalAutoencoder(nn.Module):
    """Readings `[B, n_readings]` and conditions `[B, n_conditions]` in, readings rebuilt out."""

    def __init__(self, config: ConditionalAutoencoderConfig) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(config.n_readings + config.n_conditions, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(config.latent + config.n_conditions, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.n_readings),
        )

    def encode(self, x: Tensor, conditions: Tensor) -> Tensor:
        """The latent point `[B, latent]`."""
        z: Tensor = self.encoder(torch.cat((x, conditions), dim=1))
        return z

    def decode(self, z: Tensor, conditions: Tensor) -> Tensor:
        """The readings `[B, n_readings]` of a latent point under these conditions."""
        x: Tensor = self.decoder(torch.cat((z, conditions), dim=1))
        return x

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:
        """Rebuild `x`."""
        return self.decode(self.encode(x, conditions), conditions)
