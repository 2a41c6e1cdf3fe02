"""Small ONNX files, built with onnx.helper."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any


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
