"""Comparison of a model's answers with its golden rows."""

from __future__ import annotations

import numpy as np
import pytest

from flywheel_common.signature import FLOAT64, InputSpec, OutputKind, OutputSpec, Signature
from flywheel_common.tensors import Tensor
from flywheel_registry.artifacts.graph import (
    Feature,
    GraphReport,
    GraphTensor,
    feature_problems,
    golden_differences,
    report_problems,
)
from flywheel_registry.models.version import GoldenRows

BINARY = Signature(inputs=(InputSpec("v__a", FLOAT64),))
ROWS = [0.25, 0.5, 0.75]


def golden(output: object, tolerance: float = 0.0) -> GoldenRows:
    return GoldenRows(output=Tensor.of("SCORE", FLOAT64, np.array(output)), tolerance=tolerance)


@pytest.mark.parametrize("answer", [ROWS, [[p] for p in ROWS], [[1 - p, p] for p in ROWS]])
@pytest.mark.parametrize("stored", [ROWS, [[p] for p in ROWS], [[1 - p, p] for p in ROWS]])
def test_the_probability_counts_in_each_shape_of_a_binary_output(stored: object, answer: object) -> None:
    assert [] == golden_differences(np.array(answer), golden(stored), BINARY)


def test_differences_above_the_tolerance_are_listed_with_their_rows() -> None:
    answer = np.array([0.25, 0.5002, np.nan])
    assert [] == golden_differences(answer[:2], golden(ROWS[:2], tolerance=0.001), BINARY)
    (problem,) = golden_differences(answer, golden(ROWS), BINARY)
    rows = "row 1: 0.5002 instead of 0.5; row 2: nan instead of 0.75"
    assert f"The model does not reproduce 2 of 3 golden rows: {rows}." == problem


def test_an_answer_of_another_shape_is_a_difference() -> None:
    vector = Signature(output=OutputSpec(OutputKind.VECTOR, size=2))
    assert ["The model answers the golden rows with shape [1, 3], not [1, 2]."] == golden_differences(
        np.zeros((1, 3)), golden([[0.0, 0.0]]), vector
    )


def test_an_output_that_is_no_tensor_is_a_difference() -> None:
    report = GraphReport(
        inputs=[GraphTensor("INPUT", "FLOAT32", (None, 1))],
        outputs=[GraphTensor("SCORE", "sequence_type", None)],
    )
    assert ["Output SCORE has type sequence_type, it must be FLOAT32 or FLOAT64."] == report_problems(
        report, BINARY, golden(ROWS)
    )


def test_features_need_the_type_and_the_size_of_the_inputs() -> None:
    signature = Signature(
        inputs=(InputSpec("v__a", 4), InputSpec("v__b", 24, (), "INPUT", 3), InputSpec("v__c", 2))
    )
    features = {"v__a": Feature(4), "v__b": Feature(24, 4), "v__x": Feature(2)}
    assert [
        "Feature v__b of fs has data type 24 and vector size 4, the signature declares 24 and 3.",
        "Feature set fs has no feature v__c.",
    ] == feature_problems(signature, "fs", features)
    assert ["Feature set fs does not exist."] == feature_problems(signature, "fs", None)
