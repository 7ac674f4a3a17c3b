"""Named features of a night against the household's own past, as tensors.

Readings are compared in log units of the household's own level (`to_log_readings`), and each
household-night is described by itself, whatever shares its batch. `HALF_HOUR_FEATURES` and
`NIGHT_FEATURES` name every feature in its order; each group of names stands beside the function
that computes it, and the computation fails where names and values do not agree.

Shapes: B households, K nights to describe, N context nights, 48 half-hours.

Precision: most steps are taken in the precision of the readings. Means, products and distances are
taken in an explicit `dtype`. In single precision the last bits of a product depend on where in
memory, and so with whom in a batch, a row lies, and a GPU rounds products of singles to three
digits, which makes the distance of nearly equal profiles noise. In double precision those bits
vanish when the score is stored as a single.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from ml.models.history.config import HistoryFeatureConfig
from ml.models.history.numerics import sort_last_dim, split_last_dim
from ml.schemas import HALF_HOURS

HISTORY_NIGHTS: Final = 42
"""Context nights that a night is compared with: six weeks, so each weekday is there six times."""
RECENT_NIGHTS: Final = 14
"""The last of them, compared apart: an anomaly that has lasted up to two weeks (the longest that
the benchmark injects) shows as a difference between recent and older nights."""
NIGHTS_PER_WEEK: Final = 7

QUANTILES: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Quantiles of each half-hour over the context nights; the outermost two on each side are used as
bounds, the middle one as the expected reading."""
NEIGHBOR_DISTANCE_RANKS: Final = (0, 1, 2, 4, 9, 19, 30, 41)
"""Ranks, from the nearest context night, at which a night's distances are features."""
TYPICAL_DISTANCE_RANKS: Final = (2, 10, 21, 31, 39)
"""Ranks among the context nights' own distances to their nearest neighbours."""
MEDIAN_RANK: Final = HISTORY_NIGHTS // 2
HISTORY_THIRDS: Final = 3
"""Parts of the history in which a nearest night is looked for: two weeks each."""
DAY_QUARTERS: Final = 4
"""Parts of a day, six hours each, over which half-hours are pooled."""
HOURLY_STEP: Final = 2
"""Half-hours between two shifts at which a profile is correlated with the mean profile."""
REPEAT_RUN_HALF_HOURS: Final = (7, 13)
"""Window lengths, 3.5 and 6.5 hours, over which repeated readings are averaged."""
ORDER_STATISTICS: Final = (47, 45, 2, 12, 24, 36)
"""Places among a night's 48 sorted readings: highest, third highest, third lowest (a single missed
or misread half-hour does not move those), lower quartile, median and upper quartile."""
SELF_DISTANCE_PENALTY: Final = 1e4
"""Added to a context night's squared distance to itself, so that it is never its own nearest
neighbour; larger than any distance between two nights."""

PROFILE_VIEWS: Final = ("half_hours", "90_minutes", "6_hours", "sorted", "steps")
"""Ways in which profiles are compared: by half-hour; by means over 90 minutes and 6 hours, which
forgive small shifts in time; sorted, which forgives any order; by steps, which forgive a level."""


class HistoryFeatures(NamedTuple):
    """Nights `[B, K]` and their features."""

    median_profile: Tensor
    """`[B, K, 48]` the household's median at each half-hour, log units."""
    half_hour_features: Tensor
    """`[B, K, C, 48]`, C as `HALF_HOUR_FEATURES`."""
    night_features: Tensor
    """`[B, K, G]`, G as `NIGHT_FEATURES`."""


class _Moments(NamedTuple):
    """Mean and standard deviation over nights."""

    mean: Tensor
    deviation: Tensor


