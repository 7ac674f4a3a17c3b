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

FAMILIES_PER_BATCH: Final = 8
"""A batch is shared out among some of the families, drawn anew: few large operations."""
LASTING_SHARE: Final = 0.3
ONE_NIGHT_SHARE: Final = 0.5
HISTORY_NIGHT_SHARE: Final = 0.02
RAMP_SHARE: Final = 0.15
FAINT_SHARE: Final = 0.1
MAX_LASTING_NIGHTS: Final = 30
METER_RESOLUTION_KWH: Final = 1e-3
MIN_CHANGE_SHARE: Final = 0.15
MIN_PROFILE_KWH: Final = 0.5


class CorruptedWindows(NamedTuple):
    """Windows with some of their nights corrupted."""

    kwh: Tensor
    """`[B, N, 48]`."""
    family_label: Tensor
    """`[B, N]` 0, or 1 + the place in `FAMILIES`."""
    is_changed: Tensor
    """`[B, N, 48]` whether the half-hour is visibly changed."""


class ProfileBatch:
    """Consecutive days of some households, and how the parameters of a corruption are drawn.

    A parameter is drawn for each day, or once for all days of a household where it is `lasting`.
    """

    def __init__(
        self, kwh: Tensor, level: Tensor, other_profiles: Tensor, is_lasting: Tensor
    ) -> None:
        self.kwh, self.level, self.other_profiles, self.is_lasting = (
            kwh,
            level,
            other_profiles,
            is_lasting,
        )
        self.half_hour_index = torch.arange(HALF_HOURS, device=kwh.device)

    def draw_uniform(self, low: float, high: float, width: int = 1) -> Tensor:
        """`[B, N, width]`."""
        shape = (*self.kwh.shape[:2], width)
        drawn = low + (high - low) * torch.rand(shape, device=self.kwh.device)
        return torch.where(self.is_lasting, drawn[:, :1], drawn)

    def draw_log_uniform(self, min_log_factor: float, max_log_factor: float) -> Tensor:
        """`[B, N, 1]` whose logarithm is uniform."""
        return self.draw_uniform(min_log_factor, max_log_factor).exp()

    def draw_bernoulli(self, probability: float) -> Tensor:
        """`[B, N, 1]` true with this probability."""
        return self.draw_uniform(0, 1) < probability

    def choose_randomly(self, probability: float, one: Tensor, other: Tensor) -> Tensor:
        """One for this share of the days, the other for the rest."""
        return torch.where(self.draw_bernoulli(probability), one, other)

    def draw_kwh(
        self, min_log_factor: float, max_log_factor: float, min_kwh: float, max_kwh: float
    ) -> Tensor:
        """`[B, N, 1]` kWh: as often in units of the level, by log factors, as absolute."""
        absolute = self.draw_log_uniform(math.log(min_kwh), math.log(max_kwh))
        return self.choose_randomly(
            0.5, self.level * self.draw_log_uniform(min_log_factor, max_log_factor), absolute
        )

    def draw_block(
        self, min_length: float, max_length: float = HALF_HOURS
    ) -> tuple[Tensor, Tensor]:
        """A stretch of half-hours, around midnight too: `[B, N, 48]`, and its first place."""
        first = self.draw_uniform(0, HALF_HOURS).long()
        length = self.draw_log_uniform(math.log(min_length), math.log(max_length))
        return (self.half_hour_index - first) % HALF_HOURS < length, first

    def draw_curve(self, n_knots: int, low: float, high: float) -> Tensor:
        """`[B, N, 48]` piecewise linear between uniform knots."""
        drawn = self.draw_uniform(low, high, n_knots)
        return nn.functional.interpolate(drawn, size=HALF_HOURS, mode="linear", align_corners=True)

    def take_readings(self, half_hour: Tensor) -> Tensor:
        """The readings at half-hours `[B, N, 1 or 48]`."""
        return self.kwh.gather(2, half_hour.expand_as(self.kwh))

    @property
    def mean_kwh(self) -> Tensor:
        """`[B, N, 1]` kWh per half-hour."""
        return self.kwh.mean(dim=2, keepdim=True)


def _replace_with_other(profiles: ProfileBatch) -> Tensor:
    return profiles.other_profiles * profiles.draw_kwh(-1, 1, 0.05, 0.6)


def _splice_other(profiles: ProfileBatch) -> Tensor:
    return torch.where(profiles.draw_block(8)[0], _replace_with_other(profiles), profiles.kwh)


