"""Alarm rates of a threshold that is kept."""

from datetime import date

import numpy as np
import pytest

from ml.evaluation.alarm_rates import measure_alarm_rates, measure_monthly_alarm_ratio
from ml.evaluation.inject import GroundTruth


def test_alarm_rates_use_pretest_threshold() -> None:
    nights = [date(2013, 9, 1 + day) for day in range(30)] + [
        date(2013, 10, 1 + d) for d in range(20)
    ]
    score = np.tile(np.arange(1000.0)[:, None], (1, 50))
    score[:, 40:] += 30  # in the last ten nights three in a hundred more pass
    counts = np.zeros((1000, 50), dtype=bool)
    counts[:, 20:] = True
    truth = GroundTruth(np.arange(1000), counts, np.zeros((1000, 50), dtype=np.int8), ())
    # 3 in 1,000 of the first twenty nights pass 997; 33 in 1,000 of the last ten.
    table = measure_monthly_alarm_ratio(score, truth, nights, slice(0, 20))
    assert table["subset"].to_list() == ["2013-09", "2013-10"]
    assert table["value"].to_list() == pytest.approx([1.0, (3 + 33) / 2 / 3], rel=0.01)
    assert measure_alarm_rates(
        score[:, :40], truncate_truth(truth, 40), slice(0, 20), np.array([0.01])
    ) == (pytest.approx([0.01], rel=0.01))


def truncate_truth(truth: GroundTruth, night: int) -> GroundTruth:
    return GroundTruth(
        truth.household_index, truth.is_tested[:, :night], truth.kind_code[:, :night], ()
    )