class _HistorySummary(NamedTuple):
    """Context nights and each half-hour's distribution among them, in log units."""

    log_readings: Tensor
    """`[B, N, 48]`."""
    quantiles: Tensor
    """`[B, Q, 48]`, as `QUANTILES`."""
    recent_moments: _Moments
    """`[B, 48]` of the last two weeks."""
    older_moments: _Moments
    """`[B, 48]` of the nights before those."""
    all_moments: _Moments
    """`[B, 48]` of all nights."""

    @property
    def median(self) -> Tensor:
        """`[B, 1, 48]`."""
        return self.quantiles[:, None, len(QUANTILES) // 2]


class _ProfileVectors(NamedTuple):
    """Profiles in one view, scaled so that squared distances are means over the half-hours."""

    vectors: Tensor
    """`[B, N + K, W]`."""
    squared_norms: Tensor
    """`[B, N + K]`."""


HALF_HOUR_FEATURES: Final = (
    "minus_median",
    "z_all_nights",
    "z_older_nights",
    "z_recent_nights",
    "rank",
    "minus_half_hour_neighbors",
    "minus_coarse_neighbors",
    "minus_same_weekdays",
    "above_maximum",
    "below_minimum",
    "above_q90",
    "below_q10",
    "is_repeat",
    "is_zero",
    "is_observed",
    "recent_minus_older_mean",
    "usual_deviation",
    "q90_minus_q10",
)
"""Channels of each half-hour. `z`: deviation in standard deviations among the same half-hours of
the context nights; `rank`: share of those that are lower; `neighbors`: mean profile of similar
context nights. The last three are the household's and the same for each of its nights."""


def compute_history_features(
    history: Tensor,
    nights: Tensor,
    level: Tensor,
    config: HistoryFeatureConfig,
    dtype: torch.dtype = torch.float64,
) -> HistoryFeatures:
    """Return the features of nights `[B, K, 48]` against a history `[B, 42, 48]`, in `dtype`.

    Both in kWh per half-hour; `level` `[B]` is the household's usual one. The history has no gaps
    (`impute_history`); missing half-hours of the nights are NaN and count as the median. The nights
    follow directly on the history, one after another, which sets their weekdays.
    """
    summary = _summarize_history(to_log_readings(history, level, config), dtype)
    is_observed = ~nights.isnan()
    x = torch.where(is_observed, to_log_readings(nights, level, config), summary.median)
    profiles = torch.cat((summary.log_readings, x), dim=1)
    sorted_profiles = sort_last_dim(profiles)
    vectors = [
        _build_profile_vectors(view, dtype)
        for view in _build_profile_views(profiles, sorted_profiles, dtype)
    ]
    distances = [_compute_distances(view, config) for view in vectors]
    fine, coarse = distances[:2]
    neighbors = _blend_neighbors(fine, summary.log_readings, config.half_hour_bandwidth, dtype)
    coarse_neighbors = _blend_neighbors(
        coarse, summary.log_readings, config.coarse_bandwidth, dtype
    )
    exceedances = _compute_exceedances(summary, x, neighbors, config, dtype)
    repeats = _compute_repeats(nights, config)

    half_hours: dict[str, Tensor] = {
        **_compare_half_hours(summary, x, config),
        "minus_half_hour_neighbors": x - neighbors,
        "minus_coarse_neighbors": x - coarse_neighbors,
        "minus_same_weekdays": x - _average_same_weekdays(summary, x),
        "above_maximum": exceedances["above_maximum"],
        "below_minimum": exceedances["below_minimum"],
        "above_q90": exceedances["above_q90"],
        "below_q10": exceedances["below_q10"],
        **repeats,
        "is_observed": is_observed.to(x.dtype),
    }
    household: dict[str, Tensor] = {
        "recent_minus_older_mean": summary.recent_moments.mean - summary.older_moments.mean,
        "usual_deviation": summary.all_moments.deviation,
        "q90_minus_q10": summary.quantiles[:, -2] - summary.quantiles[:, 1],
    }
    half_hours |= {name: value[:, None].expand_as(x) for name, value in household.items()}

    blocks: dict[str, Tensor] = {
        f"neighbors_{name}": _compute_neighbor_features(view, distance, config)
        for name, view, distance in zip(PROFILE_VIEWS, vectors, distances, strict=True)
    } | {
        "profile": _compute_profile_statistics(
            profiles, sorted_profiles, summary.all_moments, config, dtype
        ),
        "repeats": _compute_repeat_features(history, repeats, config),
        "alignment": _compute_alignment(summary.all_moments.mean, x, config, dtype),
        "observed": is_observed.to(x.dtype).mean(dim=2, keepdim=True),
        "exceedances": _pool_exceedances(exceedances, config),
    }
    night = _concatenate_blocks(blocks, dtype).clamp(-config.limit, config.limit)
    half_hour = _stack_named(half_hours, HALF_HOUR_FEATURES, dtype)
    return HistoryFeatures(summary.median.expand_as(x), half_hour, night)


def to_log_readings(kwh: Tensor, level: Tensor, config: HistoryFeatureConfig) -> Tensor:
    """Return readings `[B, N, 48]` in log units, about 0 to 3, given kWh and a level `[B]`.

    Logarithmic down to a tenth of the level, so that a lost baseload shows as well as a peak.
    """
    floor = config.log_floor_share * level[:, None, None]
    return config.log_unit_scale * torch.log1p(kwh / floor)


def to_kwh(log_readings: Tensor, level: Tensor, config: HistoryFeatureConfig) -> Tensor:
    """Return the kWh of readings `[B, N, 48]` in log units; the inverse of `to_log_readings`."""
    floor = config.log_floor_share * level[:, None, None]
    return floor * torch.expm1(log_readings / config.log_unit_scale)


def _stack_named(values: dict[str, Tensor], names: Sequence[str], dtype: torch.dtype) -> Tensor:
    """Return the values `[B, K, ...]` stacked along a new dimension 2, in `dtype`.

    Raises:
        ValueError: their names are not the given ones, in this order.
    """
    if tuple(values) != tuple(names):
        raise ValueError(f"features {tuple(values)} are computed, {tuple(names)} are named")
    return torch.stack([value.to(dtype) for value in values.values()], dim=2)


def _concatenate_blocks(blocks: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Return the night features `[B, K, G]` of all blocks `[B, K, *]`, in `dtype`.

    Raises:
        ValueError: the blocks or their widths are not those of `NIGHT_FEATURE_BLOCKS`.
    """
    computed = {name: values.shape[2] for name, values in blocks.items()}
    named = {name: len(names) for name, names in NIGHT_FEATURE_BLOCKS.items()}
    if list(computed.items()) != list(named.items()):
        raise ValueError(f"blocks of widths {computed} are computed, {named} are named")
    return torch.cat([values.to(dtype) for values in blocks.values()], dim=2)


def _summarize_history(log_readings: Tensor, dtype: torch.dtype) -> _HistorySummary:
    by_half_hour = sort_last_dim(log_readings.transpose(1, 2).contiguous())
    precise = log_readings.to(dtype)
    places = [round(q * (HISTORY_NIGHTS - 1)) for q in QUANTILES]
    return _HistorySummary(
        log_readings=log_readings,
        # A contiguous copy, since every comparison below reads them half-hour by half-hour.
        quantiles=by_half_hour[:, :, places].transpose(1, 2).contiguous(),
        recent_moments=_compute_moments(precise[:, -RECENT_NIGHTS:], log_readings.dtype),
        older_moments=_compute_moments(precise[:, :-RECENT_NIGHTS], log_readings.dtype),
        all_moments=_compute_moments(precise, log_readings.dtype),
    )


def _compute_moments(values: Tensor, dtype: torch.dtype) -> _Moments:
    """Return mean and standard deviation over dimension 1, rounded to `dtype`."""
    mean = values.mean(dim=1)
    deviation = ((values**2).mean(dim=1) - mean**2).clamp(min=0).sqrt()
    return _Moments(mean.to(dtype), deviation.to(dtype))


def _compute_z_scores(
    log_readings: Tensor, moments: _Moments, config: HistoryFeatureConfig
) -> Tensor:
    """Return readings `[B, R, 48]` as deviations from the mean in standard deviations, clipped."""
    spread = moments.deviation[:, None] + config.half_hour_spread_floor
    z = (log_readings - moments.mean[:, None]) / spread
    return z.clamp(-config.limit, config.limit)


def _compute_percentile_ranks(
    reference: Tensor, values: Tensor, config: HistoryFeatureConfig
) -> Tensor:
    """Return the share of `reference` `[..., N]` below each of `values` `[..., K]`, 0 to 1.

    Equal values count half (mid-rank).
    """
    difference = values[..., None] - reference[..., None, :]
    share = _soft_step(difference, config).mean(dim=-1, dtype=torch.float64)
    return share.to(values.dtype)


def _soft_step(difference: Tensor, config: HistoryFeatureConfig) -> Tensor:
    """Return 0 where below zero, 1 where above, and a ramp in between.

    A true step would let the last bit of a figure, which engines round differently, change a rank
    by a whole place.
    """
    return (difference / config.tie_width + 0.5).clamp(0, 1)


def _compare_half_hours(
    history: _HistorySummary, log_readings: Tensor, config: HistoryFeatureConfig
) -> dict[str, Tensor]:
    """Return features `[B, K, 48]` of each half-hour among the same ones of the context nights."""
    rank = _compute_percentile_ranks(
        history.log_readings.transpose(1, 2), log_readings.transpose(1, 2), config
    ).transpose(1, 2)
    return {
        "minus_median": log_readings - history.median,
        "z_all_nights": _compute_z_scores(log_readings, history.all_moments, config),
        "z_older_nights": _compute_z_scores(log_readings, history.older_moments, config),
        "z_recent_nights": _compute_z_scores(log_readings, history.recent_moments, config),
        "rank": rank,
    }


def _average_same_weekdays(history: _HistorySummary, log_readings: Tensor) -> Tensor:
    """Return the mean `[B, K, 48]` of the context nights 1, 2, 3 ... weeks before each night.

    Of `log_readings` `[B, K, 48]` only the number of nights counts, which follow on the context.
    """
    means = []
    for night in range(log_readings.shape[1]):
        position = HISTORY_NIGHTS + night
        # A week before a later night may be one of the nights themselves, which is not context.
        same_weekdays = [
            earlier
            for earlier in range(position - NIGHTS_PER_WEEK, -1, -NIGHTS_PER_WEEK)
            if earlier < HISTORY_NIGHTS
        ]
        means.append(history.log_readings[:, same_weekdays].mean(dim=1))
    return torch.stack(means, dim=1)


EXCEEDANCES: Final = (
    "above_maximum",
    "below_minimum",
    "above_q90",
    "below_q10",
    "above_neighbors",
    "below_neighbors",
    "z_above_older",
    "z_below_older",
)


def _compute_exceedances(
    history: _HistorySummary,
    log_readings: Tensor,
    neighbors: Tensor,
    config: HistoryFeatureConfig,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Return how far `[B, K, 48]` each half-hour leaves its usual range, 0 inside; `EXCEEDANCES`.

    The bounds at a half-hour are the widest of its own and both adjacent ones', so that a habit
    half an hour early or late is inside.
    """
    upper = nn.functional.max_pool1d(history.quantiles[:, -2:], 3, 1, 1)[:, None]
    lower = -nn.functional.max_pool1d(-history.quantiles[:, :2], 3, 1, 1)[:, None]
    z = _compute_z_scores(log_readings, history.older_moments, config) / config.exceedance_z_scale
    signed = {
        "above_maximum": log_readings - upper[:, :, 1],
        "below_minimum": lower[:, :, 0] - log_readings,
        "above_q90": log_readings - upper[:, :, 0],
        "below_q10": lower[:, :, 1] - log_readings,
        "above_neighbors": log_readings - neighbors,
        "below_neighbors": neighbors - log_readings,
        "z_above_older": z,
        "z_below_older": -z,
    }
    return {name: value.to(dtype).clamp(min=0) for name, value in signed.items()}


_EXCEEDANCE_BLOCK: Final = (
    *(
        f"{name}_mean_quarter_{quarter}"
        for name in EXCEEDANCES
        for quarter in range(1, DAY_QUARTERS + 1)
    ),
    *(f"{name}_mean" for name in EXCEEDANCES),
    *(
        f"{name}_maximum_quarter_{quarter}"
        for name in EXCEEDANCES
        for quarter in range(1, DAY_QUARTERS + 1)
    ),
    *(f"{name}_maximum" for name in EXCEEDANCES),
    *(f"{name}_log_mean" for name in EXCEEDANCES),
)


def _pool_exceedances(exceedances: dict[str, Tensor], config: HistoryFeatureConfig) -> Tensor:
    """Return means and maxima over the quarters of the day and over the day, `[B, K, 88]`."""
    if tuple(exceedances) != EXCEEDANCES:
        raise ValueError(f"{tuple(exceedances)} are computed, {EXCEEDANCES} are named")
    quarters = split_last_dim(torch.stack(list(exceedances.values()), dim=2), DAY_QUARTERS)
    mean = quarters.mean(dim=4)
    maximum = quarters.amax(dim=4)
    night_mean = mean.mean(dim=3)
    return torch.cat(
        (
            config.exceedance_mean_gain * mean.flatten(2),
            config.exceedance_mean_gain * night_mean,
            maximum.flatten(2),
            maximum.amax(dim=3),
            torch.log1p(config.exceedance_log_gain * night_mean),
        ),
        dim=2,
    )


def _build_profile_views(
    profiles: Tensor, sorted_profiles: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Return profiles `[B, N + K, 48]` in each of `PROFILE_VIEWS`, `[B, N + K, *]`."""
    by_90_minutes = split_last_dim(profiles.to(dtype), 16).mean(dim=3)
    by_6_hours = split_last_dim(by_90_minutes, 4).mean(dim=3)
    return [profiles, by_90_minutes, by_6_hours, sorted_profiles, profiles.diff(dim=2)]


def _build_profile_vectors(view: Tensor, dtype: torch.dtype) -> _ProfileVectors:
    vectors = view.to(dtype) / math.sqrt(view.shape[2])
    return _ProfileVectors(vectors, (vectors * vectors).sum(dim=2))


def _compute_distances(vectors: _ProfileVectors, config: HistoryFeatureConfig) -> Tensor:
    """Return root mean square distances `[B, K, N]` of the nights to the context nights."""
    squared = _compute_squared_distances(vectors, slice(HISTORY_NIGHTS, None))
    return squared.clamp(min=config.min_squared_distance).sqrt()


def _compute_squared_distances(vectors: _ProfileVectors, rows: slice) -> Tensor:
    """Return mean squared distances `[B, R, N]` of some nights to the context nights.

    By a Gram matrix, |a - b|^2 = |a|^2 + |b|^2 - 2 ab, which spares a tensor `[B, R, N, 48]`; it
    cancels to rounding errors for nearly equal profiles, hence the double precision.
    """
    ours = vectors.vectors[:, rows]
    context = vectors.vectors[:, :HISTORY_NIGHTS]
    norms = vectors.squared_norms[:, rows, None] + vectors.squared_norms[:, None, :HISTORY_NIGHTS]
    return torch.baddbmm(norms, ours, context.transpose(1, 2), alpha=-2)


_NEIGHBOR_BLOCK: Final = (
    *(f"distance_rank_{rank + 1}" for rank in NEIGHBOR_DISTANCE_RANKS),
    *(f"usual_distance_rank_{rank + 1}" for rank in TYPICAL_DISTANCE_RANKS),
    "log_ratio_all_thirds",
    "log_ratio_older_thirds",
    "log_ratio_latest_third",
    "distance_percentile_all_thirds",
    "distance_percentile_older_thirds",
)


def _compute_neighbor_features(
    vectors: _ProfileVectors, distances: Tensor, config: HistoryFeatureConfig
) -> Tensor:
    """Return how near context nights are beside how near they are to one another, `[B, K, 18]`.

    A night's nearest neighbour is taken in each third of the history and averaged, so that a recent
    anomaly that lasts does not pass for a habit: it has near neighbours in the last third only.
    """
    among = _compute_squared_distances(vectors, slice(0, HISTORY_NIGHTS))
    among = among + SELF_DISTANCE_PENALTY * torch.eye(HISTORY_NIGHTS, device=among.device)
    nearest_among = _min_by_third(among).clamp(min=config.min_squared_distance).sqrt().mean(dim=2)
    usual = sort_last_dim(nearest_among)
    thirds = _min_by_third(distances)
    nearest = torch.stack(
        (thirds.mean(dim=2), thirds[:, :, :-1].mean(dim=2), thirds[:, :, -1]), dim=2
    )
    usual_median = usual[:, MEDIAN_RANK, None, None] + config.distance_floor
    log_ratio = (nearest / usual_median).log().clamp(min=-config.limit)
    percentile = _compute_percentile_ranks(usual, nearest[:, :, :2].flatten(1), config)
    return torch.cat(
        (
            sort_last_dim(distances)[:, :, NEIGHBOR_DISTANCE_RANKS],
            usual[:, None, TYPICAL_DISTANCE_RANKS].expand(-1, distances.shape[1], -1),
            log_ratio,
            percentile.view(*nearest.shape[:2], 2),
        ),
        dim=2,
    )


def _min_by_third(distances: Tensor) -> Tensor:
    """Return the least distance `[B, R, 3]` to each third of the history."""
    return split_last_dim(distances, HISTORY_THIRDS).amin(dim=3)


def _blend_neighbors(
    distances: Tensor, history: Tensor, bandwidth: float, dtype: torch.dtype
) -> Tensor:
    """Return the mean profile `[B, K, 48]` of context nights, weighted by exp(-d / bandwidth)."""
    weights = torch.softmax(-distances.to(dtype) / bandwidth, dim=2)
    return torch.bmm(weights, history.to(dtype))


PROFILE_STATISTICS: Final = (
    "mean",
    *(f"sorted_{place}" for place in ORDER_STATISTICS),
    "mean_step",
    "largest_step",
    "deviation",
    *(f"mean_quarter_{quarter}" for quarter in range(1, DAY_QUARTERS + 1)),
    "slope",
    "z_root_mean_square",
    "z_mean",
    "z_maximum",
    "z_minimum",
    "high_share",
    "low_share",
    "mean_profile_correlation",
    "equal_step_share",
)
_PROFILE_BLOCK: Final = tuple(
    f"{name}_{kind}"
    for kind in ("z_all_nights", "z_older_nights", "rank")
    for name in PROFILE_STATISTICS
)


def _compute_profile_statistics(
    profiles: Tensor,
    sorted_profiles: Tensor,
    history_moments: _Moments,
    config: HistoryFeatureConfig,
    dtype: torch.dtype,
) -> Tensor:
    """Return `PROFILE_STATISTICS` of the nights among those of the context nights, `[B, K, 69]`.

    Each as z-score among all context nights, as z-score among the older ones, and as rank.
    """
    # In `dtype`, so that profiles of the same readings in another order have the same mean.
    precise = profiles.to(dtype)
    precise_mean = precise.mean(dim=2)
    precise_deviation = ((precise**2).mean(dim=2) - precise_mean**2).clamp(min=0).sqrt()
    mean = precise_mean.to(profiles.dtype)
    quarters = split_last_dim(precise, DAY_QUARTERS).mean(dim=3).to(profiles.dtype)
    step = profiles.diff(dim=2).abs()
    ramp = torch.linspace(-1, 1, HALF_HOURS, device=profiles.device, dtype=profiles.dtype)
    z = _compute_z_scores(profiles, history_moments, config)
    usual = (history_moments.mean - history_moments.mean.mean(dim=1, keepdim=True))[:, None]
    centered = profiles - mean[:, :, None]
    norms = centered.norm(dim=2) * usual.norm(dim=2) + config.norm_floor
    statistics = {
        "mean": mean,
        **{f"sorted_{place}": sorted_profiles[:, :, place] for place in ORDER_STATISTICS},
        "mean_step": step.to(dtype).mean(dim=2).to(profiles.dtype),
        "largest_step": step.amax(dim=2),
        "deviation": precise_deviation.to(profiles.dtype),
        **{
            f"mean_quarter_{number}": quarter
            for number, quarter in enumerate(quarters.unbind(dim=2), start=1)
        },
        "slope": (centered * ramp).mean(dim=2),
        "z_root_mean_square": (z**2).mean(dim=2).sqrt(),
        "z_mean": z.mean(dim=2),
        "z_maximum": z.amax(dim=2),
        "z_minimum": z.amin(dim=2),
        "high_share": _soft_step(z - config.high_z, config).mean(dim=2),
        "low_share": _soft_step(config.low_z - z, config).mean(dim=2),
        "mean_profile_correlation": (centered * usual).sum(dim=2) / norms,
        "equal_step_share": (step < config.equal_step).to(profiles.dtype).mean(dim=2),
    }
    stacked = _stack_named(statistics, PROFILE_STATISTICS, profiles.dtype)
    context = stacked[:, :HISTORY_NIGHTS]
    nights = stacked[:, HISTORY_NIGHTS:]
    rank = _compute_percentile_ranks(
        context.transpose(1, 2), nights.transpose(1, 2), config
    ).transpose(1, 2)
    return torch.cat(
        (
            _standardize_statistics(nights, context, config, dtype),
            _standardize_statistics(nights, context[:, :-RECENT_NIGHTS], config, dtype),
            rank,
        ),
        dim=2,
    )


def _standardize_statistics(
    nights: Tensor, context: Tensor, config: HistoryFeatureConfig, dtype: torch.dtype
) -> Tensor:
    """Return statistics `[B, K, S]` as z-scores among those of context nights `[B, *, S]`."""
    moments = _compute_moments(context.to(dtype), nights.dtype)
    spread = moments.deviation[:, None] + config.night_spread_floor
    return ((nights - moments.mean[:, None]) / spread).clamp(-config.limit, config.limit)


def _compute_repeats(nights: Tensor, config: HistoryFeatureConfig) -> dict[str, Tensor]:
    """Return where `[B, K, 48]` readings repeat the half-hour before, and are zero: 1, else 0."""
    tolerance = config.reading_tolerance_kwh
    is_repeat = (nights.diff(dim=2).abs() < tolerance).to(nights.dtype)
    return {
        "is_repeat": nn.functional.pad(is_repeat, (1, 0)),
        "is_zero": (nights < tolerance).to(nights.dtype),
    }


_REPEAT_BLOCK: Final = (
    *(f"most_repeats_in_{length}_half_hours" for length in REPEAT_RUN_HALF_HOURS),
    "repeat_share",
    "zero_share",
    "usual_repeat_share",
    "usual_zero_share",
)


def _compute_repeat_features(
    history: Tensor, repeats: dict[str, Tensor], config: HistoryFeatureConfig
) -> Tensor:
    """Return repeats and zeros of the nights, and how usual they are, `[B, K, 6]`."""
    usual = _compute_repeats(history, config)
    # The first half-hour of a night has none before it, so it does not count for the usual share.
    usual_shares = torch.stack(
        (usual["is_repeat"][:, :, 1:].mean(dim=(1, 2)), usual["is_zero"].mean(dim=(1, 2))), dim=1
    )
    is_repeat = repeats["is_repeat"]
    runs = [
        nn.functional.avg_pool1d(is_repeat, length, 1, length // 2).amax(dim=2)
        for length in REPEAT_RUN_HALF_HOURS
    ]
    own = torch.stack((*runs, is_repeat.mean(dim=2), repeats["is_zero"].mean(dim=2)), dim=2)
    return torch.cat((own, usual_shares[:, None].expand(-1, own.shape[1], -1)), dim=2)


_ALIGNMENT_BLOCK: Final = (
    *(
        f"correlation_shifted_{shift // HOURLY_STEP}_hours"
        for shift in range(0, HALF_HOURS, HOURLY_STEP)
    ),
    "correlation_mirrored_at_1_00",
    "best_shift_gain",
)


def _compute_alignment(
    mean_profile: Tensor, log_readings: Tensor, config: HistoryFeatureConfig, dtype: torch.dtype
) -> Tensor:
    """Return correlations of nights with the mean profile `[B, 48]`, `[B, K, 26]`.

    With the night moved earlier by each full hour, with the night mirrored in time, and how much
    the best shift gains over none. All shifts at once by a Fourier transform (circular
    cross-correlation, or convolution where mirrored).
    """
    usual = mean_profile.to(dtype)[:, None]
    night = log_readings.to(dtype)
    usual = usual - usual.mean(dim=2, keepdim=True)
    night = night - night.mean(dim=2, keepdim=True)
    norms = (night.norm(dim=2) * usual.norm(dim=2) + config.norm_floor)[:, :, None]
    waves = torch.fft.rfft(night)
    usual_waves = torch.fft.rfft(usual).conj()
    shifted = torch.fft.irfft(waves * usual_waves, n=HALF_HOURS) / norms
    mirrored = torch.fft.irfft(waves.conj() * usual_waves, n=HALF_HOURS) / norms
    # Place s compares half-hour t with -s - t: place 46 holds 2 - t, a mirror at 01:00. (The night
    # read backwards, 47 - t, would be place 1; weights were learned with place 46.)
    at_1_00 = mirrored[:, :, 46:47]
    best_gain = shifted.amax(dim=2, keepdim=True) - shifted[:, :, :1]
    return torch.cat((shifted[:, :, ::HOURLY_STEP], at_1_00, best_gain), dim=2)


NIGHT_FEATURE_BLOCKS: Final[dict[str, tuple[str, ...]]] = {
    **{f"neighbors_{view}": _NEIGHBOR_BLOCK for view in PROFILE_VIEWS},
    "profile": _PROFILE_BLOCK,
    "repeats": _REPEAT_BLOCK,
    "alignment": _ALIGNMENT_BLOCK,
    "observed": ("share",),
    "exceedances": _EXCEEDANCE_BLOCK,
}
"""Names of the night features by block, in the order in which they are concatenated."""
NIGHT_FEATURES: Final = tuple(
    chain.from_iterable(
        (f"{block}.{name}" for name in names) for block, names in NIGHT_FEATURE_BLOCKS.items()
    )
)
"""Features of the night, such as `neighbors_sorted.distance_rank_1`."""
