"""A program made of a detector says what the detector says, without this code and unpickled."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ml.errors import UserError
from ml.export import export_onnx, load_onnx_function, measure_output_difference, quantize_onnx_int8
from ml.models import MODEL_NAMES
from ml.models.base import Windows
from ml.scoring.detector import Detector
from ml.scoring.tables import ResultTables, score_nights
from tasks.model_files import load_detector, save_detector
from tests import fleets

TOLERANCE = 1e-4
HOUSEHOLDS, NIGHTS = 12, 130


def build_difficult_windows(detector: Detector, n_rows: int) -> Windows:
    """Nights of which some lack half-hours, some repeat, and some homes hardly use anything."""
    kwh = fleets.simulate_readings_kwh(6, 96)
    kwh[1], kwh[2] = 0.05, kwh[2].round(2)
    kwh[3, 60:64], kwh[:, 70::3, 5:11], kwh[4, 80, 20:] = np.nan, np.nan, 0.0
    windows = fleets.build_windows(fleets.build_fleet(kwh), detector.network.context_nights)
    recent = torch.arange(6 * 96) % 96 >= 46
    return Windows(*(part[recent][:n_rows] for part in windows))


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_onnx_export_of_every_model_accepts_any_batch_size(model: str) -> None:
    detector = fleets.build_untrained_detector(
        fleets.build_fleet(fleets.simulate_readings_kwh(4, 60)), model
    ).eval()
    program = export_onnx(detector)
    onnx.checker.check_model(onnx.load_from_string(program))
    judge = load_onnx_function(program)
    for count in (1, 2, 300):
        nights = build_difficult_windows(detector, count)
        assert measure_output_difference(detector.scoring_function, judge, nights) < TOLERANCE
        missing = nights.kwh[:, -1].isnan()
        assert torch.equal(judge(nights).half_hour_log_odds.isnan(), missing)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("7")
    detector = fleets.build_detector(
        fleets.build_fleet(fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS))
    )
    save_detector(detector, directory)
    (directory / "model.onnx").write_bytes(export_onnx(detector))
    return directory


def score_small_fleet(detector: Detector) -> ResultTables:
    fleet = fleets.build_fleet(fleets.simulate_readings_kwh(HOUSEHOLDS, NIGHTS, seed=1))
    return score_nights(
        detector,
        fleet,
        fleets.FIRST_NIGHT + timedelta(days=NIGHTS - 5),
        min_readings=36,
        alert_budget=100,
        model_version="7",
    )


def test_onnx_runtime_gives_same_flags_ranks_and_scores_as_torch(calibrated: Path) -> None:
    ours, theirs = (
        score_small_fleet(load_detector(calibrated, engine)).scores for engine in ("torch", "onnx")
    )
    exact = ["household_id", "night", "status", "is_anomaly", "rank", "reason"]
    assert ours.select(exact).equals(theirs.select(exact))
    for figure in ("score", "expected_kwh"):
        assert (ours[figure] - theirs[figure]).abs().max() < TOLERANCE


def test_int8_scores_stay_close_to_torch(calibrated: Path) -> None:
    detector = load_detector(calibrated, "int8")
    nights = build_difficult_windows(detector, 300)
    assert (
        0
        < measure_output_difference(
            load_detector(calibrated).scoring_function, detector.scoring_function, nights
        )
        < 0.5
    )
    model = onnx.load_from_string(quantize_onnx_int8((calibrated / "model.onnx").read_bytes()))
    assert [node for node in model.graph.node if node.op_type == "MatMulInteger"]


def test_version_without_onnx_program_raises_user_error(calibrated: Path, tmp_path: Path) -> None:
    save_detector(load_detector(calibrated), tmp_path)
    with pytest.raises(UserError, match=r"has no model\.onnx: score it with torch"):
        load_detector(tmp_path, "onnx")
