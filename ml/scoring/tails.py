"""Tail distributions: the share of calibration nights that reach or exceed a figure."""

import numpy as np
import torch
from torch import Tensor, nn

from ml.arrays import FloatArray
from ml.scoring.config import CalibrationConfig


class TailDistribution(nn.Module):
    """The distribution of one figure over the calibration nights, kept in buffers.

    By rank up to the 98 % quantile, by an exponential beyond (Pickands 1975, with shape 0), so
    that beyond it two figures that differ never have the same surprisal.
    """

    body: Tensor
    """`[1025]` quantiles at even shares from 0 to `body_share`."""
    scale: Tensor
    """Mean excess over the last quantile, in the figure's own unit."""

    def __init__(self, config: CalibrationConfig) -> None:
        super().__init__()
        self.config = config
        body = torch.linspace(0, 1, config.body_size, dtype=torch.float64)
        self.register_buffer("body", body)
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def fit(self, reference: FloatArray) -> None:
        """Take the distribution of reference figures of any shape; NaN is left out."""
        observed = reference[np.isfinite(reference)].astype(np.float64)
        shares = np.linspace(0, self.config.body_share, self.config.body_size)
        body = np.quantile(observed, shares)
        excess = observed[observed > body[-1]] - body[-1]
        scale = max(float(excess.mean()), self.config.min_tail_scale) if len(excess) else 1.0
        self.body = torch.from_numpy(body)
        self.scale = torch.tensor(scale).double()

    def surprisal(self, values: FloatArray) -> FloatArray:
        """Return -log10 of the share of reference figures at least as high; NaN stays NaN."""
        quantiles, place = np.unique(self.body.numpy(), return_index=True)
        body_share = self.config.body_share
        share_below = np.interp(values, quantiles, body_share * place / (self.config.body_size - 1))
        excess = np.maximum(values - quantiles[-1], 0) / float(self.scale)
        share_above = 1 - np.where(excess > 0, body_share, share_below)
        return excess / np.log(10) - np.log10(share_above)


def compute_p_values(
    reference: FloatArray, scores: FloatArray, config: CalibrationConfig
) -> FloatArray:
    """Return the share of reference scores at least as high, in the shape of `scores`.

    `reference` `[N]` is sorted. Split conformal (Bates et al. 2023): the night itself is counted
    in, so a p-value is never 0. Beyond the 98 % quantile, where a reference holds the nights of a
    few odd households, an exponential tail goes on (Pickands 1975, with shape 0). NaN stays NaN.
    """
    n_above = len(reference) - np.searchsorted(reference, scores, side="left")
    by_rank = (1 + n_above) / (1 + len(reference))
    edge = np.quantile(reference, config.body_share, method="higher")
    excess = reference[reference > edge] - edge
    # Without any excess a score beyond the edge is taken to lose a factor of ten a unit.
    scale = float(excess.mean()) if len(excess) else 1 / np.log(10)
    share_beyond = (1 + len(excess)) / (1 + len(reference))
    by_tail = share_beyond * np.exp((edge - scores) / scale)
    p_value = np.where(scores > edge, np.maximum(by_tail, config.min_p_value), by_rank)
    return np.where(np.isfinite(scores), p_value, np.nan)
