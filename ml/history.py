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
WEEK: Final = 7
LEAST_HALF_HOURS: Final = 24
LEAST_LEVEL_KWH: Final = 0.02
SAME_KWH: Final = 5e-4
FLOOR: Final = 0.1
UNIT: Final = 0.6

QUANTILES: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
NEAREST: Final = (0, 1, 2, 4, 9, 19, 30, 41)
TYPICAL: Final = (2, 10, 21, 31, 39)
"""Ranks among the household's own nights at which their distances are read."""
MIDDLE: Final = HISTORY_NIGHTS // 2
THIRDS: Final = 3
QUARTERS: Final = 4
ALIKE: Final = 5e-3
"""Figures of days within half of it are partly above, partly below one another."""
SAME_SQUARE: Final = 1e-9
"""Squared distances below it are differences of rounding errors."""
DISTANT: Final = 1e4
LIMIT: Final = 8.0


class Described(NamedTuple):
    """Nights `[B, K]` and what their past says of them."""

    median: Tensor
    """`[B, K, 48]` the household's median at each half-hour."""
    half_hours: Tensor
    """`[B, K, C, 48]` figures of each half-hour."""
    night: Tensor
    """`[B, K, G]` figures of the night."""


class _Past(NamedTuple):
    """Nights before `[B, N, 48]`, and each half-hour's distribution among them."""

    x: Tensor
    quantiles: Tensor
    """`[B, Q, 48]`."""
    recent: tuple[Tensor, Tensor]
    """Mean and standard deviation `[B, 48]` of the last two weeks."""
    older: tuple[Tensor, Tensor]
    """The same of the nights before those."""
    all: tuple[Tensor, Tensor]


class _Vectors(NamedTuple):
    """Days seen in one way, so that squared distances are means over the half-hours."""

    days: Tensor
    """`[B, N + K, W]`."""
    norms: Tensor
    """`[B, N + K]` squared."""


def usual_level(history: Tensor) -> Tensor:
    """Median of the daily means `[B]` of nights `[B, N, 48]`, kWh per half-hour."""
    observed = ~history.isnan()
    enough = observed.sum(dim=2) >= LEAST_HALF_HOURS
    means = ordered(torch.where(enough, history.nanmean(dim=2), torch.inf))
    middle = (enough.sum(dim=1, keepdim=True) - 1).clamp(min=0) // 2
    median = means.gather(1, middle)[:, 0]
    return torch.where(median.isinf(), 0.0, median).clamp(min=LEAST_LEVEL_KWH)


def in_units(kwh: Tensor, level: Tensor) -> Tensor:
    """Readings `[B, N, 48]` on the scale that everything is compared on, about 0 to 3.

    Logarithmic down to a tenth of the level, so that a lost base load shows as well as a peak.
    """
    return UNIT * log1p(kwh / (FLOOR * level[:, None, None]))


def in_kwh(x: Tensor, level: Tensor) -> Tensor:
    """Back from `in_units`."""
    return FLOOR * level[:, None, None] * torch.expm1(x / UNIT)


def complete(history: Tensor, level: Tensor) -> Tensor:
    """Nights `[B, N, 48]` without gaps: half-hours at their mean, whole nights as another one.

    Nights that are missing are stood in for by those that are there, the latest first.
    """
    there = (~history.isnan()).sum(dim=2) >= LEAST_HALF_HOURS
    known = torch.where(there[:, :, None], history, torch.nan)
    mean = exact(known).nanmean(dim=1, keepdim=True).to(history.dtype)
    mean = torch.where(mean.isnan(), level[:, None, None], mean)
    filled = torch.where(history.isnan(), mean, history)
    nights = history.shape[1]
    latest = torch.arange(nights - 1, -1, -1, device=history.device)
    found = torch.where(there, latest, latest + nights).argsort(dim=1)
    turn = latest % there.sum(dim=1, keepdim=True).clamp(min=1)
    stand_in = torch.where(there, nights - 1 - latest, found.gather(1, turn))
    return filled.gather(1, stand_in[:, :, None].expand_as(filled))


