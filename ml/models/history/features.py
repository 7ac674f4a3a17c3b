"""A night against the household's own past: what a person would look at, as tensors.

Everything is in log units of the household's own level (`in_units`) and is computed for
each household-night by itself.
"""

import math
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ml.schemas import HALF_HOURS

HISTORY_NIGHTS: Final = 42
RECENT_NIGHTS: Final = 14
NIGHTS_PER_WEEK: Final = 7
MIN_OBSERVED_HALF_HOURS: Final = 24
MIN_HISTORY_LEVEL_KWH: Final = 0.02
READING_TOLERANCE_KWH: Final = 5e-4
LOG_FLOOR_SHARE: Final = 0.1
LOG_UNIT_SCALE: Final = 0.6

QUANTILES: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
NEIGHBOR_DISTANCE_RANKS: Final = (0, 1, 2, 4, 9, 19, 30, 41)
TYPICAL_DISTANCE_RANKS: Final = (2, 10, 21, 31, 39)
"""Ranks among the household's own nights at which their distances are read."""
MEDIAN_RANK: Final = HISTORY_NIGHTS // 2
HISTORY_THIRDS: Final = 3
DAY_QUARTERS: Final = 4
TIE_WIDTH: Final = 5e-3
"""Figures of days within half of it are partly above, partly below one another."""
MIN_SQUARED_DISTANCE: Final = 1e-9
"""Squared distances below it are differences of rounding errors."""
SELF_DISTANCE_PENALTY: Final = 1e4
FEATURE_LIMIT: Final = 8.0


class HistoryFeatures(NamedTuple):
    """Nights `[B, K]` and what their past says of them."""

    median_profile: Tensor
    """`[B, K, 48]` the household's median at each half-hour."""
    half_hour_features: Tensor
    """`[B, K, C, 48]` figures of each half-hour."""
    night_features: Tensor
    """`[B, K, G]` figures of the night."""


class _HistoryDistribution(NamedTuple):
    """Nights before `[B, N, 48]`, and each half-hour's distribution among them."""

    log_readings: Tensor
    quantiles: Tensor
    """`[B, Q, 48]`."""
    recent_moments: tuple[Tensor, Tensor]
    """Mean and standard deviation `[B, 48]` of the last two weeks."""
    older_moments: tuple[Tensor, Tensor]
    """The same of the nights before those."""
    all_moments: tuple[Tensor, Tensor]


class _ProfileVectors(NamedTuple):
    """Days seen in one way, so that squared distances are means over the half-hours."""

    vectors: Tensor
    """`[B, N + K, W]`."""
    squared_norms: Tensor
    """`[B, N + K]` squared."""


def usual_level_kwh(history: Tensor) -> Tensor:
    """Median of the daily means `[B]` of nights `[B, N, 48]`, kWh per half-hour."""
    observed = ~history.isnan()
    enough = observed.sum(dim=2) >= MIN_OBSERVED_HALF_HOURS
    means = sort_last_dim(torch.where(enough, history.nanmean(dim=2), torch.inf))
    middle = (enough.sum(dim=1, keepdim=True) - 1).clamp(min=0) // 2
    median = means.gather(1, middle)[:, 0]
    return torch.where(median.isinf(), 0.0, median).clamp(min=MIN_HISTORY_LEVEL_KWH)


def to_log_readings(kwh: Tensor, level: Tensor) -> Tensor:
    """Readings `[B, N, 48]` on the scale that everything is compared on, about 0 to 3.

    Logarithmic down to a tenth of the level, so that a lost base load shows as well as a peak.
    """
    return LOG_UNIT_SCALE * stable_log1p(kwh / (LOG_FLOOR_SHARE * level[:, None, None]))


def to_kwh(log_readings: Tensor, level: Tensor) -> Tensor:
    """Back from `in_units`."""
    return LOG_FLOOR_SHARE * level[:, None, None] * torch.expm1(log_readings / LOG_UNIT_SCALE)


