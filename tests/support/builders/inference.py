"""Small ONNX models with their expected scores, and rows of the prediction log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np

from flywheel_common.arrays import Array
from flywheel_common.scoring.feature_block import FeatureColumn
from flywheel_common.signature import InputSpec, Signature
from flywheel_inference.prediction_log.rows import LogRows
from flywheel_inference.releases.release import (
    FeatureSetContract,
    FieldSpec,
    GoldenRows,
    ReleaseSpec,
)
from flywheel_inference.releases.rollout_step import NO_ROLLOUT
from flywheel_inference.requests.request import PredictCall, RoutedRequest
from flywheel_protos.types.v1 import value_pb2 as types

MODEL = "projects/test/models/late"
FEATURE_SET = "projects/test/featureSets/flights/versions/1"
INPUTS = ("hist__delay", "trip__miles", "route__origin")
"""Inputs of every model that `onnx_model` builds for the gateway tests."""
ORIGINS = ("JFK", "LGA", "EWR")
"""Vocabulary of the input route__origin."""


def onnx_model(weights: tuple[float, ...], bias: float) -> bytes:
    """sigmoid(sum(weights * input) + bias); a missing number counts as 0."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("IsNaN", ["INPUT"], ["missing"]),
            helper.make_node("Where", ["missing", "zero", "INPUT"], ["x"]),
            helper.make_node("MatMul", ["x", "W"], ["product"]),
            helper.make_node("Add", ["product", "b"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["SCORE"]),
        ],
        "late",
        [helper.make_tensor_value_info("INPUT", TensorProto.FLOAT, ["rows", len(weights)])],
        [helper.make_tensor_value_info("SCORE", TensorProto.FLOAT, ["rows", 1])],
        [
            helper.make_tensor("W", TensorProto.FLOAT, [len(weights), 1], weights),
            helper.make_tensor("b", TensorProto.FLOAT, [1], [bias]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def expected_score(weights: tuple[float, ...], bias: float, inputs: Sequence[float]) -> float:
    """The score of `onnx_model` for one row, computed with numpy."""
    x = np.nan_to_num(np.array(inputs, np.float64), nan=0.0)
    return float(1 / (1 + np.exp(-(x @ np.array(weights) + bias))))


def run_onnx(file: bytes, tensors: Mapping[str, Array], output: str) -> Array:
    """Runs a model file in this process; the `run` of a MemoryModelServer."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (found,) = session.run([output], dict(tensors))
    except Exception as error:
        raise ValueError(str(error)) from None
    return np.asarray(found)


LOG_CONTRACT = FeatureSetContract(
    "fs", (FieldSpec("tail", types.DATA_TYPE_STRING),), (FieldSpec("miles", types.DATA_TYPE_FLOAT64),)
)
LOG_SPEC = ReleaseSpec(
    name="releases/1",
    digest="",
    model="models/m",
    model_version="versions/1",
    triton_model="m",
    feature_set="fs",
    signature=Signature(
        (InputSpec("a__x", types.DATA_TYPE_FLOAT64), InputSpec("a__c", types.DATA_TYPE_STRING, ("u", "v")))
    ),
    artifacts=(),
    golden=GoldenRows({}, np.zeros((0, 1), np.float32)),
)


def log_request(number: int, subject: str = "") -> RoutedRequest:
    """Prediction `id-{number}`; the default subject is `s{number}`."""
    return RoutedRequest(
        call=cast("PredictCall", SimpleNamespace(size_bytes=100)),
        contract=LOG_CONTRACT,
        prediction_id=f"id-{number}",
        keys=(f"N{number}",),
        fields=(None if number % 2 else float(number),),
        as_of_micros=None,
        event_micros=number,
        subject=subject or f"s{number}",
        segment_keys=(),
        started=0.0,
    )


def numbered_log_rows(
    numbers: Sequence[int],
    *,
    with_features: bool = True,
    role: int = 1,
    subjects: Mapping[int, str] | None = None,
) -> LogRows:
    """Rows in which the value of every column follows from the row's number."""
    n, named = len(numbers), subjects or {}
    features = (
        FeatureColumn(
            "a__x",
            types.DATA_TYPE_FLOAT64,
            np.array(numbers, np.float64),
            np.array([i % 3 > 0 for i in numbers]),
        ),
        FeatureColumn(
            "a__c",
            types.DATA_TYPE_STRING,
            np.array([f"c{i}" for i in numbers], object),
            np.ones(n, np.bool_),
        ),
    )
    applied = (_lists("h@1", [[0, i] * (i % 3) for i in numbers]), _lists("w@2", [[1, i] for i in numbers]))
    return LogRows(
        spec=LOG_SPEC,
        contract=LOG_CONTRACT,
        step=NO_ROLLOUT,
        role=role,
        feature_set="fs",
        requests=[log_request(i, named.get(i, "")) for i in numbers],
        features=features if with_features else None,
        values=np.array([[i / 100] for i in numbers]),
        decisions=np.array([i > 50 for i in numbers]),
        sources=np.full(n, 1 if with_features else 3, np.uint8),
        latencies_ms=np.array(numbers, np.float32),
        reasons=[] if with_features else ["MODEL_UNAVAILABLE"] * n,
        applied=applied if with_features else (),
    )


def _lists(name: str, values: Sequence[list[int]]) -> FeatureColumn:
    filled = np.empty(len(values), object)
    filled[:] = [np.array(v, np.int64) for v in values]
    return FeatureColumn(name, types.DATA_TYPE_INT64_LIST, filled, np.ones(len(values), np.bool_))
