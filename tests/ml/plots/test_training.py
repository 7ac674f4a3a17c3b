"""Pictures of a training show the threshold that flags are taken by."""

import numpy as np
import pytest

from ml.plots.training import draw_score_distribution
from ml.scoring.detector import Detector
from ml.scoring.tails import compute_p_values
from tests import fleets

HOUSEHOLDS, NIGHTS, BUDGET = 8, 90, 30.0


@pytest.fixture(scope="module")
def detector() -> Detector:
    return fleets.build_detector(
        fleets.build_fleet(fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS, seed=1))
    )


def test_distribution_marks_the_flagging_score(detector: Detector) -> None:
    threshold = detector.calibration.alert_threshold(BUDGET)
    scores = detector.calibration.reference_scores.numpy()
    config = detector.config.scoring.calibration
    figure = draw_score_distribution(scores, config, threshold, BUDGET)
    (line,) = figure.axes[0].lines
    flagging_score = float(line.get_xdata()[0])
    around = np.array([flagging_score - 0.01, flagging_score + 0.01])
    before, after = compute_p_values(scores, around, config)
    assert before > threshold >= after


def test_no_threshold_is_drawn_without_calibrated_budget(detector: Detector) -> None:
    figure = draw_score_distribution(
        detector.calibration.reference_scores.numpy(),
        detector.config.scoring.calibration,
        None,
        alert_budget=0.1,
    )
    assert not figure.axes[0].lines
