"""A denoising autoencoder with detection heads, given the household's last six weeks.

It learns to tell real nights from corrupted ones, to point at the half-hours, and to rebuild what
was there before (outlier exposure, Hendrycks et al. 2019; denoising autoencoders, Vincent et al.
2008). No label is needed.
"""

from typing import ClassVar, Final

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
from ml.models.history.augmentation import augment_households, draw_outages
from ml.models.history.config import HistoryFeatureConfig
from ml.models.history.corruption import CORRUPTION_FAMILIES, corrupt_windows
from ml.models.history.features import (
    HALF_HOUR_FEATURES,
    HISTORY_NIGHTS,
    NIGHT_FEATURES,
    HistoryFeatures,
    compute_history_features,
    to_kwh,
    to_log_readings,
)
from ml.models.history.imputation import impute_history, usual_level_kwh
from ml.schemas import HALF_HOURS

NIGHTS_PER_HISTORY: Final = 4
"""Nights of a window that are learned from, all against one history, whose summary costs most.
EXPERIMENTS: 8 of them had AP 0.768, 4 had 0.780."""
CORRUPTIBLE_NIGHTS: Final = 17
"""The last nights of a window that may be corrupted: those learned from, and up to two weeks of
their history, since in service a history holds anomalies too."""
CONDITION_EMBEDDING_SIZE: Final = 8
"""Values in which the conditions are summed up. Chosen: half as many as there are conditions."""
CONDITION_KEEP_PROBABILITY: Final = 0.5
"""Share of nights that are given their conditions while training, so that the network also works
without weather and calendar and does not know a household by them. Chosen."""
CONVOLUTION_HALF_HOURS: Final = 5
"""Half-hours that the convolution sees at once: an hour on each side. Chosen."""
HALF_HOUR_LOSS_WEIGHT: Final = 0.3
PROFILE_LOSS_WEIGHT: Final = 0.3
"""Weights of the half-hours' cross-entropy and of the rebuilt profile's error beside the night's
cross-entropy, which counts 1 as the night's log odds are what is scored. Chosen."""


