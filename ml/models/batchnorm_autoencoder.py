"""The batch-normalised autoencoder: 48 readings through 64, 32 and 16 to 8, and mirrored.

Ioffe & Szegedy 2015 for the normalisation. It knows the readings of the night alone.
"""

from itertools import pairwise
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from ml.models.base import ErrorScoredNetwork, NetworkConfig, TrainingRecipe
from ml.schemas import HALF_HOURS


class BatchnormAutoencoderConfig(NetworkConfig):
    """Sizes of the network, from the readings inwards."""

    widths: tuple[int, ...] = Field((64, 32, 16), min_length=1)
    latent: int = Field(8, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)


class BatchnormAutoencoder(ErrorScoredNetwork):
    """Readings `[B, 48]` in, readings rebuilt out."""

    config_class: ClassVar[type[NetworkConfig]] = BatchnormAutoencoderConfig
    recipe: ClassVar[TrainingRecipe] = TrainingRecipe(learning_rate=1e-3, patience=10)

    def __init__(self, config: BatchnormAutoencoderConfig) -> None:
        super().__init__()
        inwards, outwards = (HALF_HOURS, *config.widths), (config.latent, *config.widths[::-1])
        self.encoder = nn.Sequential(
            *_build_layers(inwards, config.dropout), nn.Linear(inwards[-1], config.latent)
        )
        self.decoder = nn.Sequential(
            *_build_layers(outwards, config.dropout), nn.Linear(outwards[-1], HALF_HOURS)
        )

    def encode_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:  # noqa: ARG002 (unconditional)
        """The latent point `[B, latent]`."""
        z: Tensor = self.encoder(readings[:, -1])
        return z

    def predict_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:
        """Rebuild the night."""
        rebuilt: Tensor = self.decoder(self.encode_standardized(readings, conditions))
        return rebuilt


def _build_layers(widths: tuple[int, ...], dropout: float) -> list[nn.Module]:
    return [
        nn.Sequential(nn.Linear(one, other), nn.BatchNorm1d(other), nn.ReLU(), nn.Dropout(dropout))
        for one, other in pairwise(widths)
    ]
