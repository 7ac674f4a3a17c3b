"""What every network is: household-nights with their past in; what was expected and a score out."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Final, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ml.conditions import CONDITIONS
from ml.schemas import HALF_HOURS


class Windows(NamedTuple):
    """A batch of household-nights with what came before each."""

    kwh: Tensor
    """`[B, lead_nights + 1, 48]` kWh per half-hour, NaN where missing; last the night itself."""
    level: Tensor
    """`[B]` kWh per half-hour that is usual for the household before the night."""
    conditions: Tensor
    """`[B, 15]`, NaN where unknown."""


class NetworkOutput(NamedTuple):
    """What a network makes of a batch."""

    expected_kwh: Tensor
    """`[B, 48]` kWh per half-hour."""
    half_hour_log_odds: Tensor
    """`[B, 48]` how far each half-hour deviates, higher is more anomalous; NaN where missing."""
    log_odds: Tensor
    """`[B]` higher is more anomalous."""


NetworkFunction = Callable[[Windows], NetworkOutput]
"""A function that scores household-nights: a network, or a program exported from it."""
ScoreKind = Literal["error", "log_odds"]
"""`"error"`: the score is the log of a reconstruction error, and an unusually small one is as
suspicious as a large one, so it is compared with the household's own usual error. `"log_odds"`: the
score is the log odds of an anomaly; only a high one is suspicious."""

FIRST_RELEASE_SUBMODULES: Final[dict[str, str]] = {
    "network.readings.": "network.reading_standardizer.",
    "network.conditions.": "network.condition_standardizer.",
    "network.condition.": "network.condition_encoder.",
    "network.last.": "network.last_layer.",
}
"""Prefixes of tensors in a model version written by release 0.1.0, and what they are called now.
Each ends with a dot, so that `network.condition.` does not match `network.conditions.`."""


class NetworkConfig(BaseModel):
    """Sizes of a network."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainingRecipe(BaseModel):
    """How a network is trained unless someone wishes otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_epochs: int = Field(20, ge=1, le=100)
    patience: int = Field(5, ge=1, description="epochs without a better validation before the end")
    batch_size: int = Field(1024, ge=1)
    epoch_size: int = Field(1 << 17, ge=1, description="most household-nights drawn an epoch")
    validation_size: int = Field(1 << 16, ge=1, description="most household-nights validated on")
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(1e-5, ge=0)


class Network(nn.Module, ABC):
    """A network that judges household-nights; the scales of its inputs are buffers."""

    context_nights: ClassVar[int] = 0
    """Nights of readings wanted before the night."""
    score_kind: ClassVar[ScoreKind] = "error"
    """What the network's score is, which decides how it is calibrated."""
    scoring_batch_size: ClassVar[int] = 2048
    """Household-nights that are judged at once: what is fastest on a CPU."""
    single_precision_features: bool = False
    """Whether `loss` may compute features in the precision of the readings in training mode, which
    is faster on a CPU. Set by the training loop where it trains on a CPU in full precision; never
    on a GPU or under mixed precision, which round products of singles to three digits."""
    config_class: ClassVar[type[NetworkConfig]]
    recipe: ClassVar[TrainingRecipe] = TrainingRecipe()

    @abstractmethod
    def fit_scales(self, windows: Windows) -> None:
        """Take the scales of the inputs from training rows."""

    @abstractmethod
    def forward(self, windows: Windows) -> NetworkOutput:
        """Judge each household-night by itself, whatever shares its batch."""

    @abstractmethod
    def compute_latent(self, windows: Windows) -> Tensor:
        """What the network sums a household-night up in before it answers, `[B, n]`."""

    @abstractmethod
    def loss(self, windows: Windows) -> Tensor:
        """What training lowers, a scalar; may draw from torch's generator, seeded by the loop."""

    def feature_names(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the network's computed inputs, in their order, by group.

        Conditions are named elsewhere (`ml.conditions.CONDITIONS`). Empty where a network is given
        readings and conditions only.
        """
        return {}


class Standardizer(nn.Module):
    """Columns in units of their own mean and standard deviation, which are buffers."""

    mean: Tensor
    scale: Tensor

    def __init__(self, n_columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_columns))
        self.register_buffer("scale", torch.ones(n_columns))

    def fit(self, values: Tensor) -> None:
        """Take the scales of `[N, width]`, NaN left out; a constant column has scale 1."""
        self.mean = torch.nan_to_num(values.nanmean(dim=0))
        scale = torch.nan_to_num(((values - self.mean) ** 2).nanmean(dim=0).sqrt())
        self.scale = torch.where(scale > 1e-6, scale, 1.0)

    def forward(self, values: Tensor) -> Tensor:
        """Standardise `[..., width]`; NaN stays NaN."""
        standard: Tensor = (values - self.mean) / self.scale
        return standard

    def inverse_transform(self, standardized: Tensor) -> Tensor:
        """Back from standard units."""
        return standardized * self.scale + self.mean


class ErrorScoredNetwork(Network):
    """A network that expects a profile; what it is off by is its score.

    Readings are log(1 + kWh / level), standardised by half-hour.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reading_standardizer, self.condition_standardizer = (
            Standardizer(HALF_HOURS),
            Standardizer(len(CONDITIONS)),
        )

    @abstractmethod
    def predict_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:
        """The night's readings as expected, `[B, 48]`.

        `readings` `[B, lead_nights + 1, 48]` and `conditions` `[B, 15]` are standardised; what is
        missing stands at its mean, 0.
        """

    @abstractmethod
    def encode_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:
        """What `expect` rests on, `[B, n]`; arguments as there."""

    def compute_latent(self, windows: Windows) -> Tensor:
        """What the expected profile rests on."""
        standard = self.reading_standardizer(compute_log_readings(windows))
        return self.encode_standardized(*self._impute_inputs(standard, windows.conditions))

    def fit_scales(self, windows: Windows) -> None:
        """Scales of each half-hour and condition, NaN left out."""
        self.reading_standardizer.fit(compute_log_readings(windows)[:, -1])
        self.condition_standardizer.fit(windows.conditions)

    def forward(self, windows: Windows) -> NetworkOutput:
        """Score by the log mean squared error over the observed half-hours."""
        x = compute_log_readings(windows)
        expected = self.reading_standardizer.inverse_transform(
            self._predict_imputed(self.reading_standardizer(x), windows.conditions)
        )
        deviation = (x[:, -1] - expected).abs()
        squares = torch.nan_to_num(deviation) ** 2
        error = squares.sum(dim=1) / (~deviation.isnan()).sum(dim=1).clamp(min=1)
        kwh = torch.expm1(expected) * windows.level[:, None]
        return NetworkOutput(kwh, deviation, torch.log(error + 1e-6))

    def loss(self, windows: Windows) -> Tensor:
        """Mean squared error over the observed half-hours, in standard units."""
        standard = self.reading_standardizer(compute_log_readings(windows))
        return nan_mean_square(
            self._predict_imputed(standard, windows.conditions) - standard[:, -1]
        )

    def _predict_imputed(self, standardized: Tensor, conditions: Tensor) -> Tensor:
        return self.predict_standardized(*self._impute_inputs(standardized, conditions)).to(
            standardized.dtype
        )

    def _impute_inputs(self, standardized: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Readings and conditions in standard units, what is missing at its mean."""
        known = torch.nan_to_num(self.condition_standardizer(conditions), nan=0.0)
        return torch.nan_to_num(standardized, nan=0.0), known


class ForecastingNetwork(ErrorScoredNetwork):
    """A network that forecasts a night in blocks, each from the half-hours right before it."""

    context_nights: ClassVar[int] = 3
    scoring_batch_size: ClassVar[int] = 16
    context_half_hours: ClassVar[int] = 100
    horizon_half_hours: ClassVar[int] = 12

    head: nn.Linear

    @abstractmethod
    def encode_context(self, context: Tensor) -> Tensor:
        """What `past` `[N, window]`, standardised readings, comes to before the head, `[N, n]`."""

    def forecast(self, context: Tensor) -> Tensor:
        """The standardised readings `[N, horizon]` that follow `past` `[N, window]`."""
        following: Tensor = self.head(self.encode_context(context))
        return following

    def encode_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:  # noqa: ARG002 (unconditional)
        """The state before the night's last block."""
        return self.encode_context(self._unfold_contexts(readings)[:, -1])

    def predict_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:  # noqa: ARG002 (unconditional)
        """Forecast every block of the night."""
        return self.forecast(self._unfold_contexts(readings).flatten(0, 1)).view(-1, HALF_HOURS)

    def loss(self, windows: Windows) -> Tensor:
        """Mean squared error of one block of each night, drawn at random, in standard units."""
        standard = self.reading_standardizer(compute_log_readings(windows))
        pasts = self._unfold_contexts(torch.nan_to_num(standard, nan=0.0))
        rows = torch.arange(len(pasts), device=pasts.device)
        block = torch.randint(pasts.shape[1], (len(pasts),), device=pasts.device)
        forecast = self.forecast(pasts[rows, block]).to(standard.dtype)
        return nan_mean_square(
            forecast - standard[:, -1].unflatten(1, (-1, self.horizon_half_hours))[rows, block]
        )

    def _unfold_contexts(self, readings: Tensor) -> Tensor:
        """The half-hours before each block, `[B, 48 / horizon, window]`."""
        first = self.context_nights * HALF_HOURS - self.context_half_hours
        series = readings.flatten(1)[:, first : -self.horizon_half_hours]
        return series.unfold(1, self.context_half_hours, self.horizon_half_hours)


def compute_log_readings(windows: Windows) -> Tensor:
    """Readings as log(1 + kWh / level), in the shape of `windows.kwh`."""
    return torch.log1p(windows.kwh / windows.level[:, None, None])


def nan_mean_square(deviation: Tensor) -> Tensor:
    """Mean of the squares that are there, a scalar; NaN counts for nothing, nor its gradient."""
    observed = ~deviation.isnan()
    squares = torch.where(observed, deviation, 0.0) ** 2
    return squares.sum() / observed.sum().clamp(min=1)
