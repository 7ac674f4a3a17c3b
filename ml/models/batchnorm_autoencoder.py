"""The batch-normalised autoencoder: 48 readings through 64, 32 and 16 to 8, and mirrored.

Batch normalisation is that of Ioffe & Szegedy 2015. Only the readings of the night are given.
"""

from itertools import pairwise
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from ml.models.base import ErrorScoredNetwork, NetworkConfig, TrainingRecipe
from ml.schemas import HALF_HOURS


class BatchnormAutoencoderConfig(NetworkConfig):
    """Sizes of the network, which is there to compare with: given, not tuned."""

    widths: tuple[int, ...] = Field(
        (64, 32, 16), min_length=1, description="units of the layers, from the readings inwards"
    )
    latent: int = Field(8, ge=1, description="values of the bottleneck")
    dropout: float = Field(0.1, ge=0, lt=1)


class BatchnormAutoencoder(ErrorScoredNetwork):
    """Reconstructs the night from its readings."""

    config_class: ClassVar[type[NetworkConfig]] = BatchnormAutoencoderConfig
    recipe: ClassVar[TrainingRecipe] = TrainingRecipe(learning_rate=1e-3, patience=10)

    def __init__(self, config: BatchnormAutoencoderConfig) -> None:
        super().__init__()
        inwards = (HALF_HOURS, *config.widths)
        outwards = (config.latent, *config.widths[::-1])
        self.encoder = nn.Sequential(
            *_build_layers(inwards, config.dropout), nn.Linear(inwards[-1], config.latent)
        )
        self.decoder = nn.Sequential(
            *_build_layers(outwards, config.dropout), nn.Linear(outwards[-1], HALF_HOURS)
        )

    def encode_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:  # noqa: ARG002 (unconditional)
        """Return the night's latent point `[B, latent]`."""
        latent: Tensor = self.encoder(readings[:, -1])
        return latent

    def predict_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:
        """Return the night's reconstructed readings `[B, 48]`."""
        reconstructed: Tensor = self.decoder(self.encode_standardized(readings, conditions))
        return reconstructed


def _build_layers(widths: tuple[int, ...], dropout: float) -> list[nn.Module]:
    return [
        nn.Sequential(nn.Linear(one, other), nn.BatchNorm1d(other), nn.ReLU(), nn.Dropout(dropout))
        for one, other in pairwise(widths)
    ]
