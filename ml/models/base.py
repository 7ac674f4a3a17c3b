"""The interface of every network: windows of readings in, expected profiles and log odds out."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Final, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ml.conditions import CONDITIONS
from ml.schemas import HALF_HOURS


class Windows(NamedTuple):
    """A batch of household-nights with the readings before each."""

    kwh: Tensor
    """`[B, context_nights + 1, 48]` kWh per half-hour, NaN where missing; last the night itself."""
    level: Tensor
    """`[B]` usual kWh per half-hour of the household before the night."""
    conditions: Tensor
    """`[B, 15]` as `ml.conditions.CONDITIONS`, NaN where unknown."""


class NetworkOutput(NamedTuple):
    """A network's output for a batch of household-nights."""

    expected_kwh: Tensor
    """`[B, 48]` the expected profile, kWh per half-hour."""
    half_hour_log_odds: Tensor
    """`[B, 48]` deviation of each half-hour, NaN where missing: log odds of an anomaly, or the
    absolute error of log readings where `score_kind` is "error"."""
    log_odds: Tensor
    """`[B]` the night's log odds, or its log mean squared error; higher is more anomalous."""


NetworkFunction = Callable[[Windows], NetworkOutput]
"""A function that scores household-nights: a network, or a program exported from it."""
ScoreKind = Literal["error", "log_odds"]
"""`"error"`: the score is the log of a reconstruction error, and an unusually small one is as
suspicious as a large one, so it is compared with the household's own usual error. `"log_odds"`: the
score is the log odds of an anomaly; only a high one is suspicious."""

MIN_SCALE: Final = 1e-6
"""Least standard deviation that a column is divided by, in the column's unit; below it the column
is constant up to rounding."""
MIN_MEAN_SQUARE: Final = 1e-6
"""Added to a mean squared error of log readings before its logarithm, so that a perfect prediction
has a finite score: an error of 0.1 % of a reading. Chosen."""

FIRST_RELEASE_SUBMODULES: Final[dict[str, str]] = {
    "network.readings.": "network.reading_standardizer.",
    "network.conditions.": "network.condition_standardizer.",
    "network.condition.": "network.condition_encoder.",
    "network.last.": "network.last_layer.",
}
"""Prefixes of tensors in a model version written by release 0.1.0, and what they are called now.
Each ends with a dot, so that `network.condition.` does not match `network.conditions.`."""


class NetworkConfig(BaseModel):
    """Sizes of a network, stored with each model version; each network extends it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainingRecipe(BaseModel):
    """Defaults of a network's training, which `FitParameters` may override."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_epochs: int = Field(20, ge=1, le=100, description="passes over `epoch_size` nights")
    patience: int = Field(5, ge=1, description="epochs without a better validation before the end")
    batch_size: int = Field(1024, ge=1, description="household-nights of a step")
    epoch_size: int = Field(1 << 17, ge=1, description="most household-nights drawn an epoch")
    validation_size: int = Field(1 << 16, ge=1, description="most household-nights validated on")
    learning_rate: float = Field(3e-3, gt=0, description="of AdamW, at the start of its cosine")
    weight_decay: float = Field(1e-5, ge=0, description="of AdamW")


