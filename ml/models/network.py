"""What every network is: household-nights with their past in; what was expected and a score out."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ml.features import CONDITIONS
from ml.schemas import HALF_HOURS


class Windows(NamedTuple):
    """A batch of household-nights with what came before each."""

    kwh: Tensor
    """`[B, lead_nights + 1, 48]` kWh per half-hour, NaN where missing; last the night itself."""
    level: Tensor
    """`[B]` kWh per half-hour that is usual for the household before the night."""
    conditions: Tensor
    """`[B, 15]`, NaN where unknown."""


class Judged(NamedTuple):
    """What a network makes of a batch."""

    expected: Tensor
    """`[B, 48]` kWh per half-hour."""
    half_hour: Tensor
    """`[B, 48]` how far each half-hour deviates, higher is more anomalous; NaN where missing."""
    score: Tensor
    """`[B]` higher is more anomalous."""


class NetworkConfig(BaseModel):
    """Sizes of a network."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Recipe(BaseModel):
    """How a network is trained unless someone wishes otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_epochs: int = Field(20, ge=1, le=100)
    patience: int = Field(5, ge=1, description="epochs without a better validation before the end")
    batch_size: int = Field(1024, ge=1)
    epoch_size: int = Field(1 << 17, ge=1, description="most household-nights drawn an epoch")
    validation_size: int = Field(1 << 16, ge=1, description="most household-nights validated on")
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="of the running mean of the weights, if one is kept"
    )


class Network(nn.Module, ABC):
    """A network that judges household-nights; the scales of its inputs are buffers."""

    lead_nights: ClassVar[int] = 0
    """Nights of readings wanted before the night."""
    two_sided: ClassVar[bool] = True
    """Whether an unusually low score is as suspicious as a high one."""
    at_once: ClassVar[int] = 2048
    """Household-nights that are judged at once: what is fastest on a CPU."""
    config_class: ClassVar[type[NetworkConfig]]
    recipe: ClassVar[Recipe] = Recipe()

    @abstractmethod
    def fit_scales(self, windows: Windows) -> None:
        """Take the scales of the inputs from training rows."""

    @abstractmethod
    def forward(self, windows: Windows) -> Judged:
        """Judge each household-night by itself, whatever shares its batch."""

    @abstractmethod
    def latent(self, windows: Windows) -> Tensor:
        """What the network sums a household-night up in before it answers, `[B, n]`."""

    @abstractmethod
    def loss(self, windows: Windows) -> Tensor:
        """What training lowers, a scalar; may draw from torch's generator, seeded by the loop."""