class HistoryNetworkConfig(NetworkConfig):
    """Sizes of the network, and the numbers that its features are computed with."""

    width: int = Field(256, ge=1, description="units of a hidden layer")
    blocks: int = Field(2, ge=0, description="residual blocks")
    channels: int = Field(16, ge=1, description="channels of the convolution over half-hours")
    dropout: float = Field(
        0.2, ge=0, lt=1, description="EXPERIMENTS, row 'also dropout 0.2': AP 0.788 -> 0.798"
    )
    features: HistoryFeatureConfig = HistoryFeatureConfig()


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
    """The last six weeks, the conditions and a night in; log odds of an anomaly out.

    `forward` and `compute_latent` always compute their features in double precision, whatever the
    precision of the weights; so does `loss`, unless `single_precision_features` is set.
    """

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
        self.feature_config = config.features
        n_half_hour, n_night = len(HALF_HOUR_FEATURES), len(NIGHT_FEATURES)
        self.condition_standardizer = Standardizer(len(CONDITIONS))
        # Without learned scales, since the layers behind them have their own.
        self.half_hour_scale = nn.BatchNorm1d(n_half_hour, affine=False)
        self.night_scale = nn.BatchNorm1d(n_night, affine=False)
        self.convolution = nn.Conv1d(
            n_half_hour,
            config.channels,
            CONVOLUTION_HALF_HOURS,
            padding=CONVOLUTION_HALF_HOURS // 2,
        )
        self.pointwise = nn.Conv1d(config.channels, 2 * config.channels, 1)
        self.condition_encoder = nn.Sequential(
            nn.Linear(len(CONDITIONS), CONDITION_EMBEDDING_SIZE), nn.GELU()
        )
        # The local channels, twice as many pooled two ways, the night's features, the conditions.
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

    def feature_names(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the features of each half-hour and of the night."""
        return {"half_hour": HALF_HOUR_FEATURES, "night": NIGHT_FEATURES}

    def fit_scales(self, windows: Windows) -> None:
        """Fit the scales of the conditions; those of the features are learned with the network."""
        self.condition_standardizer.fit(windows.conditions)

    def forward(self, windows: Windows) -> NetworkOutput:
        """Return log odds that the night, and each of its half-hours, is not the household's own.

        The night's are those of any family of corruptions against none.
        """
        features, level = self._compute_window_features(windows)
        logits, half_hour_log_odds, expected = self._apply_heads(features, windows.conditions)
        expected_kwh = to_kwh(expected[:, None].clamp(min=0), level, self.feature_config)[:, 0]
        # P(any family) / P(real), from a softmax whose first class is "real".
        log_odds = logits[:, 1:].logsumexp(dim=1) - logits[:, 0]
        is_missing = windows.kwh[:, -1].isnan()
        return NetworkOutput(
            expected_kwh, torch.where(is_missing, torch.nan, half_hour_log_odds), log_odds
        )

    def compute_latent(self, windows: Windows) -> Tensor:
        """Return the last hidden layer, which the heads of the night read, `[B, width]`."""
        features, _ = self._compute_window_features(windows)
        _, hidden = self._encode_features(features, windows.conditions)
        return hidden

    def loss(self, windows: Windows) -> Tensor:
        """Return the loss of the last nights, corrupted in part, of augmented households.

        A scalar: cross-entropy of the corruption's family, of each half-hour being changed, and the
        smooth absolute error of the rebuilt uncorrupted profile (log units). Draws from torch's
        generator.
        """
        config = self.feature_config
        dtype = self._training_feature_dtype(windows.kwh)
        is_observed = ~windows.kwh[:, -NIGHTS_PER_HISTORY:].isnan()
        level = usual_level_kwh(windows.kwh, config)
        real = augment_households(impute_history(windows.kwh, level, config, dtype))
        level = usual_level_kwh(real[:, :HISTORY_NIGHTS], config)
        corrupted = corrupt_windows(real[:, -CORRUPTIBLE_NIGHTS:], level, NIGHTS_PER_HISTORY)
        kwh = torch.cat((real[:, :-CORRUPTIBLE_NIGHTS], corrupted.kwh), dim=1)
        history = kwh[:, :HISTORY_NIGHTS]
        # Again, since corruptions in the history move the level, as they would in service.
        level = usual_level_kwh(history, config)
        is_shown = draw_outages(is_observed)
        nights = torch.where(is_shown, kwh[:, -NIGHTS_PER_HISTORY:], torch.nan)
        features = compute_history_features(history, nights, level, config, dtype)
        # The conditions of the window's last night stand for all of its nights.
        conditions = windows.conditions.repeat_interleave(NIGHTS_PER_HISTORY, dim=0)
        logits, half_hour_log_odds, expected = self._apply_heads(features, conditions)

        family_label = corrupted.family_label[:, -NIGHTS_PER_HISTORY:].flatten()
        is_changed = corrupted.is_changed[:, -NIGHTS_PER_HISTORY:].flatten(0, 1).to(logits.dtype)
        target = to_log_readings(real[:, -NIGHTS_PER_HISTORY:], level, config).flatten(0, 1)
        night_loss = nn.functional.cross_entropy(logits, family_label)
        half_hour_loss = nn.functional.binary_cross_entropy_with_logits(
            half_hour_log_odds, is_changed
        )
        profile_loss = nn.functional.smooth_l1_loss(expected, target)
        return (
            night_loss + HALF_HOUR_LOSS_WEIGHT * half_hour_loss + PROFILE_LOSS_WEIGHT * profile_loss
        )

    def _training_feature_dtype(self, kwh: Tensor) -> torch.dtype:
        if self.training and self.single_precision_features:
            return kwh.dtype
        return torch.float64

    def _compute_window_features(self, windows: Windows) -> tuple[HistoryFeatures, Tensor]:
        """Return the features of the last night, and the level `[B]` of its history in kWh."""
        config = self.feature_config
        history_kwh = windows.kwh[:, -HISTORY_NIGHTS - 1 : -1]
        level = usual_level_kwh(history_kwh, config)
        imputed_history = impute_history(history_kwh, level, config)
        return compute_history_features(imputed_history, windows.kwh[:, -1:], level, config), level

    def _apply_heads(
        self, features: HistoryFeatures, conditions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits `[B, 1 + F]` of real and of families, and of each half-hour `[B, 48]` the
        log odds of a change and the expected reading in log units.
        """
        local, hidden = self._encode_features(features, conditions)
        by_half_hour = self.half_hour_head(hidden).unflatten(1, (2, HALF_HOURS))
        by_half_hour = by_half_hour + self.local_head(local)
        # The expected profile is learned as a difference from the household's median.
        median = features.median_profile.flatten(0, 1).to(self.night_head.weight.dtype)
        return self.night_head(hidden), by_half_hour[:, 0], median + by_half_hour[:, 1]

    def _encode_features(
        self, features: HistoryFeatures, conditions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the encoded half-hours `[B, channels, 48]` and night `[B, width]`."""
        dtype = self.night_head.weight.dtype
        half_hours = self.half_hour_scale(features.half_hour_features.flatten(0, 1).to(dtype))
        local = nn.functional.gelu(self.convolution(half_hours))
        # A missing condition is taken to be at its mean.
        standardized = torch.nan_to_num(self.condition_standardizer(conditions), nan=0.0)
        condition_code = self.condition_encoder(standardized.to(dtype))
        if self.training:
            drawn = torch.rand(len(condition_code), 1, device=condition_code.device)
            condition_code = condition_code * (drawn < CONDITION_KEEP_PROBABILITY)
        night = self.night_scale(features.night_features.flatten(0, 1).to(dtype))
        pooled = nn.functional.gelu(self.pointwise(local))
        inputs = (local.flatten(1), pooled.mean(dim=2), pooled.amax(dim=2), night, condition_code)
        return local, self.trunk(torch.cat(inputs, dim=1))
