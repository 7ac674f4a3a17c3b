"""Published detectors score usable nights."""

import subprocess
import sys

import numpy as np
import pytest

from ml.errors import UserError
from ml.evaluation import baselines
from tests import fleets
from tests.evaluation_fixtures import (
    MIN_READINGS,
    build_gappy_fleet,
)


@pytest.mark.parametrize("name", ["isolation_forest", "pca", "ecod"])
def test_baselines_score_unique_profile_highest(name: str) -> None:
    fleet = build_gappy_fleet()
    score_nights = baselines.fit_baseline(name, fleet, seed=0, min_readings=MIN_READINGS)
    other = fleets.build_fleet(fleet.kwh.copy())
    other.kwh[4, 60, ::2] *= 20
    score = score_nights(other)
    assert np.nanargmax(score) == np.ravel_multi_index((4, 60), score.shape)
    assert np.isnan(score[1, 50])


def test_missing_baseline_library_raises_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyod.models.iforest", None)
    with pytest.raises(UserError, match="iforest is not installed"):
        baselines.fit_baseline(
            "isolation_forest", build_gappy_fleet(), seed=0, min_readings=MIN_READINGS
        )


def test_benchmark_imports_without_baseline_libraries() -> None:
    code = (
        "import sys\n"
        "sys.modules['pyod'] = sys.modules['stumpy'] = None\n"
        "import ml.evaluation.baselines, ml.plots.benchmark, ml.evaluation.report\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
