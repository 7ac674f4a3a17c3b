"""Generic corruptions of real days, from which a network learns what a household does not do.

Broad families rather than faults: they stand for whatever might differ from a household's habit
(outlier exposure, Hendrycks et al. 2019; CutPaste, Li et al. 2021; NCAD, Carmona et al. 2022).
What the benchmark plants is kept apart from them.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from ml.schemas import HALF_HOURS

FAMILIES_AT_ONCE: Final = 8
"""A batch is shared out among some of the families, drawn anew: few large operations."""
LASTING_SHARE: Final = 0.3
ONE_NIGHT_SHARE: Final = 0.5
PAST_SHARE: Final = 0.02
RAMP_SHARE: Final = 0.15
FAINT_SHARE: Final = 0.1
LONGEST_NIGHTS: Final = 30
RESOLUTION_KWH: Final = 1e-3
LEAST_CHANGE: Final = 0.15
LEAST_DAY_KWH: Final = 0.5


class Corrupted(NamedTuple):
    """Windows with some of their nights corrupted."""

    kwh: Tensor
    """`[B, N, 48]`."""
    family: Tensor
    """`[B, N]` 0, or 1 + the place in `FAMILIES`."""
    half_hour: Tensor
    """`[B, N, 48]` whether the half-hour is visibly changed."""


class Days:
    """Consecutive days of some households, and how the parameters of a corruption are drawn.

    A parameter is drawn for each day, or once for all days of a household where it is `lasting`.
    """

    def __init__(self, kwh: Tensor, level: Tensor, other: Tensor, lasting: Tensor) -> None:
        self.kwh, self.level, self.other, self.lasting = kwh, level, other, lasting
        self.clock = torch.arange(HALF_HOURS, device=kwh.device)

    def uniform(self, low: float, high: float, width: int = 1) -> Tensor:
        """`[B, N, width]`."""
        shape = (*self.kwh.shape[:2], width)
        drawn = low + (high - low) * torch.rand(shape, device=self.kwh.device)
        return torch.where(self.lasting, drawn[:, :1], drawn)

    def factor(self, low: float, high: float) -> Tensor:
        """`[B, N, 1]` whose logarithm is uniform."""
        return self.uniform(low, high).exp()

    def chance(self, share: float) -> Tensor:
        """`[B, N, 1]` true with this probability."""
        return self.uniform(0, 1) < share

    def either(self, share: float, one: Tensor, other: Tensor) -> Tensor:
        """One for this share of the days, the other for the rest."""
        return torch.where(self.chance(share), one, other)

    def amount(self, low: float, high: float, least_kwh: float, most_kwh: float) -> Tensor:
        """`[B, N, 1]` kWh: as often in units of the level, by log factors, as absolute."""
        absolute = self.factor(math.log(least_kwh), math.log(most_kwh))
        return self.either(0.5, self.level * self.factor(low, high), absolute)

    def block(self, shortest: float, longest: float = HALF_HOURS) -> tuple[Tensor, Tensor]:
        """A stretch of half-hours, around midnight too: `[B, N, 48]`, and its first place."""
        first = self.uniform(0, HALF_HOURS).long()
        length = self.factor(math.log(shortest), math.log(longest))
        return (self.clock - first) % HALF_HOURS < length, first

    def curve(self, knots: int, low: float, high: float) -> Tensor:
        """`[B, N, 48]` piecewise linear between uniform knots."""
        drawn = self.uniform(low, high, knots)
        return nn.functional.interpolate(drawn, size=HALF_HOURS, mode="linear", align_corners=True)

    def at(self, place: Tensor) -> Tensor:
        """The readings at half-hours `[B, N, 1 or 48]`."""
        return self.kwh.gather(2, place.expand_as(self.kwh))

    @property
    def mean(self) -> Tensor:
        """`[B, N, 1]` kWh per half-hour."""
        return self.kwh.mean(dim=2, keepdim=True)


def _other(days: Days) -> Tensor:
    return days.other * days.amount(-1, 1, 0.05, 0.6)


def _splice(days: Days) -> Tensor:
    return torch.where(days.block(8)[0], _other(days), days.kwh)


def _blend(days: Days) -> Tensor:
    return torch.lerp(days.kwh, _other(days), days.uniform(0.3, 0.9))


def _mixed(days: Days) -> Tensor:
    return days.either(0.5, _splice(days), _blend(days))


def _gain(days: Days) -> Tensor:
    knots = int(torch.randint(2, 9, ()))
    return days.kwh * (days.uniform(0.5, 2) * days.curve(knots, -1, 1)).exp()


def _turn(days: Days) -> Tensor:
    return days.at((days.clock - days.uniform(3, 46).long()) % HALF_HOURS)


def _warp(days: Days) -> Tensor:
    """Time runs unevenly, faster, slower or backwards."""
    uneven, one = days.curve(5, -1, 1).exp(), torch.ones_like(days.level)
    pace = days.either(0.3, uneven / uneven.mean(dim=2, keepdim=True), one)
    middle = HALF_HOURS / 2
    place = pace.cumsum(dim=2) - pace / 2 - middle
    place = place * days.either(0.5, days.factor(-0.9, 0.9), one)
    place = middle - 0.5 + place + days.either(0.3, days.uniform(-6, 6), 0 * one)
    place = days.either(0.5, HALF_HOURS - 1 - place, place)
    place = days.either(0.5, place.clamp(0, HALF_HOURS - 1.001), place % (HALF_HOURS - 0.001))
    before = place.long()
    return torch.lerp(
        days.at(before), days.at((before + 1).clamp(max=HALF_HOURS - 1)), place - before
    )


def _mirror(days: Days) -> Tensor:
    """The day, or a stretch of it, backwards."""
    first = days.either(0.5, days.uniform(0, 24), torch.zeros_like(days.level)).long()
    last = days.either(0.5, days.uniform(24, 48), torch.full_like(days.level, 47)).long()
    inside = (days.clock >= first) & (days.clock <= last)
    return days.at(torch.where(inside, first + last - days.clock, days.clock))


def _permute(days: Days) -> Tensor:
    """Stretches of half an hour to eight hours change places."""
    stretch = 2 ** days.uniform(0, 5).long()
    order = days.uniform(0, 1, HALF_HOURS).gather(2, (days.clock // stretch).expand_as(days.kwh))
    return days.at((order + days.clock * 1e-6).argsort(dim=2))


def _add_block(days: Days) -> Tensor:
    uneven = days.either(0.2, days.uniform(0.7, 1.3, HALF_HOURS), torch.ones_like(days.kwh))
    return days.kwh + days.block(5)[0] * days.amount(0, 2.5, 0.3, 3) * uneven


def _add_always(days: Days) -> Tensor:
    uneven = days.either(0.3, days.curve(3, 0.6, 1.4), torch.ones_like(days.kwh))
    return days.kwh + days.amount(-1.2, 2, 0.08, 1.5) * uneven


def _hold(days: Days) -> Tensor:
    block, first = days.block(6)
    mean = (days.kwh * block).sum(dim=2, keepdim=True) / block.sum(dim=2, keepdim=True)
    held = days.either(0.4, mean, days.amount(-3, 2, 0.005, 2))
    return torch.where(block, days.either(0.5, days.at(first), held), days.kwh)


def _lose(days: Days) -> Tensor:
    """Part of a stretch is lost; some of it may come back in one half-hour."""
    block, _ = days.block(4)
    zero = torch.zeros_like(days.level)
    kept = days.either(0.6, zero, days.uniform(0, 0.4))
    left = torch.where(block, days.kwh * kept, days.kwh)
    lost = (days.kwh - left).sum(dim=2, keepdim=True)
    back = days.either(0.3, lost * days.uniform(0.3, 1.2), zero)
    place = torch.rand_like(days.kwh).masked_fill(block, -1).argmax(dim=2, keepdim=True)
    return left.scatter_add(2, place, back)


def _scale(days: Days) -> Tensor:
    return days.kwh * days.either(0.5, days.factor(-3.2, -0.2), days.factor(0.25, 2.2))


def _grow(days: Days) -> Tensor:
    return days.kwh * days.factor(0.3, 1.6)


def _roughen(days: Days) -> Tensor:
    normal = (days.uniform(0.15, 1.2) * torch.randn_like(days.kwh)).exp()
    level = days.either(0.5, days.factor(-1.2, 0), torch.ones_like(days.mean))
    thinned = 1 - torch.rand_like(days.kwh) * days.uniform(0.3, 1)
    return days.kwh * days.either(0.5, normal * level, thinned)


def _spike(days: Days) -> Tensor:
    scattered = torch.rand_like(days.kwh).argsort(dim=2) < days.uniform(1, 4).long()
    places = days.either(0.3, scattered.float(), days.block(1, 4)[0].float())
    height = days.amount(1, 3.5, 1, 9) * (0.6 + 0.8 * torch.rand_like(days.kwh))
    return days.kwh + places * height


def _smooth(days: Days) -> Tensor:
    around = nn.functional.pad(days.kwh, (8, 8), mode="circular")
    return torch.lerp(days.mean, nn.functional.avg_pool1d(around, 17, 1), days.uniform(0, 1))


def _clip(days: Days) -> Tensor:
    edge = days.mean * days.factor(-1.2, 0.9)
    return days.either(0.7, days.kwh.minimum(edge), days.kwh.maximum(0.7 * edge))


def _noise(days: Days) -> Tensor:
    """Nothing of the day is left but noise around a level."""
    level = days.either(0.6, days.mean, days.amount(-3, 1.5, 0.005, 1.5))
    steady = days.uniform(0, 0.6)
    drawn = steady + (1 - steady) * torch.rand_like(days.kwh)
    return level * days.uniform(0.3, 1.8) * drawn


def _idle(days: Days) -> Tensor:
    lowest = days.kwh.amin(dim=2, keepdim=True)
    level = days.either(0.5, lowest, days.amount(-4, -1, 0.001, 0.05)) * days.factor(-0.7, 0.7)
    normal = (days.uniform(0, 0.5) * torch.randn_like(days.kwh)).exp()
    return level * days.either(0.5, normal, 2 * torch.rand_like(days.kwh))


FAMILIES: Final[tuple[tuple[Callable[[Days], Tensor], ...], ...]] = (
    (_scale, _scale, _scale, _grow),
    (_gain, _smooth),
    (_roughen, _roughen, _roughen),
    (_lose, _lose, _lose),
    (_hold, _hold),
    (_noise, _noise),
    (_idle, _idle),
    (_clip, _clip),
    (_add_block, _add_block),
    (_add_always,),
    (_spike, _spike),
    (_turn, _turn, _mirror, _warp, _permute),
    (_other, _mixed),
)
"""Alike families stand together: what to tell them apart by is one output of a network.

