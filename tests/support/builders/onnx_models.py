"""Small ONNX files, built with onnx.helper, and golden rows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_common.signature import FLOAT32
from flywheel_common.signature_messages import tensor_message
from flywheel_protos.registry.v1 import model_pb2


@functools.cache
def constant_half(label: str = "") -> bytes:
    """A model of one float32 input that answers 0.5 for every row; `label` makes files differ."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["INPUT", "W"], ["product"]),
            helper.make_node("Sigmoid", ["product"], ["SCORE"]),
        ],
        "half",
        [helper.make_tensor_value_info("INPUT", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor_value_info("SCORE", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor("W", TensorProto.FLOAT, [1, 1], [0.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], doc_string=label)
    model.ir_version = 9
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def with_weights_outside(model: bytes, folder: Path, weights: str = "model.bin") -> Path:
    """Write `folder`/model.onnx, whose weights are in the file `weights`."""
    import onnx
    from onnx import numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    parsed = onnx.ModelProto.FromString(model)
    for tensor in parsed.graph.initializer:  # only values as bytes can be elsewhere
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    options: dict[str, Any] = {"save_as_external_data": True, "location": weights, "size_threshold": 0}
    onnx.save_model(parsed, folder / "model.onnx", **options)
    return folder / "model.onnx"


def graph_file(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: Sequence[Any] = ()
) -> bytes:
    """A model file of these nodes; inputs and outputs are (name, element type, shape)."""
    from onnx import helper

    def values(declared: list[Any]) -> list[Any]:
        return [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in declared]

    graph = helper.make_graph(nodes, "graph", values(inputs), values(outputs), list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    return bytes(model.SerializeToString())


def three_classes() -> bytes:
    """Softmax over [a, b, code] from the float input `AB` [rows, 2] and the int64 input `CODE` [rows]."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["CODE"], ["code"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["code", "last"], ["column"]),
        helper.make_node("Concat", ["AB", "column"], ["logits"], axis=1),
        helper.make_node("Softmax", ["logits"], ["P"], axis=1),
    ]
    inputs = [("AB", TensorProto.FLOAT, ["rows", 2]), ("CODE", TensorProto.INT64, ["rows"])]
    last = helper.make_tensor("last", TensorProto.INT64, [1], [1])
    return graph_file(nodes, inputs, [("P", TensorProto.FLOAT, ["rows", 3])], [last])


def golden_rows(rows: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> model_pb2.GoldenRows:
    """Golden rows [rows, inputs] and scores [rows] of a signature without declared tensors."""
    return model_pb2.GoldenRows(
        row_count=len(rows),
        tensors=[tensor_message("INPUT", FLOAT32, rows)],
        output=tensor_message("SCORE", FLOAT32, scores.reshape(-1, 1)),
    )
