"""One artefact: the network, the scales of its inputs and the calibration of its scores."""

from typing import Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ml.features import CONDITIONS
from ml.models.conditional_autoencoder import ConditionalAutoencoder, ConditionalAutoencoderConfig
from ml.schemas import HALF_HOURS

CALIBRATION_SIZE: Final = 1 << 18

ModelName = Literal["conditional_autoencoder"]


class DetectorConfig(BaseModel):
    """All that is needed to rebuild a detector before its weights are loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelName = "conditional_autoencoder"
    network: ConditionalAutoencoderConfig = ConditionalAutoencoderConfig()
    conditions: tuple[str, ...] = Field(CONDITIONS, description="what the network is told")
    calibration_size: int = Field(0, ge=0, description="household-nights of the calibration")


class Detector(nn.Module):
    """A network between the scales it was trained with; every figure is a buffer and travels along.

    The buffers hold what training and calibration saw and are never taken from a scored batch.
    """

    reading_mean: Tensor
    reading_scale: Tensor
    residual_scale: Tensor
    condition_mean: Tensor
    condition_scale: Tensor
    peer_center: Tensor
    peer_scale: Tensor
    calibration: Tensor

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.network = ConditionalAutoencoder(config.network)
        n_conditions = len(config.conditions)
        self.register_buffer("reading_mean", torch.zeros(HALF_HOURS))
        self.register_buffer("reading_scale", torch.ones(HALF_HOURS))
        self.register_buffer("residual_scale", torch.ones(HALF_HOURS))
        self.register_buffer("condition_mean", torch.zeros(n_conditions))
        self.register_buffer("condition_scale", torch.ones(n_conditions))
        self.register_buffer("peer_center", torch.zeros(()))
        self.register_buffer("peer_scale", torch.ones(()))
        self.register_buffer("calibration", torch.zeros(config.calibration_size))

    def fit_scales(self, x: Tensor, conditions: Tensor) -> None:
        """Take the scales of readings `[N, 48]` and conditions `[N, 15]`, NaN left out."""
        self.reading_mean, self.reading_scale = _mean_and_scale(x)
        self.condition_mean, self.condition_scale = _mean_and_scale(conditions)

    def fit_calibration(self, scores: Tensor) -> None:
        """Keep the scores `[N]` of ordinary household-nights, sorted, as a conformal reference."""
        kept = scores.sort().values
        if len(kept) > CALIBRATION_SIZE:
            places = torch.linspace(0, len(kept) - 1, CALIBRATION_SIZE, dtype=torch.float64)
            kept = kept[places.round().long()]
        self.calibration = kept.to(self.reading_mean.dtype)
        self.config = self.config.model_copy(update={"calibration_size": len(kept)})

    def standardise(self, x: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """What the network reads: missing half-hours and unknown conditions at their mean."""
        readings = torch.nan_to_num((x - self.reading_mean) / self.reading_scale, nan=0.0)
        known = torch.nan_to_num((conditions - self.condition_mean) / self.condition_scale, nan=0.0)
        return readings, known

    def forward(self, x: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Expected readings `[B, 48]` and log mean squared error `[B]` over observed half-hours.

        `x` is log(1 + kWh / level), NaN where missing; `conditions` NaN where unknown.
        """
        standard = self.network(*self.standardise(x, conditions))
        expected = standard * self.reading_scale + self.reading_mean
        observed = ~torch.isnan(x)
        squares = torch.where(observed, (torch.nan_to_num(x) - expected) ** 2, 0.0)
        error = squares.sum(dim=1) / observed.sum(dim=1).clamp(min=1)
        return expected, torch.log(error + 1e-6)


def _mean_and_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, NaN left out; a constant column has scale 1."""
    mean = torch.nan_to_num(values.nanmean(dim=0))
    scale = torch.nan_to_num(((values - mean) ** 2).nanmean(dim=0).sqrt())
    return mean, torch.where(scale > 1e-6, scale, 1.0)
