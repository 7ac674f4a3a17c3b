"""An exported program computes what the network computes, without this code."""

import logging
from datetime import timedelta
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ml.errors import UserError
from ml.export import (
    ONNX_OPSET,
    _suppress_exporter_warnings,
    export_onnx,
    load_onnx_function,
    measure_output_difference,
    quantize_onnx_int8,
)
from ml.models import MODEL_NAMES
from ml.models.base import Windows
from ml.scoring.detector import Detector
from ml.scoring.tables import ResultTables, score_nights
from tasks.model_files import load_detector, save_detector
from tests import fleets

TOLERANCE = 1e-4
HOUSEHOLDS, NIGHTS = 12, 130


def build_difficult_windows(detector: Detector, n_rows: int) -> Windows:
    """Nights with missing and repeated half-hours, and households that hardly use anything."""
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
    run_program = load_onnx_function(program)
    for count in (1, 2, 300):
        windows = build_difficult_windows(detector, count)
        difference = measure_output_difference(detector.scoring_function, run_program, windows)
        assert difference < TOLERANCE
        is_missing = windows.kwh[:, -1].isnan()
        assert torch.equal(run_program(windows).half_hour_log_odds.isnan(), is_missing)


def build_small_program(input_names: tuple[str, ...], output_names: tuple[str, ...]) -> bytes:
    """An ONNX program that returns its inputs as its outputs."""
    values = onnx.TensorProto.FLOAT
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node("Identity", [one], [other])
                for one, other in zip(input_names, output_names, strict=True)
            ],
            "identity",
            [onnx.helper.make_tensor_value_info(name, values, None) for name in input_names],
            [onnx.helper.make_tensor_value_info(name, values, None) for name in output_names],
        ),
        opset_imports=[onnx.helper.make_opsetid("", ONNX_OPSET)],
        ir_version=10,
    ).SerializeToString()


def test_program_of_first_release_runs_by_position_of_its_inputs() -> None:
    former_names = ("kwh", "level", "conditions"), ("expected", "deviation", "score")
    run_program = load_onnx_function(build_small_program(*former_names))
    windows = Windows(torch.ones(2, 1, 48), torch.full((2,), 2.0), torch.full((2, 15), 3.0))
    for output, given in zip(run_program(windows), windows, strict=True):
        assert torch.equal(output, given)


def test_program_with_other_outputs_than_a_network_is_refused() -> None:
    names = ("kwh", "level")
    with pytest.raises(ValueError, match="takes kwh, level and gives 2 outputs; a network takes"):
        load_onnx_function(build_small_program(names, ("a", "b")))


def test_export_leaves_loggers_as_they_were(
    caplog: pytest.LogCaptureFixture,
) -> None:
    detector = fleets.build_untrained_detector(
        fleets.build_fleet(fleets.simulate_readings_kwh(4, 60)), "conditional_autoencoder"
    ).eval()
    root = logging.getLogger()
    exporter = logging.getLogger("torch.onnx")

    def read_state() -> tuple[object, ...]:
        return (
            list(root.filters),
            list(root.handlers),
            exporter.level,
            root.manager.disable,
        )

    before = read_state()
    quantize_onnx_int8(export_onnx(detector))
    assert read_state() == before
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


def test_messages_of_others_pass_while_exporting(caplog: pytest.LogCaptureFixture) -> None:
    with _suppress_exporter_warnings():
        logging.getLogger("tasks.training").warning("a step was skipped")
    assert [record.message for record in caplog.records] == ["a step was skipped"]


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
    by_torch = score_small_fleet(load_detector(calibrated, "torch")).scores
    by_onnx = score_small_fleet(load_detector(calibrated, "onnx")).scores
    exact = ["household_id", "night", "status", "is_anomaly", "rank", "reason"]
    assert by_torch.select(exact).equals(by_onnx.select(exact))
    for column in ("score", "expected_kwh"):
        assert (by_torch[column] - by_onnx[column]).abs().max() < TOLERANCE


def test_int8_scores_stay_close_to_torch(calibrated: Path) -> None:
    detector = load_detector(calibrated, "int8")
    difference = measure_output_difference(
        load_detector(calibrated).scoring_function,
        detector.scoring_function,
        build_difficult_windows(detector, 300),
    )
    assert 0 < difference < 0.5
    model = onnx.load_from_string(quantize_onnx_int8((calibrated / "model.onnx").read_bytes()))
    assert [node for node in model.graph.node if node.op_type == "MatMulInteger"]


def test_version_without_onnx_program_raises_user_error(calibrated: Path, tmp_path: Path) -> None:
    save_detector(load_detector(calibrated), tmp_path)
    with pytest.raises(UserError, match=r"has no model\.onnx: score it with torch"):
        load_detector(tmp_path, "onnx")
