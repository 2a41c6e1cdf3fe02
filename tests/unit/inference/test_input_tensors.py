"""Tests of the input tensor and of feature blocks."""

from __future__ import annotations

import numpy as np
import pytest

from flywheel_common.signature import InputSpec, Signature
from flywheel_inference.models.feature_block import FeatureBlock, FeatureColumn, concatenate_blocks
from flywheel_inference.models.input_tensors import MissingFeature, TensorBuilder
from flywheel_protos.types.v1 import value_pb2 as t


def column(name: str, values: list[object], kind: int, valid: list[bool] | None = None) -> FeatureColumn:
    dtype = {t.DATA_TYPE_STRING: object, t.DATA_TYPE_INT64: "<i8", t.DATA_TYPE_BOOL: "?"}.get(kind, "<f8")
    mask = np.array(valid if valid is not None else [True] * len(values))
    return FeatureColumn(name, kind, np.array(values, dtype=dtype), mask)


def builder_of(*inputs: InputSpec) -> TensorBuilder:
    return TensorBuilder(Signature(inputs))


def block(*columns: FeatureColumn) -> FeatureBlock:
    rows = len(columns[0].values)
    return FeatureBlock("fs", columns, np.ones((len(columns), rows), np.uint8))


DELAY = column("a__delay", [1.5, 0.0, 3.0], t.DATA_TYPE_FLOAT64, [True, False, True])
ORIGIN = column("a__origin", ["JFK", "???", ""], t.DATA_TYPE_STRING, [True, True, False])
COUNT = column("a__count", [7, 8, 9], t.DATA_TYPE_INT64)
LATE = column("a__late", [True, False, True], t.DATA_TYPE_BOOL)


def test_columns_follow_the_signature_with_nan_and_minus_one() -> None:
    builder = builder_of(
        InputSpec("a__origin", t.DATA_TYPE_STRING, ("LGA", "JFK")),
        InputSpec("a__count", t.DATA_TYPE_INT64),
        InputSpec("a__delay", t.DATA_TYPE_FLOAT64),
        InputSpec("a__late", t.DATA_TYPE_BOOL),
    )
    (tensor,) = builder.build(block(DELAY, ORIGIN, COUNT, LATE)).tensors.values()
    assert tensor.dtype == np.float32 and tensor.flags.c_contiguous
    np.testing.assert_array_equal(tensor, [[1, 7, 1.5, 1], [-1, 8, np.nan, 0], [-1, 9, 3.0, 1]])


def test_the_order_of_feature_columns_may_change() -> None:
    builder = builder_of(InputSpec("a__count", t.DATA_TYPE_INT64), InputSpec("a__delay", t.DATA_TYPE_FLOAT64))
    first, second = builder.build(block(DELAY, COUNT)), builder.build(block(COUNT, ORIGIN, DELAY))
    np.testing.assert_array_equal(first.tensors["INPUT"], second.tensors["INPUT"])


def test_numbers_and_booleans_can_be_categories() -> None:
    builder = builder_of(
        InputSpec("a__count", t.DATA_TYPE_INT64, ("9", "7")),
        InputSpec("a__late", t.DATA_TYPE_BOOL, ("false", "true")),
    )
    np.testing.assert_array_equal(
        builder.build(block(COUNT, LATE)).tensors["INPUT"], [[1, 1], [-1, 0], [0, 1]]
    )
    served = builder.served(block(COUNT, LATE))
    assert [c.values.tolist() for c in served] == [["7", "8", "9"], ["true", "false", "true"]]


def test_a_missing_input_is_named() -> None:
    builder = builder_of(InputSpec("a__count", t.DATA_TYPE_INT64), InputSpec("b__gone", t.DATA_TYPE_FLOAT64))
    with pytest.raises(MissingFeature, match="b__gone"):
        builder.build(block(COUNT))


def test_text_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(MissingFeature, match="a__origin"):
        builder_of(InputSpec("a__origin", t.DATA_TYPE_STRING)).build(block(ORIGIN))


def test_blocks_are_concatenated_and_taken_by_row() -> None:
    joined = concatenate_blocks([block(DELAY, ORIGIN), block(DELAY, ORIGIN)])
    assert joined.rows == 6
    part = joined.take(np.array([4, 0]))
    assert part.columns[1].values.tolist() == ["???", "JFK"]
    assert part.columns[0].valid.tolist() == [False, True]