def _blend_with_other(profiles: ProfileBatch) -> Tensor:
    return torch.lerp(profiles.kwh, _replace_with_other(profiles), profiles.draw_uniform(0.3, 0.9))


def _splice_or_blend(profiles: ProfileBatch) -> Tensor:
    return profiles.choose_randomly(0.5, _splice_other(profiles), _blend_with_other(profiles))


def _apply_gain_curve(profiles: ProfileBatch) -> Tensor:
    knots = int(torch.randint(2, 9, ()))
    return profiles.kwh * (profiles.draw_uniform(0.5, 2) * profiles.draw_curve(knots, -1, 1)).exp()


def _rotate_clock(profiles: ProfileBatch) -> Tensor:
    return profiles.take_readings(
        (profiles.half_hour_index - profiles.draw_uniform(3, 46).long()) % HALF_HOURS
    )


def _warp_time(profiles: ProfileBatch) -> Tensor:
    """Time runs unevenly, faster, slower or backwards."""
    uneven, one = profiles.draw_curve(5, -1, 1).exp(), torch.ones_like(profiles.level)
    pace = profiles.choose_randomly(0.3, uneven / uneven.mean(dim=2, keepdim=True), one)
    middle = HALF_HOURS / 2
    place = pace.cumsum(dim=2) - pace / 2 - middle
    place = place * profiles.choose_randomly(0.5, profiles.draw_log_uniform(-0.9, 0.9), one)
    place = (
        middle - 0.5 + place + profiles.choose_randomly(0.3, profiles.draw_uniform(-6, 6), 0 * one)
    )
    place = profiles.choose_randomly(0.5, HALF_HOURS - 1 - place, place)
    place = profiles.choose_randomly(
        0.5, place.clamp(0, HALF_HOURS - 1.001), place % (HALF_HOURS - 0.001)
    )
    before = place.long()
    return torch.lerp(
        profiles.take_readings(before),
        profiles.take_readings((before + 1).clamp(max=HALF_HOURS - 1)),
        place - before,
    )


def _reverse_stretch(profiles: ProfileBatch) -> Tensor:
    """The day, or a stretch of it, backwards."""
    first = profiles.choose_randomly(
        0.5, profiles.draw_uniform(0, 24), torch.zeros_like(profiles.level)
    ).long()
    last = profiles.choose_randomly(
        0.5, profiles.draw_uniform(24, 48), torch.full_like(profiles.level, 47)
    ).long()
    inside = (profiles.half_hour_index >= first) & (profiles.half_hour_index <= last)
    return profiles.take_readings(
        torch.where(inside, first + last - profiles.half_hour_index, profiles.half_hour_index)
    )


