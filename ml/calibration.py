"""How rare a figure is among ordinary household-nights, and what an alert budget allows."""

import hashlib
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml.arrays import FloatArray
from ml.episodes import find_episode_starts
from ml.errors import UserError

BODY_SHARE: Final = 0.98
BODY_SIZE: Final = 1025
ALERT_CURVE_STEPS: Final = 97
MIN_EXPECTED_EPISODES: Final = 5
"""False episodes that a calibration has to expect of a budget before it can say anything of it."""
MAX_ALERT_SHARE: Final = 0.1
MIN_P_VALUE: Final = 1e-12

Bools = NDArray[np.bool_]


class TailDistribution(nn.Module):
    """How rare a figure is: -log10 of the share of ordinary figures at least as high.

    By rank up to the 98 % quantile, by an exponential beyond (Pickands 1975, with shape 0), so
    that two figures that differ are never equally rare.
    """

    body: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("body", torch.linspace(0, 1, BODY_SIZE, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def fit(self, reference: FloatArray) -> None:
        """Take the shape of ordinary figures, NaN left out."""
        known = reference[np.isfinite(reference)].astype(np.float64)
        body = np.quantile(known, np.linspace(0, BODY_SHARE, BODY_SIZE))
        beyond = known[known > body[-1]] - body[-1]
        self.body = torch.from_numpy(body)
        self.scale = torch.tensor(max(float(beyond.mean()), 1e-3) if len(beyond) else 1.0).double()

    def surprisal(self, values: FloatArray) -> FloatArray:
        """-log10 of the share at least as high, in the shape of `figures`; NaN stays NaN."""
        quantiles, place = np.unique(self.body.numpy(), return_index=True)
        below = np.interp(values, quantiles, BODY_SHARE * place / (BODY_SIZE - 1))
        beyond = np.maximum(values - quantiles[-1], 0) / float(self.scale)
        share = 1 - np.where(beyond > 0, BODY_SHARE, below)
        return beyond / np.log(10) - np.log10(share)


def compute_p_values(reference: FloatArray, scores: FloatArray) -> FloatArray:
    """Share of a sorted reference of rarities at least as high, itself counted in.

    Split conformal (Bates et al. 2023) up to the 98 % quantile. What lies beyond it in a reference
    is of a few odd homes, so an exponential goes on from there (Pickands 1975, with shape 0).
    """
    above = len(reference) - np.searchsorted(reference, scores, side="left")
    ranked = (1 + above) / (1 + len(reference))
    edge = np.quantile(reference, BODY_SHARE, method="higher")
    beyond = reference[reference > edge] - edge
    scale = float(beyond.mean()) if len(beyond) else 1 / np.log(10)
    tail = (1 + len(beyond)) / (1 + len(reference)) * np.exp((edge - scores) / scale)
    known = np.where(scores > edge, np.maximum(tail, MIN_P_VALUE), ranked)
    return np.where(np.isfinite(scores), known, np.nan)


def hash_household_ids(household_ids: list[str]) -> NDArray[np.int64]:
    """A number for each household by which a detector remembers whom it learnt from."""
    digests = (hashlib.sha256(household.encode()).digest() for household in household_ids)
    return np.array([int.from_bytes(digest[:8], signed=True) for digest in digests], dtype=np.int64)


def compute_alert_curve(p_value: FloatArray, evidence: FloatArray) -> FloatArray:
    """What is as rare as what among reference household-nights `[H, D]` in order, `[T, 3]`.

    A share of the nights, the evidence that this share exceeds, and how many false episodes in
    1,000 nights come of alerts where p-value or evidence is as rare; the shares grow.
    """
    known = np.isfinite(p_value)
    count, ordered = max(int(known.sum()), 1), np.sort(evidence[known])[::-1]
    curve = np.zeros((ALERT_CURVE_STEPS, 3))
    curve[:, 0] = np.geomspace(1 / (1 + count), MAX_ALERT_SHARE, ALERT_CURVE_STEPS)
    if len(ordered):
        curve[:, 1] = ordered[(curve[:, 0] * count).astype(int)]
    rare = compute_alert_p_values(curve, p_value, evidence)
    for place, share in enumerate(curve[:, 0]):
        curve[place, 2] = 1000 * find_episode_starts(rare <= share).sum() / count
    return curve


def compute_alert_p_values(
    curve: FloatArray, p_value: FloatArray, evidence: FloatArray
) -> FloatArray:
    """The p-value, or how rare the evidence is if that is rarer; NaN stays NaN."""
    shares, limits = np.log(curve[:, 0]), curve[:, 1]
    rare = np.exp(np.interp(-evidence, -limits, shares))
    return np.minimum(p_value, np.where(evidence > limits[-1], rare, 1.0))


def alert_threshold(curve: FloatArray, n_calibration_nights: int, alert_budget: float) -> float:
    """The greatest urgency whose false episodes in 1,000 household-nights stay within a budget.

    Raises:
        UserError: `nights` household-nights of calibration cannot tell what keeps to the budget.
    """
    least = 1000 * MIN_EXPECTED_EPISODES / max(n_calibration_nights, 1)
    if alert_budget < least:
        raise UserError(
            f"an alert budget of {alert_budget:g} false episodes per 1,000 household-nights cannot be "
            f"kept: the model's {n_calibration_nights:,} calibration household-nights would hold "
            f"{alert_budget * n_calibration_nights / 1000:.1f} of them and {MIN_EXPECTED_EPISODES} are needed; set "
            f"METERWATCH_ALERT_BUDGET to {np.ceil(least):.0f} or more, or train on more homes"
        )
    within = np.flatnonzero(np.maximum.accumulate(curve[:, 2]) <= alert_budget)
    return float(curve[within[-1], 0]) if len(within) else 0.0
