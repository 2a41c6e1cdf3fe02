"""Converts estimators to ONNX graphs from INPUT `[rows, inputs]` to SCORE `[rows, outputs]`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_job.errors import InvalidExport
from flywheel_job.recipes.estimators.fitting import package
from flywheel_job.recipes.estimators.params import EstimatorParams
from flywheel_job.scoring import INPUT, SCORE, Tensor, open_session

OPSET, ML_OPSET = 17, 3
PARITY_TOLERANCE = 1e-4


def to_onnx(params: EstimatorParams, estimator: Any, inputs: int, outputs: int) -> bytes:
    """The graph of a fitted estimator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the converters
        return _with_scores(_convert(params, estimator, inputs), params, outputs)


def _convert(params: EstimatorParams, estimator: Any, inputs: int) -> Any:
    types = package("skl2onnx.common.data_types")
    initial = [(INPUT, types.FloatTensorType([None, inputs]))]
    opsets = {"": OPSET, "ai.onnx.ml": ML_OPSET}
    if params.library == "sklearn":
        options = None if params.task == "regression" else {id(estimator): {"zipmap": False}}
        return package("skl2onnx").convert_sklearn(
            estimator, initial_types=initial, options=options, target_opset=opsets
        )
    tools = package("onnxmltools")
    tool_types = package("onnxmltools.convert.common.data_types")
    initial = [(INPUT, tool_types.FloatTensorType([None, inputs]))]
    if params.library == "xgboost":
        return tools.convert_xgboost(estimator, initial_types=initial, target_opset=15)
    return tools.convert_lightgbm(estimator, initial_types=initial, target_opset=15, zipmap=False)


def _with_scores(model: Any, params: EstimatorParams, outputs: int) -> bytes:
    """The graph with the single output SCORE: a value, the probability of 1, or those of all classes."""
    onnx = package("onnx")
    graph = model.graph
    scores = [one.name for one in graph.output if one.name != "label" and "label" not in one.name]
    if len(scores) != 1:
        raise InvalidExport(f"The converter gives the outputs {[one.name for one in graph.output]}.")
    if params.task == "binary":
        index = onnx.numpy_helper.from_array(np.array([1], dtype=np.int64), "score_column")
        graph.initializer.append(index)
        node = onnx.helper.make_node("Gather", [scores[0], "score_column"], [SCORE], axis=1)
    else:
        shape = onnx.numpy_helper.from_array(np.array([-1, outputs], dtype=np.int64), "score_shape")
        graph.initializer.append(shape)
        node = onnx.helper.make_node("Reshape", [scores[0], "score_shape"], [SCORE])
    graph.node.append(node)
    if all(one.domain for one in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("", 15))
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info(SCORE, onnx.TensorProto.FLOAT, [None, outputs]))
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def check_parity(model: bytes, rows: Tensor, expected: npt.NDArray[np.float64]) -> float:
    """Largest difference between graph and estimator, relative to values above 1.

    Raises InvalidExport above PARITY_TOLERANCE.
    """
    found = open_session(model).run([SCORE], {INPUT: np.ascontiguousarray(rows)})[0]
    worst = float((np.abs(found - expected) / np.maximum(1.0, np.abs(expected))).max())
    if not worst <= PARITY_TOLERANCE:
        raise InvalidExport(
            f"The ONNX graph and the estimator differ by {worst:g} on {len(rows)} rows: "
            f"{PARITY_TOLERANCE:g} is allowed."
        )
    return worst
