"""Variants of real households, so that a network does not learn the training fleet by heart.

Every variant is meant to be an ordinary household, unlike a corruption (`corruption.py`). Before
the last of them were added the loss fell to 0.60 on the training fleet and stayed at 0.76 on other
households; with all of them there is no gap (tests/benchmarks/EXPERIMENTS.md, rows "trained longer"
to "flat blocks"). Probabilities and ranges without a row of their own were chosen.
"""

from typing import Final

import torch
from torch import Tensor

from ml.models.history.features import HISTORY_NIGHTS
from ml.schemas import HALF_HOURS

BLEND_PROBABILITY: Final = 0.7
"""Share of windows that are summed with another household's. EXPERIMENTS: "more sums of two
households" raised recall at 3 false episodes from 0.523 to 0.539."""
MAX_BLEND_WEIGHT: Final = 0.9
"""Largest weight of the other household; the least is 0."""
RESIZE_PROBABILITY: Final = 0.7
MAX_LOG_RESIZE: Final = 0.8
"""Largest natural logarithm of the factor of a resized household: 0.45 to 2.2 times."""
REVERSAL_PROBABILITY: Final = 0.5
"""Share of windows whose nights run in the opposite order. EXPERIMENTS, row "windows run backwards
half of the time": recall at 1 % 0.598 -> 0.614 and no household learned by heart."""
SHIFT_PROBABILITY: Final = 0.5
SHIFT_RANGE_HALF_HOURS: Final = (-4, 5)
"""Shifts of the clock are drawn from this range and rounded down: at most two hours, early or
late."""
SHUFFLE_PROBABILITY: Final = 0.2
"""Share of windows in which some context nights are replaced by others."""
SHUFFLED_NIGHT_SHARE: Final = 0.1
"""Share of context nights that are replaced in such a window."""
NEW_HOUSEHOLD_PROBABILITY: Final = 0.05
"""Share of windows of a household with little history, the rest borrowed from another one."""
NEW_HOUSEHOLD_NIGHTS: Final = (3, 28)
"""Range of context nights that such a household has of its own."""
MIN_MEAN_KWH: Final = 0.02
"""kWh per half-hour (40 W); an empty home is taken to use at least this where profiles are scaled
to its size, which keeps the factor finite."""
METER_STEPS_PER_KWH: Final = 1000
"""Resolution of a meter, 1 Wh; results are rounded to it, since repeated readings are a feature."""

OUTAGE_PROBABILITY: Final = 0.1
"""Share of nights with missing half-hours, beside those that are missing in the data."""
OUTAGE_LENGTHS_HALF_HOURS: Final = (1, 13)
"""Lengths of an outage, the last excluded: up to 6 hours. A night without other gaps keeps 36
readings, which is what a night needs to be scored by default."""


def augment_households(kwh: Tensor) -> Tensor:
    """Return windows `[B, N, 48]` (kWh, no gaps) of plausible other households.

    Each window is summed with another one of the batch, resized, run in opposite order, moved on
    the clock, or has some context nights exchanged or borrowed, each with its own probability.
    Draws from torch's generator.
    """
    n_rows, n_nights = kwh.shape[:2]
    device = kwh.device

    # The order of the draws is part of a recipe: another order is another training.
    def draw_bernoulli(probability: float) -> Tensor:
        return torch.rand(n_rows, 1, 1, device=device) < probability

    def draw_uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n_rows, 1, 1, device=device)

    mean = kwh.mean(dim=(1, 2), keepdim=True).clamp(min=MIN_MEAN_KWH)
    other = (kwh / mean)[torch.randperm(n_rows, device=device)] * mean
    is_blended = draw_bernoulli(BLEND_PROBABILITY)
    kwh = torch.lerp(kwh, other, torch.where(is_blended, draw_uniform(0, MAX_BLEND_WEIGHT), 0.0))
    is_resized = draw_bernoulli(RESIZE_PROBABILITY)
    log_factor = draw_uniform(-MAX_LOG_RESIZE, MAX_LOG_RESIZE)
    kwh = kwh * torch.where(is_resized, log_factor, 0.0).exp()
    kwh = torch.where(draw_bernoulli(REVERSAL_PROBABILITY), kwh.flip(1), kwh)
    is_shifted = draw_bernoulli(SHIFT_PROBABILITY)
    shift = torch.where(is_shifted, draw_uniform(*SHIFT_RANGE_HALF_HOURS).floor(), 0.0)[:, 0].long()
    kwh = _shift_clock(kwh, shift)

    night = torch.arange(n_nights, device=device)
    is_drawn = torch.rand(n_rows, n_nights, device=device) < SHUFFLED_NIGHT_SHARE
    is_shuffled_window = draw_bernoulli(SHUFFLE_PROBABILITY)[:, 0]
    is_exchanged = is_drawn & is_shuffled_window & (night < HISTORY_NIGHTS)
    any_context_night = torch.randint(HISTORY_NIGHTS, (n_rows, n_nights), device=device)
    source = torch.where(is_exchanged, any_context_night, night)
    kwh = kwh.gather(1, source[:, :, None].expand_as(kwh))

    n_borrowed = HISTORY_NIGHTS - draw_uniform(*NEW_HOUSEHOLD_NIGHTS).long()
    is_borrowed = draw_bernoulli(NEW_HOUSEHOLD_PROBABILITY) & (night[:, None] < n_borrowed)
    kwh = torch.where(is_borrowed, other, kwh)
    return (kwh * METER_STEPS_PER_KWH).round() / METER_STEPS_PER_KWH


def draw_outages(is_observed: Tensor) -> Tensor:
    """Return where nights `[B, K, 48]` are still observed after random outages of the meter.

    An outage that reaches midnight goes on in the first half-hours of the same night.
    """
    shape = (*is_observed.shape[:2], 1)
    device = is_observed.device
    half_hour = torch.arange(HALF_HOURS, device=device)
    first = torch.randint(HALF_HOURS, shape, device=device)
    length = torch.randint(*OUTAGE_LENGTHS_HALF_HOURS, shape, device=device)
    has_outage = torch.rand(shape, device=device) < OUTAGE_PROBABILITY
    return is_observed & ~(has_outage & ((half_hour - first) % HALF_HOURS < length))


def _shift_clock(kwh: Tensor, shift: Tensor) -> Tensor:
    """Return windows `[B, N, 48]` read `shift` `[B, 1]` half-hours later, across midnights.

    The first or last half-hour is repeated beyond the ends.
    """
    n_half_hours = kwh.shape[1] * HALF_HOURS
    place = torch.arange(n_half_hours, device=kwh.device) + shift
    return kwh.flatten(1).gather(1, place.clamp(0, n_half_hours - 1)).view_as(kwh)