class Network(nn.Module, ABC):
    """A network that scores household-nights; the scales of its inputs are buffers."""

    context_nights: ClassVar[int] = 0
    """Nights of readings before the scored one that it is given."""
    score_kind: ClassVar[ScoreKind] = "error"
    """What the network's score is, which decides how it is calibrated."""
    scoring_batch_size: ClassVar[int] = 2048
    """Household-nights that are scored at once: measured as the fastest on a CPU."""
    single_precision_features: bool = False
    """Whether `loss` may compute features in the precision of the readings in training mode, which
    is faster on a CPU. Set by the training loop where it trains on a CPU in full precision; never
    on a GPU or under mixed precision, which round products of singles to three digits."""
    config_class: ClassVar[type[NetworkConfig]]
    recipe: ClassVar[TrainingRecipe] = TrainingRecipe()

    @abstractmethod
    def fit_scales(self, windows: Windows) -> None:
        """Fit the scales of the inputs to training windows."""

    @abstractmethod
    def forward(self, windows: Windows) -> NetworkOutput:
        """Return expected profile and log odds of each household-night.

        Each by itself: the result of a row must not depend on the rows that share its batch.
        """

    @abstractmethod
    def compute_latent(self, windows: Windows) -> Tensor:
        """Return the innermost encoding of each household-night, `[B, n]`, for plots."""

    @abstractmethod
    def loss(self, windows: Windows) -> Tensor:
        """Return the scalar that training minimises.

        May draw from torch's generator, which the training loop seeds by step.
        """

    def feature_names(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the network's computed inputs, in their order, by group.

        Conditions are named elsewhere (`ml.conditions.CONDITIONS`). Empty where a network is given
        readings and conditions only.
        """
        return {}


class Standardizer(nn.Module):
    """Standardise columns by a mean and a standard deviation, which are buffers."""

    mean: Tensor
    scale: Tensor

    def __init__(self, n_columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_columns))
        self.register_buffer("scale", torch.ones(n_columns))

    def fit(self, values: Tensor) -> None:
        """Fit mean and scale to `[N, n_columns]`, NaN left out.

        A constant or unobserved column gets scale 1, so that it stays constant.
        """
        self.mean = torch.nan_to_num(values.nanmean(dim=0))
        scale = torch.nan_to_num(((values - self.mean) ** 2).nanmean(dim=0).sqrt())
        self.scale = torch.where(scale > MIN_SCALE, scale, 1.0)

    def forward(self, values: Tensor) -> Tensor:
        """Return `[..., n_columns]` in standard deviations from the mean; NaN stays NaN."""
        standard: Tensor = (values - self.mean) / self.scale
        return standard

    def inverse_transform(self, standardized: Tensor) -> Tensor:
        """Return standardised values in the columns' own units."""
        return standardized * self.scale + self.mean


class ErrorScoredNetwork(Network):
    """A network that predicts the night's profile and scores the night by its error.

    Readings are log(1 + kWh / level), standardised by half-hour.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reading_standardizer = Standardizer(HALF_HOURS)
        self.condition_standardizer = Standardizer(len(CONDITIONS))

    @abstractmethod
    def predict_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:
        """Return the night's expected readings `[B, 48]`, standardised.

        `readings` `[B, context_nights + 1, 48]` and `conditions` `[B, 15]` are standardised, and 0,
        the mean, where missing.
        """

    @abstractmethod
    def encode_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:
        """Return the encoding `[B, n]` from which `predict_standardized` predicts."""

    def compute_latent(self, windows: Windows) -> Tensor:
        """Return the encoding from which the profile is predicted, `[B, n]`."""
        standardized = self.reading_standardizer(compute_log_readings(windows))
        readings, conditions = self._impute_inputs(standardized, windows.conditions)
        return self.encode_standardized(readings, conditions)

    def fit_scales(self, windows: Windows) -> None:
        """Fit the scales of each half-hour and condition, NaN left out."""
        self.reading_standardizer.fit(compute_log_readings(windows)[:, -1])
        self.condition_standardizer.fit(windows.conditions)

    def forward(self, windows: Windows) -> NetworkOutput:
        """Return the expected profile, absolute errors, and the log mean squared error.

        Errors are of log readings, over the observed half-hours.
        """
        log_readings = compute_log_readings(windows)
        expected = self.reading_standardizer.inverse_transform(
            self._predict_imputed(self.reading_standardizer(log_readings), windows.conditions)
        )
        error = (log_readings[:, -1] - expected).abs()
        n_observed = (~error.isnan()).sum(dim=1).clamp(min=1)
        mean_square = (torch.nan_to_num(error) ** 2).sum(dim=1) / n_observed
        expected_kwh = torch.expm1(expected) * windows.level[:, None]
        return NetworkOutput(expected_kwh, error, torch.log(mean_square + MIN_MEAN_SQUARE))

    def loss(self, windows: Windows) -> Tensor:
        """Return the mean squared error over the observed half-hours, in standard deviations."""
        standardized = self.reading_standardizer(compute_log_readings(windows))
        predicted = self._predict_imputed(standardized, windows.conditions)
        return nan_mean_square(predicted - standardized[:, -1])

    def _predict_imputed(self, standardized: Tensor, conditions: Tensor) -> Tensor:
        readings, conditions = self._impute_inputs(standardized, conditions)
        # Mixed precision predicts in half precision; errors are taken in the readings' own.
        return self.predict_standardized(readings, conditions).to(standardized.dtype)

    def _impute_inputs(self, standardized: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Return standardised readings and conditions, what is missing at its mean, 0."""
        standardized_conditions = self.condition_standardizer(conditions)
        return (
            torch.nan_to_num(standardized, nan=0.0),
            torch.nan_to_num(standardized_conditions, nan=0.0),
        )


class ForecastingNetwork(ErrorScoredNetwork):
    """A network that forecasts a night in four blocks, each from the half-hours right before it.

    Both forecasters are there to compare with: 100 half-hours in and 12 out were given, not tuned.
    """

    context_nights: ClassVar[int] = 3
    """The least nights that hold `context_half_hours` before the first block."""
    scoring_batch_size: ClassVar[int] = 16
    context_half_hours: ClassVar[int] = 100
    """Half-hours before a block that it is forecast from."""
    horizon_half_hours: ClassVar[int] = 12
    """Half-hours of a block."""

    head: nn.Linear

    @abstractmethod
    def encode_context(self, context: Tensor) -> Tensor:
        """Return the encoding `[N, n]` of standardised readings `[N, context_half_hours]`."""

    def forecast(self, context: Tensor) -> Tensor:
        """Return the readings `[N, horizon_half_hours]` that follow a context, standardised."""
        forecast: Tensor = self.head(self.encode_context(context))
        return forecast

    def encode_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:  # noqa: ARG002 (unconditional)
        """Return the encoding of the context before the night's last block."""
        return self.encode_context(self._unfold_contexts(readings)[:, -1])

    def predict_standardized(self, readings: Tensor, conditions: Tensor) -> Tensor:  # noqa: ARG002 (unconditional)
        """Return the forecasts of all blocks of the night, `[B, 48]`."""
        contexts = self._unfold_contexts(readings)
        return self.forecast(contexts.flatten(0, 1)).view(-1, HALF_HOURS)

    def loss(self, windows: Windows) -> Tensor:
        """Return the mean squared error of one block of each night, in standard deviations.

        The block is drawn at random: its neighbours would share most of its context.
        """
        standardized = self.reading_standardizer(compute_log_readings(windows))
        contexts = self._unfold_contexts(torch.nan_to_num(standardized, nan=0.0))
        rows = torch.arange(len(contexts), device=contexts.device)
        block = torch.randint(contexts.shape[1], (len(contexts),), device=contexts.device)
        forecast = self.forecast(contexts[rows, block]).to(standardized.dtype)
        blocks = standardized[:, -1].unflatten(1, (-1, self.horizon_half_hours))
        return nan_mean_square(forecast - blocks[rows, block])

    def _unfold_contexts(self, readings: Tensor) -> Tensor:
        """Return the half-hours before each block, `[B, blocks, context_half_hours]`."""
        first = self.context_nights * HALF_HOURS - self.context_half_hours
        series = readings.flatten(1)[:, first : -self.horizon_half_hours]
        return series.unfold(1, self.context_half_hours, self.horizon_half_hours)


def compute_log_readings(windows: Windows) -> Tensor:
    """Return the readings as log(1 + kWh / level), in the shape of `windows.kwh`."""
    return torch.log1p(windows.kwh / windows.level[:, None, None])


def nan_mean_square(deviation: Tensor) -> Tensor:
    """Return the mean of the squares, a scalar, NaN left out; 0 where all are NaN."""
    is_observed = ~deviation.isnan()
    # Replaced before they are squared: the gradient of a NaN left out afterwards would be NaN.
    squares = torch.where(is_observed, deviation, 0.0) ** 2
    return squares.sum() / is_observed.sum().clamp(min=1)
