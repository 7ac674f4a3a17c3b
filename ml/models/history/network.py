"""A denoising autoencoder with detection heads, told the household's own last six weeks.

It learns to tell real nights from corrupted ones, to point at the half-hours, and to rebuild what
was there before (outlier exposure, Hendrycks et al. 2019; denoising autoencoders, Vincent et al.
2008). No label is needed.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ml.conditions import CONDITIONS
from ml.models.base import (
    Network,
    NetworkConfig,
    NetworkOutput,
    ScoreKind,
    Standardizer,
    TrainingRecipe,
    Windows,
)
from ml.models.history.corruption import CORRUPTION_FAMILIES, corrupt_windows
from ml.models.history.features import (
    HISTORY_NIGHTS,
    HistoryFeatures,
    compute_history_features,
    impute_history,
    to_kwh,
    to_log_readings,
    usual_level_kwh,
)
from ml.schemas import HALF_HOURS

NIGHTS_PER_HISTORY = 4
"""Nights that share a history while training."""
CORRUPTIBLE_NIGHTS = 17
"""The last nights of a window that may be corrupted: two weeks of history among them."""
CONDITION_EMBEDDING_SIZE = 8


class HistoryNetworkConfig(NetworkConfig):
    """Sizes of the network."""

    width: int = Field(256, ge=1)
    blocks: int = Field(2, ge=0)
    channels: int = Field(16, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)


class _ResidualBlock(nn.Module):
    """A residual layer (He et al. 2016), normalised first."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.layers(x)
        return changed