A family is drawn as often as it is named. What only a meter or a theft does outweighs what people
do too, and plain changes outweigh intricate ones.
"""
_DRAWN: Final = tuple(
    (group, family) for group, families in enumerate(FAMILIES, start=1) for family in families
)


def corrupt(kwh: Tensor, level: Tensor, judged: int) -> Corrupted:
    """Corrupt some nights of windows `[B, N, 48]` without gaps, in kWh; `level` `[B]`.

    Half of the last `judged` nights are corrupted one by one, or a stretch of nights is, in a way
    that lasts and may have begun or ended before them. Nights that hardly change stay as they are.
    """
    rows, nights = kwh.shape[:2]
    device, scale = kwh.device, level[:, None, None]
    lasting = torch.rand(rows, 1, 1, device=device) < LASTING_SHARE
    other = _others(kwh / scale, lasting)
    changed = torch.empty_like(kwh)
    group = torch.zeros(rows, 1, dtype=torch.long, device=device)
    drawn = torch.randperm(len(_DRAWN))[:FAMILIES_AT_ONCE].tolist()
    parts = torch.tensor_split(torch.arange(rows, device=device), len(drawn))
    for place, part in zip(drawn, parts, strict=True):
        if len(part):
            days = Days(kwh[part], scale[part], other[part], lasting[part])
            group[part], family = _DRAWN[place]
            changed[part] = family(days)
    faint = torch.rand(rows, 1, 1, device=device) < FAINT_SHARE
    weight = torch.where(faint, torch.empty_like(scale).uniform_(0.4, 0.9), 1.0)
    when, ramp = _when(lasting[:, 0], nights, judged)
    changed = torch.lerp(kwh, changed, weight * ramp[:, :, None]).clamp(min=0)
    changed = (changed / RESOLUTION_KWH).round() * RESOLUTION_KWH
    difference = (changed - kwh).abs()
    half_hour = difference > 0.02 + 0.1 * kwh
    enough = LEAST_CHANGE * kwh.sum(dim=2).clamp(min=LEAST_DAY_KWH)
    night = when & (difference.sum(dim=2) > enough) & half_hour.any(dim=2)
    there = night[:, :, None]
    return Corrupted(torch.where(there, changed, kwh), group * night, half_hour & there)


def _others(days: Tensor, lasting: Tensor) -> Tensor:
    """Days of other households `[B, N, 48]` in level units: one household's where it lasts."""
    rows, nights = days.shape[:2]
    flat = days.flatten(0, 1)
    anyone = flat[torch.randint(len(flat), (rows, nights), device=days.device)]
    someone = days[torch.randint(rows, (rows,), device=days.device)]
    return torch.where(lasting, someone, anyone)


def _when(lasting: Tensor, nights: int, judged: int) -> tuple[Tensor, Tensor]:
    """Which nights `[B, N]` to corrupt, and how far a lasting corruption has grown, 0 to 1."""
    rows, device = len(lasting), lasting.device
    place = torch.arange(nights, device=device)
    alone = torch.where(place < nights - judged, PAST_SHARE, ONE_NIGHT_SHARE)
    first = torch.randint(nights, (rows, 1), device=device)
    length = torch.randint(2, LONGEST_NIGHTS, (rows, 1), device=device)
    age = place - first
    stretch = (age >= 0) & (age < length)
    slow = lasting & (torch.rand(rows, 1, device=device) < RAMP_SHARE)
    when = torch.where(lasting, stretch, torch.rand(rows, nights, device=device) < alone)
    return when, torch.where(slow, ((age + 1) / length).clamp(0, 1), 1.0)