def impute_history(history: Tensor, level: Tensor) -> Tensor:
    """Nights `[B, N, 48]` without gaps: half-hours at their mean, whole nights as another one.

    Nights that are missing are stood in for by those that are there, the latest first.
    """
    there = (~history.isnan()).sum(dim=2) >= MIN_OBSERVED_HALF_HOURS
    known = torch.where(there[:, :, None], history, torch.nan)
    mean = promote_precision(known).nanmean(dim=1, keepdim=True).to(history.dtype)
    mean = torch.where(mean.isnan(), level[:, None, None], mean)
    filled = torch.where(history.isnan(), mean, history)
    nights = history.shape[1]
    latest = torch.arange(nights - 1, -1, -1, device=history.device)
    found = torch.where(there, latest, latest + nights).argsort(dim=1)
    turn = latest % there.sum(dim=1, keepdim=True).clamp(min=1)
    stand_in = torch.where(there, nights - 1 - latest, found.gather(1, turn))
    return filled.gather(1, stand_in[:, :, None].expand_as(filled))


def compute_history_features(history: Tensor, nights: Tensor, level: Tensor) -> HistoryFeatures:
    """Hold nights `[B, K, 48]`, NaN where missing, against `HISTORY_NIGHTS` complete nights.

    Both in kWh; the nights follow upon the history, one after another.
    """
    past = _summarize_history(to_log_readings(history, level))
    observed = ~nights.isnan()
    median = past.quantiles[:, None, len(QUANTILES) // 2]
    x = torch.where(observed, to_log_readings(nights, level), median)
    days = torch.cat((past.log_readings, x), dim=1)
    by_size = sort_last_dim(days)
    vectors = [_build_profile_vectors(view) for view in _build_profile_views(days, by_size)]
    distances = [_compute_distances(view) for view in vectors]
    near = [
        _blend_neighbors(distances[view], past.log_readings, width)
        for view, width in ((0, 0.08), (1, 0.06))
    ]
    half_hours = [
        *_compare_half_hours(past, x),
        *(x - blend for blend in near),
        x - _average_same_weekdays(past, x),
    ]
    outside = _compute_exceedances(past, x, near[0])
    repeats, zeros, habits = _compute_repeat_features(history, nights)
    spread = past.quantiles[:, -2] - past.quantiles[:, 1]
    wide = [past.recent_moments[0] - past.older_moments[0], past.all_moments[1], spread]
    half_hours += [*outside[:4], repeats, zeros, observed.to(x.dtype)]
    half_hours += [value[:, None].expand_as(x) for value in wide]
    figures = [
        *(
            _compute_neighbor_features(view, distance)
            for view, distance in zip(vectors, distances, strict=True)
        ),
        _compute_profile_statistics(days, by_size, past.all_moments),
        habits,
        _compute_alignment(past.all_moments[0], x),
        observed.to(x.dtype).mean(dim=2, keepdim=True),
        *_pool_exceedances(outside),
    ]
    night = torch.cat([promote_precision(each) for each in figures], dim=2).clamp(
        -FEATURE_LIMIT, FEATURE_LIMIT
    )
    half_hours = [promote_precision(each) for each in half_hours]
    return HistoryFeatures(median.expand_as(x), torch.stack(half_hours, dim=2), night)


def sort_last_dim(values: Tensor) -> Tensor:
    """Sorted along the last dimension; on a CPU by NumPy, which is nine times as fast."""
    if values.is_cuda or torch.compiler.is_exporting():
        return values.sort(dim=-1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1))


def stable_log1p(values: Tensor) -> Tensor:
    """The logarithm of 1 + x, of equal readings equal to the last bit wherever they stand.

    ONNX Runtime's single-precision logarithm rounds the last values of a row in another way.
    """
    if torch.compiler.is_exporting():
        return values.double().log1p().to(values.dtype)
    return values.log1p()


def promote_precision(values: Tensor) -> Tensor:
    """In double precision where nothing is learned, and where a product would be rounded.

    The last bits of a product depend on where in memory, so with whom in a batch, a row lies;
    those of a double vanish when the score is stored as a single. A GPU and mixed precision round
    products of singles to three digits: distances among alike days would be noise.
    """
    if torch.is_grad_enabled() and not values.is_cuda:
        return values.double() if torch.is_autocast_enabled(values.device.type) else values
    return values.double()