class Standard(nn.Module):
    """Columns in units of their own mean and standard deviation, which are buffers."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, values: Tensor) -> None:
        """Take the scales of `[N, width]`, NaN left out; a constant column has scale 1."""
        self.mean = torch.nan_to_num(values.nanmean(dim=0))
        scale = torch.nan_to_num(((values - self.mean) ** 2).nanmean(dim=0).sqrt())
        self.scale = torch.where(scale > 1e-6, scale, 1.0)

    def forward(self, values: Tensor) -> Tensor:
        """Standardise `[..., width]`; NaN stays NaN."""
        standard: Tensor = (values - self.mean) / self.scale
        return standard

    def undo(self, standard: Tensor) -> Tensor:
        """Back from standard units."""
        return standard * self.scale + self.mean


class ExpectingNetwork(Network):
    """A network that expects a profile; what it is off by is its score.

    Readings are log(1 + kWh / level), standardised by half-hour.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readings, self.conditions = Standard(HALF_HOURS), Standard(len(CONDITIONS))

    @abstractmethod
    def expect(self, readings: Tensor, conditions: Tensor) -> Tensor:
        """The night's readings as expected, `[B, 48]`.

        `readings` `[B, lead_nights + 1, 48]` and `conditions` `[B, 15]` are standardised; what is
        missing stands at its mean, 0.
        """

    @abstractmethod
    def code(self, readings: Tensor, conditions: Tensor) -> Tensor:
        """What `expect` rests on, `[B, n]`; arguments as there."""

    def latent(self, windows: Windows) -> Tensor:
        """What the expected profile rests on."""
        standard = self.readings(in_level_units(windows))
        return self.code(*self._known(standard, windows.conditions))

    def fit_scales(self, windows: Windows) -> None:
        """Scales of each half-hour and condition, NaN left out."""
        self.readings.fit(in_level_units(windows)[:, -1])
        self.conditions.fit(windows.conditions)

    def forward(self, windows: Windows) -> Judged:
        """Score by the log mean squared error over the observed half-hours."""
        x = in_level_units(windows)
        expected = self.readings.undo(self._expected(self.readings(x), windows.conditions))
        deviation = (x[:, -1] - expected).abs()
        squares = torch.nan_to_num(deviation) ** 2
        error = squares.sum(dim=1) / (~deviation.isnan()).sum(dim=1).clamp(min=1)
        kwh = torch.expm1(expected) * windows.level[:, None]
        return Judged(kwh, deviation, torch.log(error + 1e-6))

    def loss(self, windows: Windows) -> Tensor:
        """Mean squared error over the observed half-hours, in standard units."""
        standard = self.readings(in_level_units(windows))
        return mean_square(self._expected(standard, windows.conditions) - standard[:, -1])

    def _expected(self, standard: Tensor, conditions: Tensor) -> Tensor:
        return self.expect(*self._known(standard, conditions)).to(standard.dtype)

    def _known(self, standard: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Readings and conditions in standard units, what is missing at its mean."""
        known = torch.nan_to_num(self.conditions(conditions), nan=0.0)
        return torch.nan_to_num(standard, nan=0.0), known


class ForecastingNetwork(ExpectingNetwork):
    """A network that forecasts a night in blocks, each from the half-hours right before it."""

    lead_nights: ClassVar[int] = 3
    at_once: ClassVar[int] = 16
    window: ClassVar[int] = 100
    horizon: ClassVar[int] = 12

    head: nn.Linear

    @abstractmethod
    def state(self, past: Tensor) -> Tensor:
        """What `past` `[N, window]`, standardised readings, comes to before the head, `[N, n]`."""

    def forecast(self, past: Tensor) -> Tensor:
        """The standardised readings `[N, horizon]` that follow `past` `[N, window]`."""
        following: Tensor = self.head(self.state(past))
        return following

    def code(self, readings: Tensor, conditions: Tensor) -> Tensor:  # noqa: ARG002 (unconditional)
        """The state before the night's last block."""
        return self.state(self._pasts(readings)[:, -1])

    def expect(self, readings: Tensor, conditions: Tensor) -> Tensor:  # noqa: ARG002 (unconditional)
        """Forecast every block of the night."""
        return self.forecast(self._pasts(readings).flatten(0, 1)).view(-1, HALF_HOURS)

    def loss(self, windows: Windows) -> Tensor:
        """Mean squared error of one block of each night, drawn at random, in standard units."""
        standard = self.readings(in_level_units(windows))
        pasts = self._pasts(torch.nan_to_num(standard, nan=0.0))
        rows = torch.arange(len(pasts), device=pasts.device)
        block = torch.randint(pasts.shape[1], (len(pasts),), device=pasts.device)
        forecast = self.forecast(pasts[rows, block]).to(standard.dtype)
        return mean_square(forecast - standard[:, -1].unflatten(1, (-1, self.horizon))[rows, block])

    def _pasts(self, readings: Tensor) -> Tensor:
        """The half-hours before each block, `[B, 48 / horizon, window]`."""
        first = self.lead_nights * HALF_HOURS - self.window
        series = readings.flatten(1)[:, first : -self.horizon]
        return series.unfold(1, self.window, self.horizon)


def in_level_units(windows: Windows) -> Tensor:
    """Readings as log(1 + kWh / level), in the shape of `windows.kwh`."""
    return torch.log1p(windows.kwh / windows.level[:, None, None])


def mean_square(deviation: Tensor) -> Tensor:
    """Mean of the squares that are there, a scalar; NaN counts for nothing, nor its gradient."""
    observed = ~deviation.isnan()
    squares = torch.where(observed, deviation, 0.0) ** 2
    return squares.sum() / observed.sum().clamp(min=1)