def describe(history: Tensor, nights: Tensor, level: Tensor) -> Described:
    """Hold nights `[B, K, 48]`, NaN where missing, against `HISTORY_NIGHTS` complete nights.

    Both in kWh; the nights follow upon the history, one after another.
    """
    past = _past(in_units(history, level))
    observed = ~nights.isnan()
    median = past.quantiles[:, None, len(QUANTILES) // 2]
    x = torch.where(observed, in_units(nights, level), median)
    days = torch.cat((past.x, x), dim=1)
    by_size = ordered(days)
    vectors = [_vectors(view) for view in _views(days, by_size)]
    distances = [_distances(view) for view in vectors]
    near = [_blend(distances[view], past.x, width) for view, width in ((0, 0.08), (1, 0.06))]
    half_hours = [*_positions(past, x), *(x - blend for blend in near), x - _same_weekday(past, x)]
    outside = _outside(past, x, near[0])
    repeats, zeros, habits = _repeats(history, nights)
    spread = past.quantiles[:, -2] - past.quantiles[:, 1]
    wide = [past.recent[0] - past.older[0], past.all[1], spread]
    half_hours += [*outside[:4], repeats, zeros, observed.to(x.dtype)]
    half_hours += [value[:, None].expand_as(x) for value in wide]
    figures = [
        *(_nearness(view, distance) for view, distance in zip(vectors, distances, strict=True)),
        _statistics(days, by_size, past.all),
        habits,
        _alignment(past.all[0], x),
        observed.to(x.dtype).mean(dim=2, keepdim=True),
        *_pooled(outside),
    ]
    night = torch.cat([exact(each) for each in figures], dim=2).clamp(-LIMIT, LIMIT)
    half_hours = [exact(each) for each in half_hours]
    return Described(median.expand_as(x), torch.stack(half_hours, dim=2), night)


def ordered(values: Tensor) -> Tensor:
    """Sorted along the last dimension; on a CPU by NumPy, which is nine times as fast."""
    if values.is_cuda or torch.compiler.is_exporting():
        return values.sort(dim=-1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1))


def log1p(values: Tensor) -> Tensor:
    """The logarithm of 1 + x, of equal readings equal to the last bit wherever they stand.

    ONNX Runtime's single-precision logarithm rounds the last values of a row in another way.
    """
    if torch.compiler.is_exporting():
        return values.double().log1p().to(values.dtype)
    return values.log1p()


def exact(values: Tensor) -> Tensor:
    """In double precision where nothing is learned, and where a product would be rounded.

    The last bits of a product depend on where in memory, so with whom in a batch, a row lies;
    those of a double vanish when the score is stored as a single. A GPU and mixed precision round
    products of singles to three digits: distances among alike days would be noise.
    """
    if torch.is_grad_enabled() and not values.is_cuda:
        return values.double() if torch.is_autocast_enabled(values.device.type) else values
    return values.double()


def _past(x: Tensor) -> _Past:
    by_half_hour = ordered(x.transpose(1, 2).contiguous())
    precise = exact(x)
    places = [round(q * (HISTORY_NIGHTS - 1)) for q in QUANTILES]
    return _Past(
        x=x,
        quantiles=by_half_hour[:, :, places].transpose(1, 2).contiguous(),
        recent=_moments(precise[:, -RECENT_NIGHTS:], x.dtype),
        older=_moments(precise[:, :-RECENT_NIGHTS], x.dtype),
        all=_moments(precise, x.dtype),
    )


