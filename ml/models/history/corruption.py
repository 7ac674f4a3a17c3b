"""Generic corruptions of real profiles, from which a network learns what a household does not do.

Broad families rather than faults: they stand for whatever might differ from a household's habit
(outlier exposure, Hendrycks et al. 2019; CutPaste, Li et al. 2021; NCAD, Carmona et al. 2022). No
code is shared with the injections of the benchmark (`ml/evaluation/inject.py`), which would
otherwise measure how well they were learned.

Numbers. Ranges of a family are given in its docstring, as factors, kWh per half-hour or half-hours;
in the code those of log-uniform draws are natural logarithms (-3.2 is a factor of 0.04, -1.2 of
0.3, 0.3 of 1.35, 1 of 2.7, 2 of 7.4). They were chosen wide enough to hold what a meter, a thief or
an appliance can do, from the smallest change that is visible to a person. Single ranges were not
swept. What was measured is in tests/benchmarks/EXPERIMENTS.md: "level changes, losses and holds
drawn more often" and classes by family (AP 0.744 -> 0.780), "plain changes before intricate ones"
(0.780 -> 0.792), "flat blocks, contiguous spikes, parts of a day backwards" (no gap between
households seen and unseen).
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from ml.schemas import HALF_HOURS

FAMILIES_PER_BATCH: Final = 8
"""Corruptions, drawn anew for each batch, among which its households are shared out. With one for
each household a batch of 64 would be 64 small operations in place of 8 large ones."""
LASTING_SHARE: Final = 0.3
"""Share of households whose corruption lasts for nights in a row, as theft and faults do. Chosen:
the smaller part, since a night of its own is harder to tell."""
ONE_NIGHT_SHARE: Final = 0.5
"""Share of the nights learned from that are corrupted one by one, in households without a lasting
corruption: half, so that real and corrupted nights weigh the same."""
HISTORY_NIGHT_SHARE: Final = 0.02
"""Share of context nights that are corrupted one by one. Chosen: a history in service holds few
anomalies, but some."""
MAX_LASTING_NIGHTS: Final = 30
"""A lasting corruption takes 2 to 29 nights. Chosen: twice the 14 nights of the benchmark's."""
RAMP_SHARE: Final = 0.15
"""Share of lasting corruptions that grow night by night, from none to whole. Chosen."""
FAINT_SHARE: Final = 0.1
"""Share of households whose corruption is mixed with the real profile. Chosen."""
FAINT_WEIGHT_RANGE: Final = (0.4, 0.9)
"""Weight of the corruption in the mixture. Chosen: less would rarely be visible."""
METER_RESOLUTION_KWH: Final = 1e-3
"""1 Wh, to which results are rounded: a network must not know a corruption by its digits."""
MIN_CHANGE_SHARE: Final = 0.15
"""Share of a night's kWh that must change for the night to be labelled as corrupted. Chosen: less
lies within what households differ by from night to night, and a label there is noise."""
MIN_PROFILE_KWH: Final = 0.5
"""kWh of a night that this share is taken of at least (a load of 21 W): in an empty home any change
would be large."""
MIN_HALF_HOUR_CHANGE_KWH: Final = 0.02
MIN_HALF_HOUR_CHANGE_SHARE: Final = 0.1
"""A half-hour is labelled as changed where it differs by more than 0.02 kWh and a tenth of its
reading, together. Chosen: a lamp."""
ABSOLUTE_PROBABILITY: Final = 0.5
"""Share of loads that are drawn in kWh, as an appliance has them, not in units of the level."""


class CorruptedWindows(NamedTuple):
    """Windows of which some nights are corrupted, and labels of what was changed."""

    kwh: Tensor
    """`[B, N, 48]`."""
    family_label: Tensor
    """`[B, N]` 0 for a real night, or 1 + the place in `CORRUPTION_FAMILIES`."""
    is_changed: Tensor
    """`[B, N, 48]` true where the half-hour is visibly changed."""