def _permute_stretches(profiles: ProfileBatch) -> Tensor:
    """Stretches of half an hour to eight hours change places."""
    stretch = 2 ** profiles.draw_uniform(0, 5).long()
    order = profiles.draw_uniform(0, 1, HALF_HOURS).gather(
        2, (profiles.half_hour_index // stretch).expand_as(profiles.kwh)
    )
    return profiles.take_readings((order + profiles.half_hour_index * 1e-6).argsort(dim=2))


def _add_block(profiles: ProfileBatch) -> Tensor:
    uneven = profiles.choose_randomly(
        0.2, profiles.draw_uniform(0.7, 1.3, HALF_HOURS), torch.ones_like(profiles.kwh)
    )
    return profiles.kwh + profiles.draw_block(5)[0] * profiles.draw_kwh(0, 2.5, 0.3, 3) * uneven


def _add_baseload(profiles: ProfileBatch) -> Tensor:
    uneven = profiles.choose_randomly(
        0.3, profiles.draw_curve(3, 0.6, 1.4), torch.ones_like(profiles.kwh)
    )
    return profiles.kwh + profiles.draw_kwh(-1.2, 2, 0.08, 1.5) * uneven


def _hold_constant(profiles: ProfileBatch) -> Tensor:
    block, first = profiles.draw_block(6)
    mean = (profiles.kwh * block).sum(dim=2, keepdim=True) / block.sum(dim=2, keepdim=True)
    held = profiles.choose_randomly(0.4, mean, profiles.draw_kwh(-3, 2, 0.005, 2))
    return torch.where(
        block, profiles.choose_randomly(0.5, profiles.take_readings(first), held), profiles.kwh
    )


def _lose_consumption(profiles: ProfileBatch) -> Tensor:
    """Part of a stretch is lost; some of it may come back in one half-hour."""
    block, _ = profiles.draw_block(4)
    zero = torch.zeros_like(profiles.level)
    kept = profiles.choose_randomly(0.6, zero, profiles.draw_uniform(0, 0.4))
    left = torch.where(block, profiles.kwh * kept, profiles.kwh)
    lost = (profiles.kwh - left).sum(dim=2, keepdim=True)
    back = profiles.choose_randomly(0.3, lost * profiles.draw_uniform(0.3, 1.2), zero)
    place = torch.rand_like(profiles.kwh).masked_fill(block, -1).argmax(dim=2, keepdim=True)
    return left.scatter_add(2, place, back)


def _scale_profile(profiles: ProfileBatch) -> Tensor:
    return profiles.kwh * profiles.choose_randomly(
        0.5, profiles.draw_log_uniform(-3.2, -0.2), profiles.draw_log_uniform(0.25, 2.2)
    )


def _scale_up(profiles: ProfileBatch) -> Tensor:
    return profiles.kwh * profiles.draw_log_uniform(0.3, 1.6)


def _roughen_profile(profiles: ProfileBatch) -> Tensor:
    normal = (profiles.draw_uniform(0.15, 1.2) * torch.randn_like(profiles.kwh)).exp()
    level = profiles.choose_randomly(
        0.5, profiles.draw_log_uniform(-1.2, 0), torch.ones_like(profiles.mean_kwh)
    )
    thinned = 1 - torch.rand_like(profiles.kwh) * profiles.draw_uniform(0.3, 1)
    return profiles.kwh * profiles.choose_randomly(0.5, normal * level, thinned)


def _add_spikes(profiles: ProfileBatch) -> Tensor:
    scattered = torch.rand_like(profiles.kwh).argsort(dim=2) < profiles.draw_uniform(1, 4).long()
    places = profiles.choose_randomly(0.3, scattered.float(), profiles.draw_block(1, 4)[0].float())
    height = profiles.draw_kwh(1, 3.5, 1, 9) * (0.6 + 0.8 * torch.rand_like(profiles.kwh))
    return profiles.kwh + places * height


def _smooth_profile(profiles: ProfileBatch) -> Tensor:
    around = nn.functional.pad(profiles.kwh, (8, 8), mode="circular")
    return torch.lerp(
        profiles.mean_kwh, nn.functional.avg_pool1d(around, 17, 1), profiles.draw_uniform(0, 1)
    )


def _clip_profile(profiles: ProfileBatch) -> Tensor:
    edge = profiles.mean_kwh * profiles.draw_log_uniform(-1.2, 0.9)
    return profiles.choose_randomly(
        0.7, profiles.kwh.minimum(edge), profiles.kwh.maximum(0.7 * edge)
    )


def _replace_with_noise(profiles: ProfileBatch) -> Tensor:
    """Nothing of the day is left but noise around a level."""
    level = profiles.choose_randomly(0.6, profiles.mean_kwh, profiles.draw_kwh(-3, 1.5, 0.005, 1.5))
    steady = profiles.draw_uniform(0, 0.6)
    drawn = steady + (1 - steady) * torch.rand_like(profiles.kwh)
    return level * profiles.draw_uniform(0.3, 1.8) * drawn


def _replace_with_idle_load(profiles: ProfileBatch) -> Tensor:
    lowest = profiles.kwh.amin(dim=2, keepdim=True)
    level = profiles.choose_randomly(
        0.5, lowest, profiles.draw_kwh(-4, -1, 0.001, 0.05)
    ) * profiles.draw_log_uniform(-0.7, 0.7)
    normal = (profiles.draw_uniform(0, 0.5) * torch.randn_like(profiles.kwh)).exp()
    return level * profiles.choose_randomly(0.5, normal, 2 * torch.rand_like(profiles.kwh))


CORRUPTION_FAMILIES: Final[tuple[tuple[Callable[[ProfileBatch], Tensor], ...], ...]] = (
    (_scale_profile, _scale_profile, _scale_profile, _scale_up),
    (_apply_gain_curve, _smooth_profile),
    (_roughen_profile, _roughen_profile, _roughen_profile),
    (_lose_consumption, _lose_consumption, _lose_consumption),
    (_hold_constant, _hold_constant),
    (_replace_with_noise, _replace_with_noise),
    (_replace_with_idle_load, _replace_with_idle_load),
    (_clip_profile, _clip_profile),
    (_add_block, _add_block),
    (_add_baseload,),
    (_add_spikes, _add_spikes),
    (_rotate_clock, _rotate_clock, _reverse_stretch, _warp_time, _permute_stretches),
    (_replace_with_other, _splice_or_blend),
)
"""Alike families stand together: what to tell them apart by is one output of a network.

A family is drawn as often as it is named. What only a meter or a theft does outweighs what people
do too, and plain changes outweigh intricate ones.
"""
_FAMILY_CHOICES: Final = tuple(
    (group, family)
    for group, families in enumerate(CORRUPTION_FAMILIES, start=1)
    for family in families
)


def corrupt_windows(kwh: Tensor, level: Tensor, n_target_nights: int) -> CorruptedWindows:
    """Corrupt some nights of windows `[B, N, 48]` without gaps, in kWh; `level` `[B]`.

    Half of the last `judged` nights are corrupted one by one, or a stretch of nights is, in a way
    that lasts and may have begun or ended before them. Nights that hardly change stay as they are.
    """
    rows, nights = kwh.shape[:2]
    device, scale = kwh.device, level[:, None, None]
    lasting = torch.rand(rows, 1, 1, device=device) < LASTING_SHARE
    other = _draw_other_profiles(kwh / scale, lasting)
    changed = torch.empty_like(kwh)
    group = torch.zeros(rows, 1, dtype=torch.long, device=device)
    drawn = torch.randperm(len(_FAMILY_CHOICES))[:FAMILIES_PER_BATCH].tolist()
    parts = torch.tensor_split(torch.arange(rows, device=device), len(drawn))
    for place, part in zip(drawn, parts, strict=True):
        if len(part):
            days = ProfileBatch(kwh[part], scale[part], other[part], lasting[part])
            group[part], family = _FAMILY_CHOICES[place]
            changed[part] = family(days)
    faint = torch.rand(rows, 1, 1, device=device) < FAINT_SHARE
    weight = torch.where(faint, torch.empty_like(scale).uniform_(0.4, 0.9), 1.0)
    when, ramp = _draw_corrupted_nights(lasting[:, 0], nights, n_target_nights)
    changed = torch.lerp(kwh, changed, weight * ramp[:, :, None]).clamp(min=0)
    changed = (changed / METER_RESOLUTION_KWH).round() * METER_RESOLUTION_KWH
    difference = (changed - kwh).abs()
    half_hour = difference > 0.02 + 0.1 * kwh
    enough = MIN_CHANGE_SHARE * kwh.sum(dim=2).clamp(min=MIN_PROFILE_KWH)
    night = when & (difference.sum(dim=2) > enough) & half_hour.any(dim=2)
    there = night[:, :, None]
    return CorruptedWindows(torch.where(there, changed, kwh), group * night, half_hour & there)


def _draw_other_profiles(scaled_profiles: Tensor, is_lasting: Tensor) -> Tensor:
    """Days of other households `[B, N, 48]` in level units: one household's where it lasts."""
    rows, nights = scaled_profiles.shape[:2]
    flat = scaled_profiles.flatten(0, 1)
    anyone = flat[torch.randint(len(flat), (rows, nights), device=scaled_profiles.device)]
    someone = scaled_profiles[torch.randint(rows, (rows,), device=scaled_profiles.device)]
    return torch.where(is_lasting, someone, anyone)


def _draw_corrupted_nights(
    is_lasting: Tensor, n_nights: int, n_target_nights: int
) -> tuple[Tensor, Tensor]:
    """Which nights `[B, N]` to corrupt, and how far a lasting corruption has grown, 0 to 1."""
    rows, device = len(is_lasting), is_lasting.device
    place = torch.arange(n_nights, device=device)
    alone = torch.where(place < n_nights - n_target_nights, HISTORY_NIGHT_SHARE, ONE_NIGHT_SHARE)
    first = torch.randint(n_nights, (rows, 1), device=device)
    length = torch.randint(2, MAX_LASTING_NIGHTS, (rows, 1), device=device)
    age = place - first
    stretch = (age >= 0) & (age < length)
    slow = is_lasting & (torch.rand(rows, 1, device=device) < RAMP_SHARE)
    when = torch.where(is_lasting, stretch, torch.rand(rows, n_nights, device=device) < alone)
    return when, torch.where(slow, ((age + 1) / length).clamp(0, 1), 1.0)
