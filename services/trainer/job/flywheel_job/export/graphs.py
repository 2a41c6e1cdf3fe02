"""Converts ONNX graphs: dynamic number of rows, 16-bit floats, 8-bit integers."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flywheel_job.errors import NothingToQuantize
from flywheel_job.export.params import FLOAT16, INT8_DYNAMIC, INT8_STATIC
from flywheel_job.recipes.estimators.fitting import package
from flywheel_job.scoring import INPUT, SCORE, Tensor

PRODUCTS = ("MatMul", "Gemm", "Conv")
"""Operators with weights that are quantized."""
BETWEEN = ("Relu",)
"""Operators between products that compute on 8-bit activations, so that these stay 8-bit."""
CALIBRATION_BATCH = 256


def with_dynamic_rows(graph: bytes, input_name: str, output_name: str) -> bytes:
    """The graph with the input INPUT and the output SCORE, whose first dimensions have no fixed size.

    Other outputs, such as the class of a classifier, are left out.
    """
    model = package("onnx").load_from_string(graph)
    renamed = {input_name: INPUT, output_name: SCORE}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    others = [number for number, one in enumerate(model.graph.output) if one.name != output_name]
    for number in reversed(others):
        del model.graph.output[number]
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.name = renamed.get(value.name, value.name)
        if value.name in (INPUT, SCORE) and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "rows"
    content: bytes = model.SerializeToString()
    return content


def converted(graph: bytes, format_: str, rows: Tensor, *, per_channel: bool) -> bytes:
    """The graph in a format; `rows` are those from which the ranges of activations are computed.

    Raises NothingToQuantize for an 8-bit format of a graph without products.
    """
    if format_ == FLOAT16:
        return _float16(graph)
    if format_ in (INT8_DYNAMIC, INT8_STATIC):
        return _int8(graph, format_ == INT8_STATIC, rows, per_channel=per_channel)
    return graph


def _float16(graph: bytes) -> bytes:
    convert = package("onnxruntime.transformers.float16").convert_float_to_float16
    model = package("onnx").load_from_string(graph)
    content: bytes = convert(model, keep_io_types=True).SerializeToString()
    return content


def _int8(graph: bytes, static: bool, rows: Tensor, *, per_channel: bool) -> bytes:
    """8-bit products, except the last ones before the output, whose rounding would show in the scores."""
    quantization = package("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, prepared, target = (Path(folder) / name for name in ("a.onnx", "b.onnx", "c.onnx"))
        source.write_bytes(graph)
        package("onnxruntime.quantization.shape_inference").quant_pre_process(
            str(source), str(prepared), skip_symbolic_shape=True
        )
        products, last = _products(package("onnx").load(str(prepared)))
        if not products:
            raise NothingToQuantize("The model has no matrix product or convolution with constant weights.")
        common: dict[str, Any] = {
            "per_channel": per_channel,
            "weight_type": quantization.QuantType.QInt8,
            "nodes_to_exclude": last if len(products) > len(last) else [],
        }
        if static:
            quantization.quantize_static(
                str(prepared),
                str(target),
                _CalibrationRows(rows),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                op_types_to_quantize=[*PRODUCTS, *BETWEEN],
                **common,
            )
        else:
            quantization.quantize_dynamic(
                str(prepared), str(target), op_types_to_quantize=list(PRODUCTS), **common
            )
        return target.read_bytes()


class _CalibrationRows:
    """`CalibrationDataReader` of ONNX Runtime over rows."""

    def __init__(self, rows: Tensor) -> None:
        self._batches: Iterator[Tensor] = iter(
            rows[start : start + CALIBRATION_BATCH] for start in range(0, len(rows), CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, Tensor] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: np.ascontiguousarray(batch)}

    def set_range(self, start_index: int, end_index: int) -> None:
        """Called by ONNX Runtime for ranges of batches, which this reader has no need of."""


def _products(model: Any) -> tuple[list[str], list[str]]:
    """Names of the products with constant weights, and of those that no other product follows."""
    constants = {one.name for one in model.graph.initializer}
    found: list[str] = []
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
        if node.op_type in PRODUCTS and constants & set(node.input[1:2]):
            found.append(node.name)
    by_name = {node.name: node for node in model.graph.node}
    last = [name for name in found if not _leads_to(by_name[name], set(found), readers)]
    return found, last


def _leads_to(node: Any, wanted: set[str], readers: dict[str, list[Any]]) -> bool:
    """Whether a node computes on the output of `node`, directly or not."""
    seen: set[str] = set()
    open_ = list(node.output)
    while open_:
        for reader in readers.get(open_.pop(), []):
            if reader.name in wanted:
                return True
            new = set(reader.output) - seen
            seen |= new
            open_ += new
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that ONNX Runtime's quantizer logs for each node."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
