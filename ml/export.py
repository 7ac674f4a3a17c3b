"""Export a detector's network as a program that runs without this code: ONNX, also in int8.

In and out go the bare tensors of `Detector.forward`, in single precision and any number of rows.
Features are computed in double precision, as scoring computes them; learned layers in single.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from ml.models.base import NetworkFunction, NetworkOutput, Windows
from ml.schemas import HALF_HOURS
from ml.scoring.detector import Detector

ONNX_DOUBLE: Final = 11
"""The number of double precision among ONNX's types (`TensorProto.DOUBLE`)."""
ONNX_OPSET: Final = 20
"""Version of the ONNX operators: the first with the plain GELU that `history_network` uses."""


def build_example_inputs(detector: Detector) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inputs of `Detector.forward` for two household-nights, all ones.

    Two rows, since tracing takes a dimension of one for a constant.
    """
    nights, conditions = detector.network.context_nights + 1, len(detector.config.conditions)
    return torch.ones(2, nights, HALF_HOURS), torch.ones(2), torch.ones(2, conditions)


@torch.no_grad()
def export_onnx(detector: Detector) -> bytes:
    """Return the network as an ONNX program, weights included.

    Inputs are named as the fields of `Windows`, outputs as those of `NetworkOutput`; both are in
    the fields' order.
    """
    # Seconds of import, needed by training alone.
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
            custom_translation_table={torch.ops.aten.log1p.default: _translate_log1p},
            optimize=False,
            verbose=False,
        )
    assert found is not None
    return bytes(found.model_proto.SerializeToString())


def quantize_onnx_int8(onnx_program: bytes) -> bytes:
    """Return an ONNX program whose linear layers multiply in int8, each batch by its own scale."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load_from_string(onnx_program)
    # Those are the shapes of weights before the exporter transposed them, which the quantizer
    # would believe.
    model.graph.ClearField("value_info")
    quantised = io.BytesIO()
    with _suppress_exporter_warnings():
        quantize_dynamic(model, quantised, op_types_to_quantize=["MatMul"], per_channel=True)
    return quantised.getvalue()


def load_onnx_function(onnx_program: bytes) -> NetworkFunction:
    """Return a function that runs an ONNX program on the CPU, one core a call.

    Inputs and outputs are taken by their position: programs of release 0.1.0 name them otherwise.

    Raises:
        ValueError: the program does not have the inputs and outputs of a network.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # The caller scores several batches at once, a thread each.
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        onnx_program, options, providers=["CPUExecutionProvider"]
    )
    input_names = [each.name for each in session.get_inputs()]
    n_outputs = len(session.get_outputs())
    if len(input_names) != len(Windows._fields) or n_outputs != len(NetworkOutput._fields):
        raise ValueError(
            f"the program takes {', '.join(input_names)} and gives {n_outputs} outputs; a network "
            f"takes {', '.join(Windows._fields)} and gives {', '.join(NetworkOutput._fields)}"
        )

    def run_program(windows: Windows) -> NetworkOutput:
        inputs = {name: values.numpy() for name, values in zip(input_names, windows, strict=True)}
        return NetworkOutput(*map(torch.from_numpy, session.run(None, inputs)))

    return run_program


def measure_output_difference(
    reference: NetworkFunction, candidate: NetworkFunction, windows: Windows
) -> float:
    """Return the largest difference between two functions' outputs, over all fields and rows.

    In the unit of the field in which it occurs; a half-hour that both leave missing counts 0.
    """
    with torch.inference_mode():
        pairs = zip(reference(windows), candidate(windows), strict=True)
        return max((a - b).abs().nan_to_num().max().item() for a, b in pairs)


def _translate_log1p(values: Any) -> Any:
    """Translate log(1 + x) into ONNX operators, computed in double precision.

    ONNX Runtime's logarithm in single precision rounds the last values of a row in another way than
    the others, so that equal readings would differ by where they stand, and ranks among them too.
    """
    from onnxscript import opset20

    # Typed for scripts, which this is not: it is called with symbolic tensors.
    operators: Any = opset20
    one = operators.Cast(operators.Constant(value_float=1.0), to=ONNX_DOUBLE)
    precise = operators.Log(operators.Add(operators.Cast(values, to=ONNX_DOUBLE), one))
    return operators.CastLike(precise, values)


@contextmanager
def _suppress_exporter_warnings() -> Iterator[None]:
    """Silence what torch's exporter and ONNX Runtime's quantizer say of their own making.

    That torchvision is not installed, that doubles are not quantized, and two deprecations. Errors
    and everybody else's messages pass.
    """
    exporter = logging.getLogger("torch.onnx")
    exporter_level = exporter.level
    root = logging.getLogger()
    handler = logging.NullHandler()
    exporter.setLevel(logging.ERROR)
    # ONNX Runtime logs by `logging.warning`, so with the root logger, which for want of a handler
    # would be given one for good.
    root.addHandler(handler)
    root.addFilter(_is_not_from_onnxruntime)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")
            warnings.filterwarnings("ignore", message="The tensor attributes .* were assigned")
            yield
    finally:
        root.removeFilter(_is_not_from_onnxruntime)
        root.removeHandler(handler)
        exporter.setLevel(exporter_level)


def _is_not_from_onnxruntime(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING or "onnxruntime" not in record.pathname
