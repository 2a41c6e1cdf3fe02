"""One model per kind of output, with its signature, input tensors and the answers of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from flywheel_common.arrays import Array
from flywheel_common.signature import (
    BOOL,
    FLOAT32,
    FLOAT32_VECTOR,
    FLOAT64,
    INT64,
    STRING,
    InputSpec,
    OutputKind,
    OutputSpec,
    Signature,
    TensorSpec,
)
from tests.support.builders.inference import run_onnx

NUMBERS = ("hist__delay", "trip__miles")
"""Numeric features of the feature service stand-in."""
CLASSES = ("early", "on time", "late")
VECTOR = 4
"""Elements of an answer of the embedding."""


@dataclass(frozen=True)
class KindModel:
    """A model file, its signature, and input tensors of 4 or 5 rows."""

    file: bytes
    signature: Signature
    tensors: Mapping[str, Array]

    @property
    def output(self) -> Array:
        """The output tensor for `tensors`, from ONNX Runtime."""
        return run_onnx(self.file, self.tensors, self.signature.output.tensor)


@cache
def multiclass() -> KindModel:
    """A scikit-learn logistic regression with three classes: [rows, 3] float32."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 2))
    fitted = LogisticRegression(C=0.02).fit(x, np.digitize(x @ [1.0, -0.5], [-0.5, 0.5]))
    file = _model(
        [
            ("Gemm", ["INPUT", "W", "b"], ["logits"], {}),
            ("Softmax", ["logits"], ["probabilities"], {"axis": 1}),
        ],
        [("INPUT", FLOAT32, (2,))],
        ("probabilities", FLOAT32, (3,)),
        {"W": fitted.coef_.T.astype(np.float32), "b": fitted.intercept_.astype(np.float32)},
    )
    rows = x[:5].astype(np.float32)
    signature = Signature(
        tuple(InputSpec(name, FLOAT64) for name in NUMBERS),
        output=OutputSpec(OutputKind.MULTICLASS, "probabilities", class_names=CLASSES),
    )
    model = KindModel(file, signature, {"INPUT": rows})
    np.testing.assert_allclose(model.output, fitted.predict_proba(rows), atol=1e-6)
    return model


@cache
def regression() -> KindModel:
    """A scikit-learn ridge regression on a float64 tensor: [rows] float64."""
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(4)
    x = rng.normal(size=(300, 2))
    fitted = Ridge().fit(x, x @ [40.0, -7.0] + 12.0)
    file = _model(
        [("MatMul", ["x", "w"], ["product"], {}), ("Add", ["product", "b"], ["minutes"], {})],
        [("x", FLOAT64, (2,))],
        ("minutes", FLOAT64, ()),
        {"w": fitted.coef_, "b": np.array(fitted.intercept_)},
    )
    signature = Signature(
        tuple(InputSpec(name, FLOAT64, tensor="x") for name in NUMBERS),
        (TensorSpec("x", FLOAT64, (2,)),),
        OutputSpec(OutputKind.REGRESSION, "minutes", unit="minutes"),
    )
    model = KindModel(file, signature, {"x": x[:5]})
    np.testing.assert_allclose(model.output, fitted.predict(x[:5]), rtol=1e-12)
    return model


@cache
def embedding() -> KindModel:
    """A network of two layers, as the exporter of torch writes it: [rows, 4] float32."""
    rng = np.random.default_rng(5)
    shapes = {"W1": (8, 2), "b1": (8,), "W2": (VECTOR, 8), "b2": (VECTOR,)}
    weights = {name: rng.uniform(-0.7, 0.7, shape).astype(np.float32) for name, shape in shapes.items()}
    file = _model(
        [
            ("Gemm", ["INPUT", "W1", "b1"], ["hidden"], {"transB": 1}),
            ("Tanh", ["hidden"], ["activated"], {}),
            ("Gemm", ["activated", "W2", "b2"], ["embedding"], {"transB": 1}),
        ],
        [("INPUT", FLOAT32, (2,))],
        ("embedding", FLOAT32, (VECTOR,)),
        weights,
    )
    signature = Signature(
        tuple(InputSpec(name, FLOAT64) for name in NUMBERS),
        output=OutputSpec(OutputKind.VECTOR, "embedding", size=VECTOR),
    )
    rows = rng.normal(size=(5, 2)).astype(np.float32)
    model = KindModel(file, signature, {"INPUT": rows})
    expected = np.tanh(rows @ weights["W1"].T + weights["b1"]) @ weights["W2"].T + weights["b2"]
    np.testing.assert_allclose(model.output, expected, atol=1e-6)
    return model