class ProfileBatch:
    """Profiles of consecutive nights of some households, and draws of a corruption's parameters.

    A parameter is drawn for each night, or once for all nights of a household whose corruption
    lasts. All draws are from torch's generator; their order is part of a training's recipe.
    """

    kwh: Tensor
    """`[B, N, 48]`."""
    level: Tensor
    """`[B, 1, 1]` the household's usual kWh per half-hour."""
    other_profiles: Tensor
    """`[B, N, 48]` profiles of other households, in units of their level."""
    is_lasting: Tensor
    """`[B, 1, 1]`."""

    def __init__(
        self, kwh: Tensor, level: Tensor, other_profiles: Tensor, is_lasting: Tensor
    ) -> None:
        self.kwh = kwh
        self.level = level
        self.other_profiles = other_profiles
        self.is_lasting = is_lasting
        self.half_hour_index = torch.arange(HALF_HOURS, device=kwh.device)

    def draw_uniform(self, low: float, high: float, width: int = 1) -> Tensor:
        """Return uniform values `[B, N, width]` from `low` to `high`."""
        shape = (*self.kwh.shape[:2], width)
        drawn = low + (high - low) * torch.rand(shape, device=self.kwh.device)
        return torch.where(self.is_lasting, drawn[:, :1], drawn)

    def draw_log_uniform(self, min_log_factor: float, max_log_factor: float) -> Tensor:
        """Return factors `[B, N, 1]` whose natural logarithm is uniform."""
        return self.draw_uniform(min_log_factor, max_log_factor).exp()

    def draw_bernoulli(self, probability: float) -> Tensor:
        """Return `[B, N, 1]` true with this probability."""
        return self.draw_uniform(0, 1) < probability

    def choose_randomly(self, probability: float, one: Tensor, other: Tensor) -> Tensor:
        """Return `one` for this share of the nights and `other` for the rest."""
        return torch.where(self.draw_bernoulli(probability), one, other)

    def draw_kwh(
        self, min_log_factor: float, max_log_factor: float, min_kwh: float, max_kwh: float
    ) -> Tensor:
        """Return loads `[B, N, 1]` in kWh per half-hour, log-uniform in one of two ranges.

        With a probability of one half from `min_kwh` to `max_kwh`, otherwise the household's level
        times a factor from exp(`min_log_factor`) to exp(`max_log_factor`).
        """
        absolute = self.draw_log_uniform(math.log(min_kwh), math.log(max_kwh))
        return self.choose_randomly(
            ABSOLUTE_PROBABILITY,
            self.level * self.draw_log_uniform(min_log_factor, max_log_factor),
            absolute,
        )

    def draw_block(
        self, min_length: float, max_length: float = HALF_HOURS
    ) -> tuple[Tensor, Tensor]:
        """Return a stretch of half-hours as a mask `[B, N, 48]`, and its first place `[B, N, 1]`.

        Lengths are log-uniform, so that short stretches are as frequent as long ones, and rounded
        up: the least is one half-hour more than `min_length`. A stretch
        that reaches midnight goes on in the first half-hours of the same night.
        """
        first = self.draw_uniform(0, HALF_HOURS).long()
        length = self.draw_log_uniform(math.log(min_length), math.log(max_length))
        return (self.half_hour_index - first) % HALF_HOURS < length, first

    def draw_curve(self, n_knots: int, low: float, high: float) -> Tensor:
        """Return curves `[B, N, 48]`, linear between uniform values at evenly spaced knots."""
        drawn = self.draw_uniform(low, high, n_knots)
        return nn.functional.interpolate(drawn, size=HALF_HOURS, mode="linear", align_corners=True)

    def take_readings(self, half_hour: Tensor) -> Tensor:
        """Return the readings `[B, N, 48]` at half-hours `[B, N, 1 or 48]`."""
        return self.kwh.gather(2, half_hour.expand_as(self.kwh))

    @property
    def mean_kwh(self) -> Tensor:
        """Mean reading of each night, `[B, N, 1]`."""
        return self.kwh.mean(dim=2, keepdim=True)


def _replace_with_other(profiles: ProfileBatch) -> Tensor:
    """Return another household's profile, at 0.37 to 2.7 times the level or 0.05 to 0.6 kWh."""
    return profiles.other_profiles * profiles.draw_kwh(-1, 1, 0.05, 0.6)


def _splice_other(profiles: ProfileBatch) -> Tensor:
    """Return the profile with another household's in a stretch of more than 4 hours."""
    return torch.where(profiles.draw_block(8)[0], _replace_with_other(profiles), profiles.kwh)


def _blend_with_other(profiles: ProfileBatch) -> Tensor:
    """Return the mean of the profile and another household's, which weighs 0.3 to 0.9."""
    return torch.lerp(profiles.kwh, _replace_with_other(profiles), profiles.draw_uniform(0.3, 0.9))


def _splice_or_blend(profiles: ProfileBatch) -> Tensor:
    """Return one of both, at random."""
    return profiles.choose_randomly(0.5, _splice_other(profiles), _blend_with_other(profiles))