class HistoryNetwork(Network):
    """The last six weeks, the conditions and a night in; log odds of an anomaly out."""

    context_nights: ClassVar[int] = HISTORY_NIGHTS + NIGHTS_PER_HISTORY - 1
    score_kind: ClassVar[ScoreKind] = "log_odds"
    scoring_batch_size: ClassVar[int] = 256
    config_class: ClassVar[type[NetworkConfig]] = HistoryNetworkConfig
    recipe: ClassVar[TrainingRecipe] = TrainingRecipe(
        max_epochs=18,
        patience=18,
        batch_size=64,
        epoch_size=1 << 15,
        validation_size=1 << 11,
        learning_rate=3e-3,
        weight_decay=0.1,
    )

    def __init__(self, config: HistoryNetworkConfig) -> None:
        super().__init__()
        self.condition_standardizer = Standardizer(len(CONDITIONS))
        n_half_hour, n_night = _count_features()
        self.half_hour_scale = nn.BatchNorm1d(n_half_hour, affine=False)
        self.night_scale = nn.BatchNorm1d(n_night, affine=False)
        self.convolution = nn.Conv1d(n_half_hour, config.channels, 5, padding=2)
        self.pointwise = nn.Conv1d(config.channels, 2 * config.channels, 1)
        self.condition_encoder = nn.Sequential(
            nn.Linear(len(CONDITIONS), CONDITION_EMBEDDING_SIZE), nn.GELU()
        )
        size = (HALF_HOURS + 4) * config.channels + n_night + CONDITION_EMBEDDING_SIZE
        self.trunk = nn.Sequential(
            nn.Dropout(config.dropout / 2),
            nn.Linear(size, config.width),
            *(_ResidualBlock(config.width, config.dropout) for _ in range(config.blocks)),
            nn.LayerNorm(config.width),
            nn.GELU(),
        )
        self.night_head = nn.Linear(config.width, 1 + len(CORRUPTION_FAMILIES))
        self.half_hour_head = nn.Linear(config.width, 2 * HALF_HOURS)
        self.local_head = nn.Conv1d(config.channels, 2, 1)

    def fit_scales(self, windows: Windows) -> None:
        """Scales of the conditions; those of the history are learnt with the network."""
        self.condition_standardizer.fit(windows.conditions)

    def forward(self, windows: Windows) -> NetworkOutput:
        """Log odds that the night, and that each half-hour, is not the household's own.

        Those of the night are of all families of corruptions together.
        """
        described, level = _compute_window_features(windows)
        logit, half_hour, expected = self._apply_heads(described, windows.conditions)
        kwh = to_kwh(expected[:, None].clamp(min=0), level)[:, 0]
        score = logit[:, 1:].logsumexp(dim=1) - logit[:, 0]
        return NetworkOutput(
            kwh, torch.where(windows.kwh[:, -1].isnan(), torch.nan, half_hour), score
        )

    def compute_latent(self, windows: Windows) -> Tensor:
        """What the heads are told, `[B, width]`."""
        _, hidden = self._encode_features(_compute_window_features(windows)[0], windows.conditions)
        return hidden

    def loss(self, windows: Windows) -> Tensor:
        """Cross-entropy of families and half-hours, and how well the real night is rebuilt."""
        observed = ~windows.kwh[:, -NIGHTS_PER_HISTORY:].isnan()
        real = augment_households(impute_history(windows.kwh, usual_level_kwh(windows.kwh)))
        level = usual_level_kwh(real[:, :HISTORY_NIGHTS])
        kept = real[:, :-CORRUPTIBLE_NIGHTS]
        corrupted = corrupt_windows(real[:, -CORRUPTIBLE_NIGHTS:], level, NIGHTS_PER_HISTORY)
        kwh = torch.cat((kept, corrupted.kwh), dim=1)
        history = kwh[:, :HISTORY_NIGHTS]
        level = usual_level_kwh(history)
        nights = torch.where(
            observed & _draw_visible_mask(observed), kwh[:, -NIGHTS_PER_HISTORY:], torch.nan
        )
        described = compute_history_features(history, nights, level)
        conditions = windows.conditions.repeat_interleave(NIGHTS_PER_HISTORY, dim=0)
        logit, half_hour, expected = self._apply_heads(described, conditions)
        target = to_log_readings(real[:, -NIGHTS_PER_HISTORY:], level).flatten(0, 1)
        binary = nn.functional.binary_cross_entropy_with_logits
        night_loss = nn.functional.cross_entropy(
            logit, corrupted.family_label[:, -NIGHTS_PER_HISTORY:].flatten()
        )
        shown = corrupted.is_changed[:, -NIGHTS_PER_HISTORY:].flatten(0, 1).to(logit.dtype)
        rebuilt = nn.functional.smooth_l1_loss(expected, target)
        return night_loss + 0.3 * binary(half_hour, shown) + 0.3 * rebuilt

    def _apply_heads(
        self, features: HistoryFeatures, conditions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[B, 1 + F]` of real and of families, log odds and expected units `[B, 48]`."""
        local, hidden = self._encode_features(features, conditions)
        wide = self.half_hour_head(hidden).unflatten(1, (2, HALF_HOURS)) + self.local_head(local)
        usual = features.median_profile.flatten(0, 1).to(self.night_head.weight.dtype)
        return self.night_head(hidden), wide[:, 0], usual + wide[:, 1]

    def _encode_features(
        self, features: HistoryFeatures, conditions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is made of half-hours `[B, channels, 48]` and of the whole `[B, width]`."""
        dtype = self.night_head.weight.dtype
        half_hours = self.half_hour_scale(features.half_hour_features.flatten(0, 1).to(dtype))
        local = nn.functional.gelu(self.convolution(half_hours))
        known = torch.nan_to_num(self.condition_standardizer(conditions), nan=0.0)
        told = self.condition_encoder(known.to(dtype))
        if self.training:
            told = told * (torch.rand(len(told), 1, device=told.device) < 0.5)
        night = self.night_scale(features.night_features.flatten(0, 1).to(dtype))
        pooled = nn.functional.gelu(self.pointwise(local))
        inputs = (local.flatten(1), pooled.mean(dim=2), pooled.amax(dim=2), night, told)
        return local, self.trunk(torch.cat(inputs, dim=1))


def _compute_window_features(windows: Windows) -> tuple[HistoryFeatures, Tensor]:
    """A night against its history, and the level `[B]` of that in kWh."""
    history, night = windows.kwh[:, -HISTORY_NIGHTS - 1 : -1], windows.kwh[:, -1:]
    level = usual_level_kwh(history)
    return compute_history_features(impute_history(history, level), night, level), level


def augment_households(kwh: Tensor) -> Tensor:
    """Other homes that might be, from windows `[B, N, 48]` without gaps.

    The sum of two homes is a home; so is one of another size, on another clock, whose days ran the
    other way or in another order, or of which little is known and the rest borrowed from others.
    """
    rows, nights = kwh.shape[:2]
    device = kwh.device

    def draw_bernoulli(probability: float) -> Tensor:
        return torch.rand(rows, 1, 1, device=device) < probability

    def draw_uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(rows, 1, 1, device=device)

    mean = kwh.mean(dim=(1, 2), keepdim=True).clamp(min=0.02)
    other = (kwh / mean)[torch.randperm(rows, device=device)] * mean
    kwh = torch.lerp(kwh, other, torch.where(draw_bernoulli(0.7), draw_uniform(0, 0.9), 0.0))
    kwh = kwh * torch.where(draw_bernoulli(0.7), draw_uniform(-0.8, 0.8), 0.0).exp()
    kwh = torch.where(draw_bernoulli(0.5), kwh.flip(1), kwh)
    shift = torch.where(draw_bernoulli(0.5), draw_uniform(-4, 5).floor(), 0.0)[:, 0].long()
    place = torch.arange(nights * HALF_HOURS, device=device) + shift
    kwh = kwh.flatten(1).gather(1, place.clamp(0, nights * HALF_HOURS - 1)).view_as(kwh)
    past = torch.arange(nights, device=device) < HISTORY_NIGHTS
    swapped = (torch.rand(rows, nights, device=device) < 0.1) & draw_bernoulli(0.2)[:, 0] & past
    anywhere = torch.randint(HISTORY_NIGHTS, (rows, nights), device=device)
    source = torch.where(swapped, anywhere, torch.arange(nights, device=device))
    kwh = kwh.gather(1, source[:, :, None].expand_as(kwh))
    unknown = HISTORY_NIGHTS - draw_uniform(3, 28).long()
    borrowed = draw_bernoulli(0.05) & (torch.arange(nights, device=device)[:, None] < unknown)
    return (torch.where(borrowed, other, kwh) * 1000).round() / 1000


def _draw_visible_mask(observed: Tensor) -> Tensor:
    """Hide a stretch of some nights `[B, K, 48]`, as a meter that did not report."""
    rows = (*observed.shape[:2], 1)
    clock = torch.arange(HALF_HOURS, device=observed.device)
    first = torch.randint(HALF_HOURS, rows, device=observed.device)
    length = torch.randint(1, 13, rows, device=observed.device)
    hidden = torch.rand(rows, device=observed.device) < 0.1
    return ~(hidden & ((clock - first) % HALF_HOURS < length))


def _count_features() -> tuple[int, int]:
    """How many figures `describe` gives of a half-hour and of a night."""
    nothing = torch.zeros(1, HISTORY_NIGHTS, HALF_HOURS)
    described = compute_history_features(nothing, nothing[:, :1], torch.ones(1))
    return described.half_hour_features.shape[2], described.night_features.shape[2]