def _summarize_history(log_readings: Tensor) -> _HistoryDistribution:
    by_half_hour = sort_last_dim(log_readings.transpose(1, 2).contiguous())
    precise = promote_precision(log_readings)
    places = [round(q * (HISTORY_NIGHTS - 1)) for q in QUANTILES]
    return _HistoryDistribution(
        log_readings=log_readings,
        quantiles=by_half_hour[:, :, places].transpose(1, 2).contiguous(),
        recent_moments=_compute_moments(precise[:, -RECENT_NIGHTS:], log_readings.dtype),
        older_moments=_compute_moments(precise[:, :-RECENT_NIGHTS], log_readings.dtype),
        all_moments=_compute_moments(precise, log_readings.dtype),
    )


def _compute_moments(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over dimension 1, rounded to `kind`."""
    mean = values.mean(dim=1)
    deviation = ((values**2).mean(dim=1) - mean**2).clamp(min=0).sqrt()
    return mean.to(dtype), deviation.to(dtype)


def _compute_z_scores(log_readings: Tensor, moments: tuple[Tensor, Tensor]) -> Tensor:
    mean, deviation = (value[:, None] for value in moments)
    return ((log_readings - mean) / (deviation + 0.12)).clamp(-FEATURE_LIMIT, FEATURE_LIMIT)


def _compute_percentile_ranks(reference: Tensor, values: Tensor) -> Tensor:
    """Share of `among` `[..., N]` below each of `values` `[..., K]`, half of what is alike.

    What is alike is weighed by a ramp: with a step, the last bit of a figure could change a score.
    """
    above = values[..., None] - reference[..., None, :]
    return _soft_step(above).mean(dim=-1, dtype=torch.float64).to(values.dtype)


def _soft_step(difference: Tensor) -> Tensor:
    """0 where below zero, 1 where above, a ramp where alike."""
    return (difference / TIE_WIDTH + 0.5).clamp(0, 1)


def _compare_half_hours(history: _HistoryDistribution, log_readings: Tensor) -> list[Tensor]:
    """Where each half-hour stands among the same half-hours of the nights before."""
    rank = _compute_percentile_ranks(
        history.log_readings.transpose(1, 2), log_readings.transpose(1, 2)
    ).transpose(1, 2)
    median = history.quantiles[:, None, len(QUANTILES) // 2]
    return [
        log_readings - median,
        _compute_z_scores(log_readings, history.all_moments),
        _compute_z_scores(log_readings, history.older_moments),
        _compute_z_scores(log_readings, history.recent_moments),
        rank,
    ]


def _average_same_weekdays(history: _HistoryDistribution, log_readings: Tensor) -> Tensor:
    """Mean of the nights one, two, three ... weeks before each night."""
    means = []
    for night in range(log_readings.shape[1]):
        last = HISTORY_NIGHTS + night
        weeks = [
            place
            for place in range(last - NIGHTS_PER_WEEK, -1, -NIGHTS_PER_WEEK)
            if place < HISTORY_NIGHTS
        ]
        means.append(history.log_readings[:, weeks].mean(dim=1))
    return torch.stack(means, dim=1)


def _compute_exceedances(
    history: _HistoryDistribution, log_readings: Tensor, nearest_blend: Tensor
) -> list[Tensor]:
    """How far each half-hour leaves what was seen at that time of day, an hour's slack given."""
    high = nn.functional.max_pool1d(history.quantiles[:, -2:], 3, 1, 1)[:, None]
    low = -nn.functional.max_pool1d(-history.quantiles[:, :2], 3, 1, 1)[:, None]
    z = _compute_z_scores(log_readings, history.older_moments) / 4
    signed = (
        log_readings - high[:, :, 1],
        low[:, :, 0] - log_readings,
        log_readings - high[:, :, 0],
        low[:, :, 1] - log_readings,
    )
    return [
        promote_precision(value).clamp(min=0)
        for value in (*signed, log_readings - nearest_blend, nearest_blend - log_readings, z, -z)
    ]


def _pool_exceedances(exceedances: list[Tensor]) -> list[Tensor]:
    """Means and maxima over the quarters of the day, and over the day."""
    quarters = _split_last_dim(torch.stack(exceedances, dim=2), DAY_QUARTERS)
    mean, most = quarters.mean(dim=4), quarters.amax(dim=4)
    day = mean.mean(dim=3)
    pooled = (3 * mean.flatten(2), 3 * day, most.flatten(2), most.amax(dim=3))
    return [*pooled, torch.log1p(20 * day)]


def _build_profile_views(profiles: Tensor, sorted_readings: Tensor) -> list[Tensor]:
    """Days `[B, N, 48]` as vectors: by half-hour, coarser, sorted, and their steps."""
    coarse = _split_last_dim(promote_precision(profiles), 16).mean(dim=3)
    coarser = _split_last_dim(coarse, 4).mean(dim=3)
    return [profiles, coarse, coarser, sorted_readings, profiles.diff(dim=2)]


def _build_profile_vectors(view: Tensor) -> _ProfileVectors:
    days = promote_precision(view) / math.sqrt(view.shape[2])
    return _ProfileVectors(days, (days * days).sum(dim=2))


def _compute_distances(vectors: _ProfileVectors) -> Tensor:
    """Root mean square distances `[B, K, N]` of the nights to those before."""
    return (
        _compute_squared_distances(vectors, slice(HISTORY_NIGHTS, None))
        .clamp(min=MIN_SQUARED_DISTANCE)
        .sqrt()
    )


def _compute_squared_distances(vectors: _ProfileVectors, rows: slice) -> Tensor:
    """Mean squared distances `[B, R, N]` of some nights to the history, by a Gram matrix."""
    ours, past = vectors.vectors[:, rows], vectors.vectors[:, :HISTORY_NIGHTS]
    norm = vectors.squared_norms[:, rows, None] + vectors.squared_norms[:, None, :HISTORY_NIGHTS]
    return torch.baddbmm(norm, ours, past.transpose(1, 2), alpha=-2)


def _compute_neighbor_features(vectors: _ProfileVectors, distances: Tensor) -> Tensor:
    """How near the nights before are, next to how near they are to one another, `[B, K, 18]`.

    Nearest neighbours are taken in each third of the history, so that a recent anomaly that lasts
    does not pass for a habit.
    """
    among = _compute_squared_distances(vectors, slice(0, HISTORY_NIGHTS))
    among = among + SELF_DISTANCE_PENALTY * torch.eye(HISTORY_NIGHTS, device=among.device)
    own = sort_last_dim(_min_by_third(among).clamp(min=MIN_SQUARED_DISTANCE).sqrt().mean(dim=2))
    thirds = _min_by_third(distances)
    nearest = torch.stack(
        (thirds.mean(dim=2), thirds[:, :, :-1].mean(dim=2), thirds[:, :, -1]), dim=2
    )
    ratio = (nearest / (own[:, MEDIAN_RANK, None, None] + 0.03)).log().clamp(min=-FEATURE_LIMIT)
    rank = _compute_percentile_ranks(own, nearest[:, :, :2].flatten(1))
    return torch.cat(
        (
            sort_last_dim(distances)[:, :, NEIGHBOR_DISTANCE_RANKS],
            own[:, None, TYPICAL_DISTANCE_RANKS].expand(-1, distances.shape[1], -1),
            ratio,
            rank.view(*nearest.shape[:2], 2),
        ),
        dim=2,
    )


def _min_by_third(distances: Tensor) -> Tensor:
    """The least distance `[B, R, 3]` to each third of the history."""
    return _split_last_dim(distances, HISTORY_THIRDS).amin(dim=3)


def _blend_neighbors(distances: Tensor, history: Tensor, bandwidth: float) -> Tensor:
    """The nights before, weighted by how near they are."""
    weights = torch.softmax(-promote_precision(distances) / bandwidth, dim=2)
    return torch.bmm(weights, promote_precision(history))


def _compute_profile_statistics(
    profiles: Tensor, sorted_readings: Tensor, history_moments: tuple[Tensor, Tensor]
) -> Tensor:
    """Plain figures of a day, each as z, as z against the older nights, and as rank."""
    # Days of the same readings in another order have the same mean to the last bit.
    precise = promote_precision(profiles)
    means = precise.mean(dim=2)
    spreads = ((precise**2).mean(dim=2) - means**2).clamp(min=0).sqrt()
    mean, spread = means.to(profiles.dtype), spreads.to(profiles.dtype)
    quarters = _split_last_dim(precise, DAY_QUARTERS).mean(dim=3).to(profiles.dtype)
    step = profiles.diff(dim=2)
    slope = torch.linspace(-1, 1, HALF_HOURS, device=profiles.device, dtype=profiles.dtype)
    z = _compute_z_scores(profiles, history_moments)
    profile = (history_moments[0] - history_moments[0].mean(dim=1, keepdim=True))[:, None]
    centered = profiles - mean[:, :, None]
    alike = (centered * profile).sum(dim=2) / (centered.norm(dim=2) * profile.norm(dim=2) + 0.1)
    figures = torch.stack(
        (
            mean,
            *(sorted_readings[:, :, place] for place in (47, 45, 2, 12, 24, 36)),
            promote_precision(step.abs()).mean(dim=2).to(profiles.dtype),
            step.abs().amax(dim=2),
            spread,
            *quarters.unbind(dim=2),
            (centered * slope).mean(dim=2),
            (z**2).mean(dim=2).sqrt(),
            z.mean(dim=2),
            z.amax(dim=2),
            z.amin(dim=2),
            _soft_step(z - 1.5).mean(dim=2),
            _soft_step(-1 - z).mean(dim=2),
            alike,
            (step.abs() < 1e-6).to(profiles.dtype).mean(dim=2),
        ),
        dim=2,
    )
    before, nights = figures[:, :HISTORY_NIGHTS], figures[:, HISTORY_NIGHTS:]
    center, usual_spread = (
        value[:, None] for value in _compute_moments(promote_precision(before), profiles.dtype)
    )
    older, older_spread = (
        value[:, None]
        for value in _compute_moments(promote_precision(before[:, :-RECENT_NIGHTS]), profiles.dtype)
    )
    rank = _compute_percentile_ranks(before.transpose(1, 2), nights.transpose(1, 2)).transpose(1, 2)
    far = (nights - center) / (usual_spread + 0.03)
    older_far = (nights - older) / (older_spread + 0.03)
    return torch.cat(
        (
            far.clamp(-FEATURE_LIMIT, FEATURE_LIMIT),
            older_far.clamp(-FEATURE_LIMIT, FEATURE_LIMIT),
            rank,
        ),
        dim=2,
    )


def _compute_repeat_features(history: Tensor, nights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Half-hours that repeat the one before, and zeros; runs of them beside the habit."""
    repeated = nn.functional.pad(
        (nights.diff(dim=2).abs() < READING_TOLERANCE_KWH).to(nights.dtype), (1, 0)
    )
    zero = (nights < READING_TOLERANCE_KWH).to(nights.dtype)
    habit = torch.stack(
        (
            (history.diff(dim=2).abs() < READING_TOLERANCE_KWH).to(nights.dtype).mean(dim=(1, 2)),
            (history < READING_TOLERANCE_KWH).to(nights.dtype).mean(dim=(1, 2)),
        ),
        dim=1,
    )
    runs = [nn.functional.avg_pool1d(repeated, 2 * n + 1, 1, n).amax(dim=2) for n in (3, 6)]
    own = torch.stack((*runs, repeated.mean(dim=2), zero.mean(dim=2)), dim=2)
    return repeated, zero, torch.cat((own, habit[:, None].expand(-1, own.shape[1], -1)), dim=2)


def _compute_alignment(mean_profile: Tensor, log_readings: Tensor) -> Tensor:
    """Correlation with the mean day, turned by every hour, and with the mean day backwards."""
    usual, day = promote_precision(mean_profile)[:, None], promote_precision(log_readings)
    usual, day = (values - values.mean(dim=2, keepdim=True) for values in (usual, day))
    size = (day.norm(dim=2) * usual.norm(dim=2) + 0.1)[:, :, None]
    waves, usual_waves = torch.fft.rfft(day), torch.fft.rfft(usual).conj()
    turned = torch.fft.irfft(waves * usual_waves, n=HALF_HOURS) / size
    backwards = torch.fft.irfft(waves.conj() * usual_waves, n=HALF_HOURS) / size
    gain = turned.amax(dim=2, keepdim=True) - turned[:, :, :1]
    return torch.cat((turned[:, :, ::2], backwards[:, :, -2:-1], gain), dim=2)


def _split_last_dim(values: Tensor, n_parts: int) -> Tensor:
    """The last dimension in `count` equal parts, `[..., count, width]`."""
    return values.reshape(*values.shape[:-1], n_parts, -1)
