"""A single value is converted as a column of that one value is."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from flywheel_common.conversion import convert
from flywheel_common.errors import InvalidArgument
from flywheel_common.value import coerce, from_python
from flywheel_protos.types.v1 import value_pb2

REFUSED = "refused"
NAMES = value_pb2.DataType.Name

integers = st.integers(-(2**63), 2**63 - 1) | st.sampled_from(
    [2**24, 2**24 + 1, 2**53, 2**53 + 1, -(2**63), 2**63 - 1, 2**63 - 512]
)
floats = st.floats() | st.sampled_from(
    [0.5, -0.0, 2.0, 2.0**53 - 1, 2.0**53, 1e30, 3.5e38, -3.5e38, float("inf"), float("nan")]
)
times = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31))
scalars = st.one_of(
    st.none(), st.booleans(), integers, floats, st.text(max_size=5), st.binary(max_size=5), times
)
values = scalars | st.one_of(
    *(
        st.lists(element, max_size=3)
        for element in (st.booleans(), integers, floats, st.text(max_size=5), st.binary(max_size=5), times)
    )
)
data_types = st.sampled_from([t for t in value_pb2.DataType.values() if t])


def of_value(value: Any, data_type: int) -> Any:
    try:
        return coerce(from_python(value), data_type, "f")
    except InvalidArgument:
        return REFUSED


def of_column(value: Any, data_type: int) -> Any:
    size = len(value) if isinstance(value, list) else 0
    try:
        converted = convert(pa.array([value]), data_type, vector_size=size, column="f")
    except InvalidArgument:
        return REFUSED
    if data_type == value_pb2.DATA_TYPE_TIMESTAMP:
        converted = converted.cast(pa.int64())
    if data_type == value_pb2.DATA_TYPE_TIMESTAMP_LIST:
        converted = converted.cast(pa.large_list(pa.int64()))
    return converted[0].as_py()


@given(values, data_types)
@example(1e300, value_pb2.DATA_TYPE_FLOAT32)
@example(0.1, value_pb2.DATA_TYPE_FLOAT32)
@example(2**24 + 1, value_pb2.DATA_TYPE_FLOAT32)
@example([0.1, 1e300], value_pb2.DATA_TYPE_FLOAT32_VECTOR)
@example([1, True], value_pb2.DATA_TYPE_INT64_LIST)
@example([], value_pb2.DATA_TYPE_STRING_LIST)
@example(float("nan"), value_pb2.DATA_TYPE_BOOL_LIST)
def test_a_value_and_a_column_of_it_are_converted_alike(value: Any, data_type: int) -> None:
    if isinstance(value, list) and len({type(v) for v in value}) > 1:
        return  # Arrow has no such column.
    if data_type == value_pb2.DATA_TYPE_TIMESTAMP and isinstance(value, str):
        return  # A single value may be RFC 3339 text, a column may not: documented.
    one, column = of_value(value, data_type), of_column(value, data_type)
    assert one == column, f"{value!r} as {NAMES(data_type)}"
    assert type(one) is type(column)
