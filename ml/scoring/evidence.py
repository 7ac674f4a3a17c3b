"""Evidence: what a household's nights say together, for anomalies that last."""

import numpy as np
from scipy.special import ndtri

from ml.arrays import FloatArray
from ml.scoring.config import ScoringConfig


def accumulate_evidence(
    surprisal: FloatArray, config: ScoringConfig
) -> tuple[FloatArray, FloatArray]:
    """Return the evidence from the nights before and that with the night, `[H, D]` each.

    A one-sided CUSUM (Page 1954) of the nights' normal scores that decays: each night multiplies
    the evidence by `evidence_decay`, then adds the normal score of its surprisal, capped at
    `max_normal_score`, less `evidence_drift`; it never falls below 0. The normal score of surprisal
    s is the standard normal quantile that a share of 10**-s exceeds. A night that was not scored
    (NaN) adds nothing to later evidence, which still decays, and is NaN in the second array. The
    unit is standard deviations.

    The sum begins anew `evidence_nights` before each night, so that it is the same whether a
    night is scored alone or in bulk.
    """
    normal_score = np.clip(-ndtri(10.0 ** -np.asarray(surprisal)), None, config.max_normal_score)
    gain = normal_score - config.evidence_drift
    n_nights = surprisal.shape[1]
    padded = np.pad(np.nan_to_num(gain), ((0, 0), (config.evidence_nights, 0)))
    before = np.zeros(surprisal.shape)
    for step in range(config.evidence_nights):
        gain_of_step = padded[:, step : step + n_nights]
        before = np.maximum(0.0, config.evidence_decay * before + gain_of_step)
    evidence = np.maximum(0.0, config.evidence_decay * before + gain)
    return before, np.where(np.isnan(surprisal), np.nan, evidence)
