"""A detector as a program that runs without this code: `torch.export`, ONNX, ONNX in int8.

In and out go the bare tensors of `Detector.forward`, in single precision and any number of rows.
A program is traced without gradients, so with the products in double that scoring has.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from ml.detector import Detector
from ml.models.base import NetworkFunction, NetworkOutput, Windows
from ml.schemas import HALF_HOURS

ONNX_OPSET: Final = 20


def build_example_inputs(detector: Detector) -> tuple[Tensor, Tensor, Tensor]:
    """Two household-nights in the shapes that a detector takes."""
    nights, conditions = detector.network.context_nights + 1, len(detector.config.conditions)
    return torch.ones(2, nights, HALF_HOURS), torch.ones(2), torch.ones(2, conditions)


@torch.no_grad()
def export_onnx(detector: Detector) -> bytes:
    """The network as an ONNX program, weights included."""
    from torch.export import Dim, export

    batch = {0: Dim("rows")}
    with _suppress_exporter_warnings():
        traced = export(
            detector,
            build_example_inputs(detector),
            dynamic_shapes=(batch, batch, batch),
            strict=False,
        )
        found = torch.onnx.export(
            traced,
            input_names=Windows._fields,
            output_names=NetworkOutput._fields,
            opset_version=ONNX_OPSET,
            optimize=False,
            verbose=False,
        )
    assert found is not None
    return bytes(found.model_proto.SerializeToString())


def quantize_onnx_int8(onnx_program: bytes) -> bytes:
    """An ONNX program whose linear layers multiply in int8, each batch by its own scale."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load_from_string(onnx_program)
    model.graph.ClearField("value_info")  # shapes of weights before they are turned
    quantised = io.BytesIO()
    with _suppress_exporter_warnings():
        quantize_dynamic(model, quantised, op_types_to_quantize=["MatMul"], per_channel=True)
    return quantised.getvalue()


def load_onnx_function(onnx_program: bytes) -> NetworkFunction:
    """What an ONNX program makes of household-nights on the CPU, one core a call."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        onnx_program, options, providers=["CPUExecutionProvider"]
    )

    def run_program(windows: Windows) -> NetworkOutput:
        given = {name: part.numpy() for name, part in windows._asdict().items()}
        return NetworkOutput(*map(torch.from_numpy, session.run(NetworkOutput._fields, given)))

    return run_program


def measure_output_difference(
    reference: NetworkFunction, candidate: NetworkFunction, windows: Windows
) -> float:
    """The largest difference between any two figures of the same household-nights."""
    with torch.inference_mode():
        pairs = zip(reference(windows), candidate(windows), strict=True)
        return max((a - b).abs().nan_to_num().max().item() for a, b in pairs)


@contextmanager
def _suppress_exporter_warnings() -> Iterator[None]:
    """Without what exporters say of their own making; what fails still raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
