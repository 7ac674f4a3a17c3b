"""Reasons are counted against the kinds that were injected."""

import numpy as np
import polars as pl

from ml.evaluation.inject import KIND_NAMES
from ml.evaluation.reason_confusion import (
    CORRECT_REASONS,
    NO_INJECTION,
    count_reasons_by_kind,
    describe_reason_accuracy,
    tabulate_reasons,
)
from ml.schemas import ANOMALY_REASONS
from tests import fleets
from tests.evaluation_fixtures import build_truth


def test_every_kind_has_correct_reasons() -> None:
    assert tuple(CORRECT_REASONS) == KIND_NAMES
    assert all(
        reasons and set(reasons) <= set(ANOMALY_REASONS) for reasons in CORRECT_REASONS.values()
    )


def test_reasons_are_counted_by_kind_for_found_nights() -> None:
    """Fleet of one household that uses 1 kWh, 3 kWh on a tripled night, nothing on a zero one."""
    kwh = np.ones((1, 20, 48), dtype=np.float32)
    kwh[0, 10], kwh[0, 12, 10:40], kwh[0, 14] = 3, 0, 3
    truth = build_truth([[0] * 20])
    truth.kind_code[0, [10, 12, 16]] = [
        1 + KIND_NAMES.index(kind) for kind in ("doubled", "zero_window", "spike")
    ]
    found = np.zeros((1, 20), dtype=bool)
    found[0, [10, 12, 14]] = True
    fleet = fleets.build_fleet(kwh)
    counts = count_reasons_by_kind(found, truth, fleet, np.ones_like(kwh))
    assert set(counts.rows()) == {
        ("doubled", "rise", 1),
        ("zero_window", "outage", 1),
        (NO_INJECTION, "rise", 1),
    }


def test_correct_reason_need_not_be_the_best_one() -> None:
    counts = pl.DataFrame(
        {
            "kind": ["clock_shift", "clock_shift", "clock_shift", NO_INJECTION],
            "reason": ["shifted", "unusual_shape", "rise", "rise"],
            "nights": [5, 3, 2, 90],
        }
    )
    assert (
        describe_reason_accuracy(counts) == "80.0% of 10 nights found are named rightly, 50.0% best"
    )
    row = tabulate_reasons(counts).row(by_predicate=pl.col("kind") == "clock_shift", named=True)
    assert (row["shifted"], row["unusual_shape"], row["rise"], row["outage"]) == (5, 3, 2, 0)
    assert row["right"] == 0.8
    nothing = tabulate_reasons(counts).row(-1, named=True)
    assert (nothing["kind"], nothing["rise"], nothing["right"]) == (NO_INJECTION, 90, None)
    assert describe_reason_accuracy(counts[3:]) == "no injected night was found"