@cache
def mixed_binary() -> KindModel:
    """A graph with a tensor of each type, one of them of shape [rows]: [rows, 2] float32."""
    file = _model(
        [
            ("LabelEncoder", ["text"], ["t"], _ml(keys_strings=["UA", "DL"], values_floats=[0.75, -1.5])),
            ("Unsqueeze", ["count", "one"], ["counted"], {}),
            ("Cast", ["counted"], ["c"], {"to": 1}),
            ("Cast", ["flag"], ["f"], {"to": 1}),
            ("MatMul", ["vector", "W"], ["v"], {}),
            ("Cast", ["wide"], ["w"], {"to": 1}),
            ("Sum", ["t", "c", "f", "v", "w"], ["logit"], {}),
            ("Neg", ["logit"], ["negative"], {}),
            ("Concat", ["negative", "logit"], ["logits"], {"axis": 1}),
            ("Softmax", ["logits"], ["probabilities"], {"axis": 1}),
        ],
        [
            ("text", STRING, (1,)),
            ("count", INT64, ()),
            ("flag", BOOL, (1,)),
            ("vector", FLOAT32, (3,)),
            ("wide", FLOAT64, (1,)),
        ],
        ("probabilities", FLOAT32, (2,)),
        {"W": np.array([[0.5], [-0.25], [0.125]], np.float32), "one": np.array([1], np.int64)},
    )
    signature = Signature(
        (
            InputSpec("m__text", STRING, tensor="text"),
            InputSpec("m__count", INT64, tensor="count"),
            InputSpec("m__flag", BOOL, tensor="flag"),
            InputSpec("m__vector", FLOAT32_VECTOR, tensor="vector", vector_size=3),
            InputSpec("hist__delay", FLOAT64, tensor="wide"),
        ),
        (
            TensorSpec("text", STRING, (1,)),
            TensorSpec("count", INT64, ()),
            TensorSpec("flag", BOOL, (1,)),
            TensorSpec("vector", FLOAT32, (3,)),
            TensorSpec("wide", FLOAT64, (1,)),
        ),
        OutputSpec(OutputKind.BINARY, "probabilities", positive_class="late"),
    )
    tensors = {
        "text": np.array([["UA"], ["DL"], ["ü"], [""]], object),
        "count": np.array([1, -2, 0, 3], np.int64),
        "flag": np.array([[True], [False], [True], [False]]),
        "vector": np.array([[1, 2, 3], [0, 0, 0], [-1, 0.5, 2], [0.25, 0, 1]], np.float32),
        "wide": np.array([[0.5], [-1.0], [0.25], [0.0]]),
    }
    return KindModel(file, signature, tensors)


KINDS = {
    "binary": mixed_binary,
    "multiclass": multiclass,
    "regression": regression,
    "vector": embedding,
}
"""Name of a kind → builder of its model."""


def _ml(**attributes: Any) -> dict[str, Any]:
    return {"domain": "ai.onnx.ml", **attributes}


def _model(
    nodes: Sequence[tuple[str, list[str], list[str], dict[str, Any]]],
    inputs: Sequence[tuple[str, int, tuple[int, ...]]],
    output: tuple[str, int, tuple[int, ...]],
    constants: Mapping[str, Array],
) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    types = {
        BOOL: TensorProto.BOOL,
        INT64: TensorProto.INT64,
        FLOAT32: TensorProto.FLOAT,
        FLOAT64: TensorProto.DOUBLE,
        STRING: TensorProto.STRING,
    }

    def info(name: str, data_type: int, shape: tuple[int, ...]) -> Any:
        return helper.make_tensor_value_info(name, types[data_type], ["rows", *shape])

    graph = helper.make_graph(
        [helper.make_node(op, sources, targets, **attributes) for op, sources, targets, attributes in nodes],
        "kinds",
        [info(*tensor) for tensor in inputs],
        [info(*output)],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 9
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
