"""Tests of the input tensor and of feature blocks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_common.scoring.feature_block import FeatureBlock, FeatureColumn, concatenate_blocks
from flywheel_common.scoring.input_tensors import MissingFeature, TensorBuilder
from flywheel_common.signature import InputSpec, Signature, TensorSpec, problems
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


def signature_of(data_type: int, shape: tuple[int, ...], *inputs: InputSpec) -> Signature:
    """Inputs in one tensor `x`."""
    return Signature(tuple(replace(i, tensor="x") for i in inputs), (TensorSpec("x", data_type, shape),))


def test_each_tensor_has_its_type_and_shape() -> None:
    vectors = FeatureColumn(
        "a__v", t.DATA_TYPE_FLOAT32_VECTOR, np.arange(12, dtype="<f4").reshape(3, 4), np.array([1, 0, 1], "?")
    )
    signature = Signature(
        (
            InputSpec("a__origin", t.DATA_TYPE_STRING, tensor="text"),
            InputSpec("a__count", t.DATA_TYPE_INT64, tensor="count"),
            InputSpec("a__late", t.DATA_TYPE_BOOL, tensor="flag"),
            InputSpec("a__v", t.DATA_TYPE_FLOAT32_VECTOR, tensor="numbers", vector_size=4),
            InputSpec("a__late2", t.DATA_TYPE_BOOL, tensor="numbers"),
            InputSpec("a__delay", t.DATA_TYPE_FLOAT64, tensor="numbers"),
        ),
        (
            TensorSpec("flag", t.DATA_TYPE_BOOL, ()),
            TensorSpec("text", t.DATA_TYPE_STRING, (1,)),
            TensorSpec("count", t.DATA_TYPE_INT64, (1,)),
            TensorSpec("numbers", t.DATA_TYPE_FLOAT64, (2, 3)),
        ),
    )
    assert problems(signature) == []
    columns = block(DELAY, ORIGIN, COUNT, LATE, replace(LATE, name="a__late2"), vectors)
    tensors, unfit = TensorBuilder(signature).build(columns)
    assert not unfit and list(tensors) == ["flag", "text", "count", "numbers"]
    assert (tensors["flag"].dtype, tensors["flag"].tolist()) == (np.bool_, [True, False, True])
    assert tensors["text"].tolist() == [["JFK"], ["???"], [""]]
    assert (tensors["count"].dtype, tensors["count"].tolist()) == (np.int64, [[7], [8], [9]])
    assert tensors["numbers"].dtype == np.float64 and tensors["numbers"].flags.c_contiguous
    nan = np.nan
    expected = [[[0, 1, 2], [3, 1, 1.5]], [[nan, nan, nan], [nan, 0, nan]], [[8, 9, 10], [11, 1, 3]]]
    np.testing.assert_array_equal(tensors["numbers"], expected)


def test_a_category_in_an_integer_tensor_is_its_index_or_minus_one() -> None:
    origin = InputSpec("a__origin", t.DATA_TYPE_STRING, ("LGA", "JFK"))
    tensors, unfit = TensorBuilder(signature_of(t.DATA_TYPE_INT64, (), origin)).build(block(ORIGIN))
    assert (tensors["x"].dtype, tensors["x"].tolist(), unfit) == (np.int64, [1, -1, -1], {})


@pytest.mark.parametrize(
    ("data_type", "values"), [(t.DATA_TYPE_INT64, [7, 8, 9]), (t.DATA_TYPE_BOOL, [True, False, True])]
)
def test_a_null_in_a_tensor_without_null_makes_its_row_unfit(data_type: int, values: list[object]) -> None:
    nulls = column("a__x", values, data_type, [True, False, True])
    signature = signature_of(data_type, (1,), InputSpec("a__x", data_type))
    tensors, unfit = TensorBuilder(signature).build(block(nulls))
    assert list(unfit) == [1] and "a__x is null" in unfit[1]
    assert [row for i, row in enumerate(tensors["x"][:, 0].tolist()) if i != 1] == [values[0], values[2]]


@given(
    values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6),
    tensor=st.sampled_from([t.DATA_TYPE_FLOAT32, t.DATA_TYPE_FLOAT64]),
    null=st.integers(0, 5),
)
def test_an_integer_that_a_float_tensor_would_round_makes_its_row_unfit(
    values: list[int], tensor: int, null: int
) -> None:
    valid = [row != null for row in range(len(values))]
    integers = column("a__x", list(values), t.DATA_TYPE_INT64, valid)
    signature = signature_of(tensor, (1,), InputSpec("a__x", t.DATA_TYPE_INT64))
    tensors, unfit = TensorBuilder(signature).build(block(integers))
    bits = 24 if tensor == t.DATA_TYPE_FLOAT32 else 53
    # An integer fits when its digits without the zeros at the end fit into the mantissa.
    exact = [not v or (abs(v) // (abs(v) & -abs(v))).bit_length() <= bits for v in values]
    assert set(unfit) == {row for row, ok in enumerate(exact) if not ok and valid[row]}
    for row, value in enumerate(values):
        if row not in unfit:
            found = tensors["x"][row, 0]
            assert int(found) == value if valid[row] else np.isnan(found)


def test_a_number_above_the_range_of_float32_makes_its_row_unfit() -> None:
    inputs = (InputSpec("a__x", t.DATA_TYPE_FLOAT64), InputSpec("a__count", t.DATA_TYPE_INT64))
    large = column("a__x", [1e39, np.inf, -1e39, 0.5], t.DATA_TYPE_FLOAT64, [True, True, False, True])
    count = column("a__count", [1, 2, 3, 4], t.DATA_TYPE_INT64)
    tensors, unfit = builder_of(*inputs).build(block(large, count))
    assert list(unfit) == [0] and "a__x" in unfit[0]
    np.testing.assert_array_equal(tensors["INPUT"][1:], [[np.inf, 2], [np.nan, 3], [0.5, 4]])


@pytest.mark.parametrize(
    ("data_type", "wrong"),
    [
        (t.DATA_TYPE_INT64, DELAY),
        (t.DATA_TYPE_BOOL, COUNT),
        (t.DATA_TYPE_STRING, LATE),
        (t.DATA_TYPE_FLOAT32, ORIGIN),
        (t.DATA_TYPE_FLOAT32, FeatureColumn("a__v", 24, np.zeros((3, 2), "<f4"), np.ones(3, np.bool_))),
    ],
)
def test_a_feature_of_another_type_or_size_is_refused(data_type: int, wrong: FeatureColumn) -> None:
    signature = signature_of(data_type, (1,), InputSpec(wrong.name, data_type))
    with pytest.raises(MissingFeature, match=wrong.name):
        TensorBuilder(signature).build(block(wrong))


def test_blocks_are_concatenated_and_taken_by_row() -> None:
    joined = concatenate_blocks([block(DELAY, ORIGIN), block(DELAY, ORIGIN)])
    assert joined.rows == 6
    part = joined.take(np.array([4, 0]))
    assert part.columns[1].values.tolist() == ["???", "JFK"]
    assert part.columns[0].valid.tolist() == [False, True]
