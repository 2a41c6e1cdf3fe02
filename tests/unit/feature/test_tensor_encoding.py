"""The TENSOR layout has the values and statuses of the COLUMNS layout, as float32."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_common import columns
from flywheel_common.errors import WrongType
from flywheel_feature.api.answer_encoding import AnswerEncoder
from flywheel_feature.api.tensor_encoding import TensorEncoder
from flywheel_feature.definitions.model import BatchView, DataType, Feature, VersionRef, View
from flywheel_feature.encoding.row_encoding import RowLayout
from flywheel_feature.online.read_plan import Answer, ReadPlan
from flywheel_feature.windows.applied_offsets import AppliedOffsets
from flywheel_protos.feature.v1 import feature_pb2 as pb
from tests.support.builders.feature_units import plan_of_view

T = DataType
PRESENT = 1
NOW, TTL = 1_000, 100
VALUES: dict[DataType, st.SearchStrategy[Any]] = {
    T.BOOL: st.booleans(),
    T.INT64: st.integers(-(2**63), 2**63 - 1) | st.sampled_from([2**24 + 1, 2**24 + 3, -(2**24) - 1]),
    T.FLOAT32: st.floats(width=32, allow_nan=False),
    T.FLOAT64: st.floats(allow_nan=False) | st.sampled_from([0.1, 3.5e38, -1e300, 1e-46]),
    T.FLOAT32_VECTOR: st.floats(width=32, allow_nan=False),
    T.FLOAT64_VECTOR: st.floats(allow_nan=False),
}
NUMPY: dict[DataType, str] = {
    T.BOOL: "?",
    T.INT64: "i8",
    T.FLOAT32: "f4",
    T.FLOAT64: "f8",
    T.FLOAT32_VECTOR: "f4",
    T.FLOAT64_VECTOR: "f8",
}


def plan_of(*types: tuple[DataType, int]) -> ReadPlan:
    features = tuple(Feature(f"f{i}", t, size) for i, (t, size) in enumerate(types))
    return plan_of_view(
        View("default", "v", "e", BatchView("s", features), version=3, features=features, ttl=TTL)
    )


def mostly(usual: Any, *rare: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([*[usual] * 8, *rare])


@st.composite
def answers(draw: st.DrawFn) -> tuple[ReadPlan, Answer]:
    """Rows of numeric features that are PRESENT, NULL, NOT_FOUND, STALE or NOT_YET_VALID."""
    types = draw(
        st.lists(
            st.sampled_from(list(VALUES)).map(lambda t: (t, 3 if t.is_vector else 0)), min_size=1, max_size=6
        )
    )
    plan = plan_of(*types)
    rows = draw(st.integers(1, 9))
    stored: dict[str, tuple[Any, Any]] = {}
    for i, (data_type, size) in enumerate(types):
        cell = st.lists(VALUES[data_type], min_size=size, max_size=size) if size else VALUES[data_type]
        found = draw(st.lists(cell, min_size=rows, max_size=rows))
        valid = draw(st.lists(mostly(True, False), min_size=rows, max_size=rows))
        stored[f"f{i}"] = np.array(found, NUMPY[data_type]), np.array(valid, np.bool_)
    times = mostly(NOW - 1, NOW - TTL - 1, NOW + 1)
    events = np.array(draw(st.lists(times, min_size=rows, max_size=rows)))
    view_features = tuple(Feature(f"f{i}", t, size) for i, (t, size) in enumerate(types))
    blobs: list[bytes | None] = [*RowLayout(view_features).encode(stored, events, events)]
    for row, found in enumerate(draw(st.lists(mostly(True, False), min_size=rows, max_size=rows))):
        if not found:
            blobs[row] = None
    as_of = np.full(rows, NOW, np.int64)
    return plan, plan.decode(blobs, as_of, {}, as_of)


def nearest(value: Any, rounded: np.float32) -> bool:
    """Whether no other float32 is closer; of two as close as each other, the one with an even last bit."""
    if np.isinf(value):
        return bool(rounded == value)
    if np.isinf(rounded):
        limit = Fraction(2**128) - Fraction(2**103)
        return abs(Fraction(value)) >= limit and (value > 0) == (rounded > 0)
    distance = abs(Fraction(value) - Fraction(float(rounded)))
    for end in (-np.inf, np.inf):
        with np.errstate(over="ignore"):
            other = np.nextafter(rounded, np.float32(end))
        beside = Fraction(2**128 if end > 0 else -(2**128)) if np.isinf(other) else Fraction(float(other))
        if abs(Fraction(value) - beside) < distance:
            return False
        if abs(Fraction(value) - beside) == distance and rounded.view(np.uint32) & 1:
            return False
    return True


@given(answers())
def test_values_and_statuses_are_those_of_the_columns(given: tuple[ReadPlan, Answer]) -> None:
    plan, answer = given
    in_columns = pb.GetOnlineFeaturesResponse.FromString(AnswerEncoder(plan).encode(answer))
    (encoded,) = TensorEncoder(plan).encode_parts(answer, [answer.statuses.shape[1]])
    message = pb.GetOnlineFeaturesResponse.FromString(encoded)
    for field in ("statuses", "event_times", "view_versions", "feature_set"):
        assert getattr(in_columns, field) == getattr(message, field)
    assert not message.features.columns
    rows = message.tensor.row_count
    matrix = np.frombuffer(message.tensor.values, "<f4").reshape(rows, -1)
    statuses = np.frombuffer(message.statuses, np.uint8).reshape(-1, rows)
    at = 0
    for column, field, feature in zip(
        in_columns.features.columns, message.tensor.schema, statuses, strict=True
    ):
        assert (column.name, column.data_type, column.vector_size) == (
            field.name,
            field.data_type,
            field.vector_size,
        )
        values, _ = columns.to_numpy(column, rows)
        width = field.vector_size or 1
        for row, status in enumerate(feature.tolist()):
            got = matrix[row, at : at + width]
            if status != PRESENT:
                assert np.isnan(got).all()
            else:
                assert all(map(nearest, np.atleast_1d(values[row]).tolist(), got))
        at += width
    assert matrix.shape == (rows, at)


@given(answers(), st.data())
def test_a_batch_is_split_into_the_rows_of_each_request(
    given: tuple[ReadPlan, Answer], data: st.DataObject
) -> None:
    plan, answer = given
    rows = answer.statuses.shape[1]
    cut = data.draw(st.integers(0, rows))
    encoder = TensorEncoder(plan)
    low = 0
    for size, part in zip((cut, rows - cut), encoder.encode_parts(answer, [cut, rows - cut]), strict=True):
        assert encoder.encode_parts(answer.rows(low, low + size), [size]) == [part]
        low += size


@pytest.mark.parametrize(
    ("data_type", "values", "expected"),
    [
        (T.INT64, [1, -7, 2**24 + 1, 2**24 + 3, -(2**63)], [1, -7, 2**24, 2**24 + 4, -(2**63)]),
        (T.FLOAT64, [0.5, 0.1, 1e300, -1e300, 1e-46], [0.5, np.float32(0.1), np.inf, -np.inf, 0]),
        (T.FLOAT32, [0.5, 1e-45, -0.0, np.inf, 3.4e38], [0.5, 1e-45, -0.0, np.inf, 3.4e38]),
        (T.BOOL, [True, False, True, True, False], [1, 0, 1, 1, 0]),
    ],
)
def test_a_value_is_rounded_to_the_nearest_float32(
    data_type: DataType, values: list[Any], expected: list[Any]
) -> None:
    plan = plan_of((data_type, 0))
    stored = {"f0": (np.array(values, NUMPY[data_type]), np.ones(len(values), np.bool_))}
    events = np.full(len(values), NOW - 1)
    blobs = RowLayout((Feature("f0", data_type),)).encode(stored, events, events)
    (encoded,) = TensorEncoder(plan).encode_parts(plan.decode(blobs, events, {}), [len(values)])
    matrix = np.frombuffer(pb.GetOnlineFeaturesResponse.FromString(encoded).tensor.values, "<f4")
    assert np.array(expected, "<f4").tobytes() == matrix.tobytes()


def test_float32_columns_and_booleans_keep_their_bits() -> None:
    plan = plan_of((T.FLOAT32, 0), (T.BOOL, 0))
    numbers = np.array([0.1, -0.0, 1e-45, np.inf], "f4")
    stored = {
        "f0": (numbers, np.ones(4, np.bool_)),
        "f1": (np.array([True, False, True, False]), np.ones(4, np.bool_)),
    }
    events = np.full(4, NOW - 1)
    blobs = RowLayout((Feature("f0", T.FLOAT32), Feature("f1", T.BOOL))).encode(stored, events, events)
    (encoded,) = TensorEncoder(plan).encode_parts(plan.decode(blobs, events, {}), [4])
    matrix = np.frombuffer(pb.GetOnlineFeaturesResponse.FromString(encoded).tensor.values, "<f4").reshape(
        4, 2
    )
    assert numbers.tobytes() == matrix[:, 0].tobytes()
    assert [1, 0, 1, 0] == matrix[:, 1].tolist()


def test_applied_offsets_follow_the_matrix() -> None:
    plan = plan_of((T.FLOAT32, 0))
    applied = AppliedOffsets(VersionRef("w", 2), np.array([0, 1]), np.array([[3, 7]], np.int64))
    encoder = TensorEncoder(plan)
    (part,) = encoder.encode_parts(plan.decode([None], np.array([NOW]), {}), [1])
    message = pb.GetOnlineFeaturesResponse.FromString(part + encoder.encode_applied([applied]))
    (column,) = message.applied_offsets.columns
    assert ("w@2", [3, 7]) == (column.name, columns.to_numpy(column, 1)[0][0].tolist())
    assert 1 == message.tensor.row_count


@pytest.mark.parametrize("data_type", [T.STRING, T.BYTES, T.TIMESTAMP, T.FLOAT64_LIST, T.BOOL_LIST])
def test_a_feature_that_is_not_numeric_is_refused(data_type: DataType) -> None:
    with pytest.raises(WrongType, match=f"v__f1.*{data_type.name}"):
        TensorEncoder(plan_of((T.FLOAT64, 0), (data_type, 0)))