def _apply_gain_curve(profiles: ProfileBatch) -> Tensor:
    """Return the profile times a smooth gain, between 1/7 and 7 at the most, with 2 to 8 knots.

    The knots are drawn on the CPU, once for all: they are the size of a tensor.
    """
    knots = int(torch.randint(2, 9, ()))
    return profiles.kwh * (profiles.draw_uniform(0.5, 2) * profiles.draw_curve(knots, -1, 1)).exp()


def _rotate_clock(profiles: ProfileBatch) -> Tensor:
    """Return the profile 1.5 to 22.5 hours later, around midnight."""
    return profiles.take_readings(
        (profiles.half_hour_index - profiles.draw_uniform(3, 46).long()) % HALF_HOURS
    )


def _warp_time(profiles: ProfileBatch) -> Tensor:
    """Return the profile with time running unevenly, faster, slower, off or backwards.

    Each with its own probability: unevenly (0.3, at a pace of 0.37 to 2.7), faster
    or slower around midday (0.5, by 0.4 to 2.5), off by up to 3 hours (0.3), backwards (0.5). Times
    beyond the day are held at its ends or run around midnight. Readings are interpolated.
    """
    uneven = profiles.draw_curve(5, -1, 1).exp()
    one = torch.ones_like(profiles.level)
    pace = profiles.choose_randomly(0.3, uneven / uneven.mean(dim=2, keepdim=True), one)
    # The place that each half-hour's reading is taken from, measured from midday.
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
    """Return the profile with a stretch around midday backwards, half of the ends at midnight."""
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
    """Return the profile with its stretches of 0.5 to 8 hours in random order."""
    stretch = 2 ** profiles.draw_uniform(0, 5).long()
    # One random number for each stretch; half-hours are sorted by it, those of a stretch in order.
    order = profiles.draw_uniform(0, 1, HALF_HOURS).gather(
        2, (profiles.half_hour_index // stretch).expand_as(profiles.kwh)
    )
    return profiles.take_readings((order + profiles.half_hour_index * 1e-6).argsort(dim=2))


def _add_block(profiles: ProfileBatch) -> Tensor:
    """Return the profile with a load added for more than 2.5 hours, one in five of them uneven.

    1 to 12 times the level or 0.3 to 3 kWh per half-hour.
    """
    uneven = profiles.choose_randomly(
        0.2, profiles.draw_uniform(0.7, 1.3, HALF_HOURS), torch.ones_like(profiles.kwh)
    )
    return profiles.kwh + profiles.draw_block(5)[0] * profiles.draw_kwh(0, 2.5, 0.3, 3) * uneven


def _add_baseload(profiles: ProfileBatch) -> Tensor:
    """Return the profile with a load added all day, one in three of them drifting.

    0.3 to 7.4 times the level or 0.08 to 1.5 kWh per half-hour.
    """
    uneven = profiles.choose_randomly(
        0.3, profiles.draw_curve(3, 0.6, 1.4), torch.ones_like(profiles.kwh)
    )
    return profiles.kwh + profiles.draw_kwh(-1.2, 2, 0.08, 1.5) * uneven


def _hold_constant(profiles: ProfileBatch) -> Tensor:
    """Return the profile with one value in a stretch of more than 3 hours.

    Its first reading (0.5), its mean (0.2), or another (0.3): 0.05 to 7.4 times the level or 0.005
    to 2 kWh.
    """
    block, first = profiles.draw_block(6)
    mean = (profiles.kwh * block).sum(dim=2, keepdim=True) / block.sum(dim=2, keepdim=True)
    held = profiles.choose_randomly(0.4, mean, profiles.draw_kwh(-3, 2, 0.005, 2))
    return torch.where(
        block, profiles.choose_randomly(0.5, profiles.take_readings(first), held), profiles.kwh
    )


def _lose_consumption(profiles: ProfileBatch) -> Tensor:
    """Return the profile with readings of a stretch of more than 2 hours lost, whole or in part.

    All of them (0.6) or up to 100 %, at least 60 %, of each. In 0.3 of the nights 30 to 120 % of
    what was lost comes back in one half-hour outside the stretch, as after an outage.
    """
    block, _ = profiles.draw_block(4)
    zero = torch.zeros_like(profiles.level)
    share_left = profiles.choose_randomly(0.6, zero, profiles.draw_uniform(0, 0.4))
    left = torch.where(block, profiles.kwh * share_left, profiles.kwh)
    lost = (profiles.kwh - left).sum(dim=2, keepdim=True)
    back = profiles.choose_randomly(0.3, lost * profiles.draw_uniform(0.3, 1.2), zero)
    # A random half-hour outside the stretch (inside, where it takes the whole day).
    place = torch.rand_like(profiles.kwh).masked_fill(block, -1).argmax(dim=2, keepdim=True)
    return left.scatter_add(2, place, back)


def _scale_profile(profiles: ProfileBatch) -> Tensor:
    """Return the profile times 0.04 to 0.82 or times 1.28 to 9."""
    return profiles.kwh * profiles.choose_randomly(
        0.5, profiles.draw_log_uniform(-3.2, -0.2), profiles.draw_log_uniform(0.25, 2.2)
    )


def _scale_up(profiles: ProfileBatch) -> Tensor:
    """Return the profile times 1.35 to 5."""
    return profiles.kwh * profiles.draw_log_uniform(0.3, 1.6)


def _roughen_profile(profiles: ProfileBatch) -> Tensor:
    """Return the profile with noise on each half-hour.

    Log-normal with a deviation of 0.15 to 1.2, half of it at 0.3 to 1 times the level; or each
    reading reduced by a random share, up to 30 to 100 %.
    """
    normal = (profiles.draw_uniform(0.15, 1.2) * torch.randn_like(profiles.kwh)).exp()
    level = profiles.choose_randomly(
        0.5, profiles.draw_log_uniform(-1.2, 0), torch.ones_like(profiles.mean_kwh)
    )
    thinned = 1 - torch.rand_like(profiles.kwh) * profiles.draw_uniform(0.3, 1)
    return profiles.kwh * profiles.choose_randomly(0.5, normal * level, thinned)


def _add_spikes(profiles: ProfileBatch) -> Tensor:
    """Return the profile with spikes of 2.7 to 33 times the level or 1 to 9 kWh.

    In 1 to 3 single half-hours (0.3) or in 2 to 4 in a row; each within 0.6 to 1.4 of its
    height.
    """
    scattered = torch.rand_like(profiles.kwh).argsort(dim=2) < profiles.draw_uniform(1, 4).long()
    places = profiles.choose_randomly(0.3, scattered.float(), profiles.draw_block(1, 4)[0].float())
    height = profiles.draw_kwh(1, 3.5, 1, 9) * (0.6 + 0.8 * torch.rand_like(profiles.kwh))
    return profiles.kwh + places * height


def _smooth_profile(profiles: ProfileBatch) -> Tensor:
    """Return the profile's means over 8.5 hours around each half-hour, or flatter."""
    around = nn.functional.pad(profiles.kwh, (8, 8), mode="circular")
    return torch.lerp(
        profiles.mean_kwh, nn.functional.avg_pool1d(around, 17, 1), profiles.draw_uniform(0, 1)
    )


def _clip_profile(profiles: ProfileBatch) -> Tensor:
    """Return the profile capped at 0.3 to 2.5 times its mean (0.7), or held above 0.7 of that."""
    edge = profiles.mean_kwh * profiles.draw_log_uniform(-1.2, 0.9)
    return profiles.choose_randomly(
        0.7, profiles.kwh.minimum(edge), profiles.kwh.maximum(0.7 * edge)
    )


def _replace_with_noise(profiles: ProfileBatch) -> Tensor:
    """Return uniform noise around 0.3 to 1.8 times a level, of which 0 to 60 % is steady.

    The level is the profile's mean (0.6), or 0.05 to 4.5 times the household's, or 0.005 to 1.5
    kWh.
    """
    level = profiles.choose_randomly(0.6, profiles.mean_kwh, profiles.draw_kwh(-3, 1.5, 0.005, 1.5))
    steady = profiles.draw_uniform(0, 0.6)
    drawn = steady + (1 - steady) * torch.rand_like(profiles.kwh)
    return level * profiles.draw_uniform(0.3, 1.8) * drawn


def _replace_with_idle_load(profiles: ProfileBatch) -> Tensor:
    """Return noise around 0.5 to 2 times an idle load.

    The lowest reading (0.5), or 0.02 to 0.37 times the level, or 0.001 to 0.05 kWh; noise
    log-normal with a deviation up to 0.5, or uniform.
    """
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
"""Corruptions by family. A family is one class of the network's output, so corruptions that a
person could hardly tell apart share one. A corruption is drawn as often as it is listed: what only
a meter or a thief does (scaling, losses, holds) more often than what people do too, and plain
changes more often than intricate ones (see the EXPERIMENTS rows in the module's docstring)."""
_FAMILY_CHOICES: Final = tuple(
    (group, family)
    for group, families in enumerate(CORRUPTION_FAMILIES, start=1)
    for family in families
)


def corrupt_windows(kwh: Tensor, level: Tensor, n_target_nights: int) -> CorruptedWindows:
    """Corrupt some nights of windows `[B, N, 48]` (kWh, no gaps) and label them.

    In a household without a lasting corruption half of the last `n_target_nights` are corrupted one
    by one, and few of the others. A lasting one takes a stretch of nights, which may begin or end
    anywhere. Nights that hardly change stay as they were and are labelled real.

    `level` `[B]` is the usual kWh per half-hour. Draws from torch's generator.
    """
    n_rows, n_nights = kwh.shape[:2]
    device = kwh.device
    scale = level[:, None, None]
    is_lasting = torch.rand(n_rows, 1, 1, device=device) < LASTING_SHARE
    other_profiles = _draw_other_profiles(kwh / scale, is_lasting)
    changed = torch.empty_like(kwh)
    family_label = torch.zeros(n_rows, 1, dtype=torch.long, device=device)
    # Drawn on the CPU, since they choose which code runs.
    choices = torch.randperm(len(_FAMILY_CHOICES))[:FAMILIES_PER_BATCH].tolist()
    shares = torch.tensor_split(torch.arange(n_rows, device=device), len(choices))
    for choice, rows in zip(choices, shares, strict=True):
        if len(rows):
            family_label[rows], corrupt = _FAMILY_CHOICES[choice]
            changed[rows] = corrupt(
                ProfileBatch(kwh[rows], scale[rows], other_profiles[rows], is_lasting[rows])
            )
    is_faint = torch.rand(n_rows, 1, 1, device=device) < FAINT_SHARE
    faint_weight = torch.empty_like(scale).uniform_(*FAINT_WEIGHT_RANGE)
    weight = torch.where(is_faint, faint_weight, 1.0)
    is_chosen, ramp = _draw_corrupted_nights(is_lasting[:, 0], n_nights, n_target_nights)
    changed = torch.lerp(kwh, changed, weight * ramp[:, :, None]).clamp(min=0)
    changed = (changed / METER_RESOLUTION_KWH).round() * METER_RESOLUTION_KWH

    difference = (changed - kwh).abs()
    is_changed = difference > MIN_HALF_HOUR_CHANGE_KWH + MIN_HALF_HOUR_CHANGE_SHARE * kwh
    min_difference = MIN_CHANGE_SHARE * kwh.sum(dim=2).clamp(min=MIN_PROFILE_KWH)
    is_visible = (difference.sum(dim=2) > min_difference) & is_changed.any(dim=2)
    is_corrupted = is_chosen & is_visible
    of_half_hours = is_corrupted[:, :, None]
    return CorruptedWindows(
        torch.where(of_half_hours, changed, kwh),
        family_label * is_corrupted,
        is_changed & of_half_hours,
    )


def _draw_other_profiles(scaled_profiles: Tensor, is_lasting: Tensor) -> Tensor:
    """Return profiles `[B, N, 48]` of other households, in units of their level.

    Of any household and night; where the corruption lasts, of one household's nights in order.
    """
    n_rows, n_nights = scaled_profiles.shape[:2]
    device = scaled_profiles.device
    flat = scaled_profiles.flatten(0, 1)
    any_night = flat[torch.randint(len(flat), (n_rows, n_nights), device=device)]
    one_household = scaled_profiles[torch.randint(n_rows, (n_rows,), device=device)]
    return torch.where(is_lasting, one_household, any_night)


def _draw_corrupted_nights(
    is_lasting: Tensor, n_nights: int, n_target_nights: int
) -> tuple[Tensor, Tensor]:
    """Return which nights to corrupt and the weight of the corruption, `[B, N]` each.

    Where `is_lasting` `[B, 1]`, one stretch of 2 to 29 nights, cut off at the window's end;
    elsewhere single nights. The weight is 1 except in a ramp, in which it grows to 1 over the
    stretch.
    """
    n_rows = len(is_lasting)
    device = is_lasting.device
    night = torch.arange(n_nights, device=device)
    is_context = night < n_nights - n_target_nights
    single_share = torch.where(is_context, HISTORY_NIGHT_SHARE, ONE_NIGHT_SHARE)
    first = torch.randint(n_nights, (n_rows, 1), device=device)
    length = torch.randint(2, MAX_LASTING_NIGHTS, (n_rows, 1), device=device)
    age = night - first
    is_stretch = (age >= 0) & (age < length)
    is_ramp = is_lasting & (torch.rand(n_rows, 1, device=device) < RAMP_SHARE)
    is_single = torch.rand(n_rows, n_nights, device=device) < single_share
    is_chosen = torch.where(is_lasting, is_stretch, is_single)
    return is_chosen, torch.where(is_ramp, ((age + 1) / length).clamp(0, 1), 1.0)
