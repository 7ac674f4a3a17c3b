"""Corrections: penalties of surprisal and score, and the inflation of p-values.

The calibration set says how rare a night is among ordinary households. Three things make nights
look rarer than they are: a household that is new, one that is often unusual, and a fleet that has
become livelier than when the detector was calibrated.
"""

import numpy as np

from ml.arrays import BoolArray, FloatArray, rolling_windows
from ml.fleet import Fleet, count_usable_nights
from ml.scoring.config import ScoringConfig


def cold_start_penalty(fleet: Fleet, min_readings: int, config: ScoringConfig) -> FloatArray:
    """Return what is subtracted from the surprisal of new households, `[H, D]` in log10 units.

    With n usable nights among the 28 (`established_nights`) before, the share of nights that look
    as rare is taken to be 1 + 7 / (n + 0.5) times that of a household with endless history. The
    penalty is the logarithm of this factor over that of n = 28, so 0 with all 28.
    """
    n_own = count_usable_nights(fleet, config.established_nights, min_readings)
    excess = 1 + config.cold_start_nights / (n_own + 0.5)
    established_excess = 1 + config.cold_start_nights / (config.established_nights + 0.5)
    return np.log10(excess / established_excess)


def base_rate_penalty(surprisal: FloatArray, config: ScoringConfig) -> FloatArray:
    """Return the penalty `[H, D]`, in log10 units, for households that are often unusual.

    Compares the household's count of nights with surprisal in [1, 3) over the 28 nights before each
    night with the 10 % expected of ordinary households, both shrunk by a prior of 1.5 nights, to
    the power 1.5. Negative for a household that is quieter than others.
    """
    before = rolling_windows(surprisal, config.base_rate_nights)
    is_unusual = (before >= config.unusual_surprisal) & (before < config.extreme_surprisal)
    n_unusual = is_unusual.sum(axis=-1)
    n_expected = 10**-config.unusual_surprisal * np.isfinite(before).sum(axis=-1)
    prior = config.base_rate_prior_nights
    return config.base_rate_power * np.log10((prior + n_unusual) / (prior + n_expected))


def measure_tail_inflation(
    p_value: FloatArray, is_training_household: BoolArray, config: ScoringConfig
) -> FloatArray:
    """Return by how much the fleet's unusual nights exceed the expected, `[2, D]` as a factor.

    Row 0 is of households that the network was not trained on, row 1 of the others, whose nights
    look more usual to it. Counts p-values `[H, D]` in (0.001, 0.1] over the 14 nights before each
    night against the number expected among those above 0.001; smaller ones are left out, since they
    are what is looked for. Both counts are shrunk by a prior of 40 unusual household-nights.
    """
    unusual_share = 10**-config.unusual_surprisal
    extreme_share = 10**-config.extreme_surprisal
    is_ordinary = p_value > extreme_share
    is_unusual = is_ordinary & (p_value <= unusual_share)
    expected_share = (unusual_share - extreme_share) / (1 - extreme_share)
    prior = config.tail_inflation_prior
    inflation = np.empty((2, p_value.shape[1]))
    for of_training in (False, True):
        group = is_training_household == of_training
        n_unusual = _sum_nights_before(is_unusual[group], config.tail_inflation_nights)
        n_ordinary = _sum_nights_before(is_ordinary[group], config.tail_inflation_nights)
        inflation[int(of_training)] = (prior + n_unusual) / (prior + expected_share * n_ordinary)
    return inflation


def _sum_nights_before(flags: BoolArray, n_nights: int) -> FloatArray:
    """Count true flags `[H, D]` of all households over the nights before each night, `[D]`."""
    of_night = flags.sum(axis=0, keepdims=True).astype(float)
    return np.asarray(np.nansum(rolling_windows(of_night, n_nights)[0], axis=1))


def inflate_p_values(
    p_value: FloatArray, inflation: FloatArray, config: ScoringConfig
) -> FloatArray:
    """Return p-values whose unusual share is `inflation` times as large.

    p-values up to 0.1 are multiplied by the factor (their share capped at 0.5), those above are
    stretched linearly between the new share and 1. A p-value of 1 stays 1, and the order of
    p-values under one factor is kept.
    """
    unusual_share = 10**-config.unusual_surprisal
    inflated_share = np.minimum(unusual_share * inflation, config.max_inflated_share)
    body = 1 - (1 - p_value) * (1 - inflated_share) / (1 - unusual_share)
    return np.where(p_value <= unusual_share, p_value * inflated_share / unusual_share, body)