def _moments(precise: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over dimension 1, rounded to `kind`."""
    mean = precise.mean(dim=1)
    deviation = ((precise**2).mean(dim=1) - mean**2).clamp(min=0).sqrt()
    return mean.to(kind), deviation.to(kind)


def _z(x: Tensor, moments: tuple[Tensor, Tensor]) -> Tensor:
    mean, deviation = (value[:, None] for value in moments)
    return ((x - mean) / (deviation + 0.12)).clamp(-LIMIT, LIMIT)


def _rank(among: Tensor, values: Tensor) -> Tensor:
    """Share of `among` `[..., N]` below each of `values` `[..., K]`, half of what is alike.

    What is alike is weighed by a ramp: with a step, the last bit of a figure could change a score.
    """
    above = values[..., None] - among[..., None, :]
    return _passed(above).mean(dim=-1, dtype=torch.float64).to(values.dtype)


def _passed(above: Tensor) -> Tensor:
    """0 where below zero, 1 where above, a ramp where alike."""
    return (above / ALIKE + 0.5).clamp(0, 1)


def _positions(past: _Past, x: Tensor) -> list[Tensor]:
    """Where each half-hour stands among the same half-hours of the nights before."""
    rank = _rank(past.x.transpose(1, 2), x.transpose(1, 2)).transpose(1, 2)
    median = past.quantiles[:, None, len(QUANTILES) // 2]
    return [x - median, _z(x, past.all), _z(x, past.older), _z(x, past.recent), rank]


def _same_weekday(past: _Past, x: Tensor) -> Tensor:
    """Mean of the nights one, two, three ... weeks before each night."""
    means = []
    for night in range(x.shape[1]):
        last = HISTORY_NIGHTS + night
        weeks = [place for place in range(last - WEEK, -1, -WEEK) if place < HISTORY_NIGHTS]
        means.append(past.x[:, weeks].mean(dim=1))
    return torch.stack(means, dim=1)


def _outside(past: _Past, x: Tensor, near: Tensor) -> list[Tensor]:
    """How far each half-hour leaves what was seen at that time of day, an hour's slack given."""
    high = nn.functional.max_pool1d(past.quantiles[:, -2:], 3, 1, 1)[:, None]
    low = -nn.functional.max_pool1d(-past.quantiles[:, :2], 3, 1, 1)[:, None]
    z = _z(x, past.older) / 4
    signed = (x - high[:, :, 1], low[:, :, 0] - x, x - high[:, :, 0], low[:, :, 1] - x)
    return [exact(value).clamp(min=0) for value in (*signed, x - near, near - x, z, -z)]


def _pooled(outside: list[Tensor]) -> list[Tensor]:
    """Means and maxima over the quarters of the day, and over the day."""
    quarters = _parts(torch.stack(outside, dim=2), QUARTERS)
    mean, most = quarters.mean(dim=4), quarters.amax(dim=4)
    day = mean.mean(dim=3)
    pooled = (3 * mean.flatten(2), 3 * day, most.flatten(2), most.amax(dim=3))
    return [*pooled, torch.log1p(20 * day)]


def _views(days: Tensor, by_size: Tensor) -> list[Tensor]:
    """Days `[B, N, 48]` as vectors: by half-hour, coarser, sorted, and their steps."""
    coarse = _parts(exact(days), 16).mean(dim=3)
    coarser = _parts(coarse, 4).mean(dim=3)
    return [days, coarse, coarser, by_size, days.diff(dim=2)]


def _vectors(view: Tensor) -> _Vectors:
    days = exact(view) / math.sqrt(view.shape[2])
    return _Vectors(days, (days * days).sum(dim=2))


def _distances(vectors: _Vectors) -> Tensor:
    """Root mean square distances `[B, K, N]` of the nights to those before."""
    return _squares(vectors, slice(HISTORY_NIGHTS, None)).clamp(min=SAME_SQUARE).sqrt()


def _squares(vectors: _Vectors, rows: slice) -> Tensor:
    """Mean squared distances `[B, R, N]` of some nights to the history, by a Gram matrix."""
    ours, past = vectors.days[:, rows], vectors.days[:, :HISTORY_NIGHTS]
    norm = vectors.norms[:, rows, None] + vectors.norms[:, None, :HISTORY_NIGHTS]
    return torch.baddbmm(norm, ours, past.transpose(1, 2), alpha=-2)


def _nearness(vectors: _Vectors, distances: Tensor) -> Tensor:
    """How near the nights before are, next to how near they are to one another, `[B, K, 18]`.

    Nearest neighbours are taken in each third of the history, so that a recent anomaly that lasts
    does not pass for a habit.
    """
    among = _squares(vectors, slice(0, HISTORY_NIGHTS))
    among = among + DISTANT * torch.eye(HISTORY_NIGHTS, device=among.device)
    own = ordered(_by_third(among).clamp(min=SAME_SQUARE).sqrt().mean(dim=2))
    thirds = _by_third(distances)
    nearest = torch.stack(
        (thirds.mean(dim=2), thirds[:, :, :-1].mean(dim=2), thirds[:, :, -1]), dim=2
    )
    ratio = (nearest / (own[:, MIDDLE, None, None] + 0.03)).log().clamp(min=-LIMIT)
    rank = _rank(own, nearest[:, :, :2].flatten(1))
    return torch.cat(
        (
            ordered(distances)[:, :, NEAREST],
            own[:, None, TYPICAL].expand(-1, distances.shape[1], -1),
            ratio,
            rank.view(*nearest.shape[:2], 2),
        ),
        dim=2,
    )


def _by_third(distances: Tensor) -> Tensor:
    """The least distance `[B, R, 3]` to each third of the history."""
    return _parts(distances, THIRDS).amin(dim=3)


def _blend(distances: Tensor, past: Tensor, width: float) -> Tensor:
    """The nights before, weighted by how near they are."""
    weights = torch.softmax(-exact(distances) / width, dim=2)
    return torch.bmm(weights, exact(past))


def _statistics(days: Tensor, by_size: Tensor, usual: tuple[Tensor, Tensor]) -> Tensor:
    """Plain figures of a day, each as z, as z against the older nights, and as rank."""
    # Days of the same readings in another order have the same mean to the last bit.
    precise = exact(days)
    means = precise.mean(dim=2)
    spreads = ((precise**2).mean(dim=2) - means**2).clamp(min=0).sqrt()
    mean, spread = means.to(days.dtype), spreads.to(days.dtype)
    quarters = _parts(precise, QUARTERS).mean(dim=3).to(days.dtype)
    step = days.diff(dim=2)
    slope = torch.linspace(-1, 1, HALF_HOURS, device=days.device, dtype=days.dtype)
    z = _z(days, usual)
    profile = (usual[0] - usual[0].mean(dim=1, keepdim=True))[:, None]
    centered = days - mean[:, :, None]
    alike = (centered * profile).sum(dim=2) / (centered.norm(dim=2) * profile.norm(dim=2) + 0.1)
    figures = torch.stack(
        (
            mean,
            *(by_size[:, :, place] for place in (47, 45, 2, 12, 24, 36)),
            exact(step.abs()).mean(dim=2).to(days.dtype),
            step.abs().amax(dim=2),
            spread,
            *quarters.unbind(dim=2),
            (centered * slope).mean(dim=2),
            (z**2).mean(dim=2).sqrt(),
            z.mean(dim=2),
            z.amax(dim=2),
            z.amin(dim=2),
            _passed(z - 1.5).mean(dim=2),
            _passed(-1 - z).mean(dim=2),
            alike,
            (step.abs() < 1e-6).to(days.dtype).mean(dim=2),
        ),
        dim=2,
    )
    before, nights = figures[:, :HISTORY_NIGHTS], figures[:, HISTORY_NIGHTS:]
    center, usual_spread = (value[:, None] for value in _moments(exact(before), days.dtype))
    older, older_spread = (
        value[:, None] for value in _moments(exact(before[:, :-RECENT_NIGHTS]), days.dtype)
    )
    rank = _rank(before.transpose(1, 2), nights.transpose(1, 2)).transpose(1, 2)
    far = (nights - center) / (usual_spread + 0.03)
    older_far = (nights - older) / (older_spread + 0.03)
    return torch.cat((far.clamp(-LIMIT, LIMIT), older_far.clamp(-LIMIT, LIMIT), rank), dim=2)


def _repeats(history: Tensor, nights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Half-hours that repeat the one before, and zeros; runs of them beside the habit."""
    repeated = nn.functional.pad((nights.diff(dim=2).abs() < SAME_KWH).to(nights.dtype), (1, 0))
    zero = (nights < SAME_KWH).to(nights.dtype)
    habit = torch.stack(
        (
            (history.diff(dim=2).abs() < SAME_KWH).to(nights.dtype).mean(dim=(1, 2)),
            (history < SAME_KWH).to(nights.dtype).mean(dim=(1, 2)),
        ),
        dim=1,
    )
    runs = [nn.functional.avg_pool1d(repeated, 2 * n + 1, 1, n).amax(dim=2) for n in (3, 6)]
    own = torch.stack((*runs, repeated.mean(dim=2), zero.mean(dim=2)), dim=2)
    return repeated, zero, torch.cat((own, habit[:, None].expand(-1, own.shape[1], -1)), dim=2)


def _alignment(mean: Tensor, x: Tensor) -> Tensor:
    """Correlation with the mean day, turned by every hour, and with the mean day backwards."""
    usual, day = exact(mean)[:, None], exact(x)
    usual, day = (values - values.mean(dim=2, keepdim=True) for values in (usual, day))
    size = (day.norm(dim=2) * usual.norm(dim=2) + 0.1)[:, :, None]
    waves, usual_waves = torch.fft.rfft(day), torch.fft.rfft(usual).conj()
    turned = torch.fft.irfft(waves * usual_waves, n=HALF_HOURS) / size
    backwards = torch.fft.irfft(waves.conj() * usual_waves, n=HALF_HOURS) / size
    gain = turned.amax(dim=2, keepdim=True) - turned[:, :, :1]
    return torch.cat((turned[:, :, ::2], backwards[:, :, -2:-1], gain), dim=2)


def _parts(values: Tensor, count: int) -> Tensor:
    """The last dimension in `count` equal parts, `[..., count, width]`."""
    return values.reshape(*values.shape[:-1], count, -1)
