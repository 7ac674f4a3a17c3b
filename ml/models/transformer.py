"""The transformer forecaster (Vaswani et al. 2017): 100 half-hours in, the next 12 out."""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ml.models.base import ForecastingNetwork, NetworkConfig, TrainingRecipe


class TransformerConfig(NetworkConfig):
    """Sizes of the network; `width` is a multiple of twice the heads."""

    width: int = Field(64, ge=2)
    heads: int = Field(4, ge=1)
    layers: int = Field(3, ge=1)
    feed_forward: int = Field(256, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)


class Transformer(ForecastingNetwork):
    """Each half-hour a token; the last one, having looked at all, is projected on the horizon."""

    config_class: ClassVar[type[NetworkConfig]] = TransformerConfig
    recipe: ClassVar[TrainingRecipe] = TrainingRecipe(
        learning_rate=1e-3,
        batch_size=64,
        epoch_size=1 << 12,
        validation_size=1 << 10,
        max_epochs=10,
    )
    positional_encoding: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(1, config.width)
        self.register_buffer(
            "positional_encoding",
            build_positional_encoding(self.context_half_hours, config.width),
            persistent=False,
        )
        sizes = (config.width, config.heads, config.feed_forward, config.dropout)
        layers = [
            nn.TransformerEncoderLayer(*sizes, batch_first=True) for _ in range(config.layers)
        ]
        self.layers, self.last_layer = nn.Sequential(*layers[:-1]), layers[-1]
        self.head = nn.Linear(config.width, self.horizon_half_hours)

    def encode_context(self, past: Tensor) -> Tensor:
        """The last token."""
        tokens = self.layers(self.projection(past[..., None]) + self.positional_encoding)
        return _encode_last_token(self.last_layer, tokens)


def _encode_last_token(layer: nn.TransformerEncoderLayer, tokens: Tensor) -> Tensor:
    """What a layer makes of the last token, `[N, width]`, without the work for all others."""
    token = tokens[:, -1:]
    attended, _ = layer.self_attn(token, tokens, tokens, need_weights=False)
    token = layer.norm1(token + layer.dropout1(attended))
    hidden = layer.dropout(nn.functional.relu(layer.linear1(token)))
    last: Tensor = layer.norm2(token + layer.dropout2(layer.linear2(hidden)))
    return last.squeeze(1)


def build_positional_encoding(length: int, width: int) -> Tensor:
    """Positions `[length, width]` as sines and cosines of falling frequency."""
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angle = torch.arange(length)[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)
