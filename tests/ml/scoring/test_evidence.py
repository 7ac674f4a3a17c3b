"""Evidence adds up over nights, decays, and forgets what lies further back than its window."""

import numpy as np
import pytest

from ml.scoring.config import ScoringConfig
from ml.scoring.evidence import accumulate_evidence

CONFIG = ScoringConfig()


def test_evidence_forgets_nights_outside_its_window() -> None:
    surprisal = np.full((1, 40), 0.3)
    surprisal[0, 5] = 6
    _, evidence = accumulate_evidence(surprisal, CONFIG)
    assert evidence[0, 5] > 0
    assert evidence[0, 5 + CONFIG.evidence_nights + 1] == 0


def test_evidence_before_a_night_does_not_hold_that_night() -> None:
    surprisal = np.full((1, 20), 0.3)
    surprisal[0, 10] = 9
    before, evidence = accumulate_evidence(surprisal, CONFIG)
    assert before[0, 10] == 0
    assert evidence[0, 10] == CONFIG.max_normal_score - CONFIG.evidence_drift
    assert before[0, 11] == evidence[0, 10]


def test_evidence_decays_after_an_anomaly() -> None:
    surprisal = np.full((1, 20), 0.3)
    surprisal[0, 5] = 6
    _, evidence = accumulate_evidence(surprisal, CONFIG)
    # A night of surprisal 0.3 is an even chance: its normal score is 0, less the drift.
    expected = CONFIG.evidence_decay * evidence[0, 5] - CONFIG.evidence_drift
    assert evidence[0, 6] == pytest.approx(expected, abs=0.01)


def test_night_without_score_adds_nothing() -> None:
    surprisal = np.full((1, 12), 2.0)
    surprisal[0, 6] = np.nan
    before, evidence = accumulate_evidence(surprisal, CONFIG)
    assert np.isnan(evidence[0, 6])
    assert before[0, 7] == pytest.approx(CONFIG.evidence_decay * before[0, 6])
