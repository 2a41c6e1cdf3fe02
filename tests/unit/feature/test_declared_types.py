"""Columns of requests, files and spines as their declared types: exact or refused, as on every path."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_common.columns import from_lists, from_numpy, from_texts
from flywheel_common.errors import WrongType
from flywheel_feature.definitions.frame_types import accepts, converted, converted_text, polars_type
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.encoding.wire_columns import read_column, read_request_column

D = DataType
NAN = float("nan")
NUMBERS = (D.INT64, D.FLOAT32, D.FLOAT64)


def as_frame(values: list[Any], dtype: Any) -> pl.DataFrame:
    return pl.DataFrame({"x": pl.Series(values, dtype=dtype)})


@pytest.mark.parametrize("declared", [D.BOOL, *NUMBERS, D.STRING, D.BYTES, D.TIMESTAMP])
@pytest.mark.parametrize(
    ("dtype", "value", "accepted"),
    [
        (pl.Float64, 123.5, {D.FLOAT32, D.FLOAT64}),
        (pl.Int64, 2134, set(NUMBERS)),
        (pl.Boolean, True, {D.BOOL}),
        (pl.String, "02134", {D.STRING}),
        (pl.Categorical, "02134", {D.STRING}),
        (pl.Binary, b"x", {D.BYTES}),
        (pl.Datetime("us"), datetime(2024, 5, 1), {D.TIMESTAMP}),
        (pl.Decimal(38, 0), 7, set(NUMBERS)),
        (pl.Duration("us"), 5, set()),
    ],
)
def test_a_stored_column_is_read_as_its_declared_type_or_refused(
    dtype: Any, value: Any, accepted: set[DataType], declared: DataType
) -> None:
    frame = as_frame([None, value], dtype)
    if declared in accepted:
        assert accepts(frame.schema["x"], declared)
        found = converted(frame, "x", declared)
        assert found.dtype == polars_type(declared)
        wanted = value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
        assert found.to_list() == [None, wanted]
        return
    with pytest.raises(WrongType) as raised:
        converted(frame, "x", declared)
    assert raised.value.metadata["row"] == "1"


def test_folder_names_keep_leading_zeros_as_text() -> None:
    frame = pl.DataFrame({"store": ["01", None]})
    assert converted_text(frame, "store", D.STRING).to_list() == ["01", None]
    assert converted_text(frame, "store", D.INT64).to_list() == [1, None]


def test_nan_in_a_request_field_is_null() -> None:
    for dtype, kind in ((np.float64, D.FLOAT64), (np.float32, D.FLOAT32)):
        column = from_numpy("x", np.array([1.5, NAN], dtype))
        values, valid = read_request_column(column, Field("x", kind), 2)
        assert valid is not None
        assert valid.tolist() == [True, False]
        assert values.tolist() == [1.5, 0.0]


def test_a_request_column_without_nan_has_no_mask() -> None:
    values, valid = read_request_column(from_numpy("x", np.array([1.5, 2.5])), Field("x", D.FLOAT64), 2)
    assert values.tolist() == [1.5, 2.5]
    assert valid is None


@pytest.mark.parametrize(
    ("column", "declared"),
    [
        (from_numpy("x", np.array([1_700_000_000])), D.TIMESTAMP),
        (from_numpy("x", np.array([1.0, 2.7])), D.INT64),
        (from_numpy("x", np.array([1.0, 1e30])), D.INT64),
        (from_numpy("x", np.array([1, 2**53 + 1])), D.FLOAT64),
        (from_numpy("x", np.array([True])), D.INT64),
        (from_numpy("x", np.array([2134])), D.STRING),
        (from_texts("x", ["2"]), D.INT64),
        (from_lists("x", [[1.5]], int(D.FLOAT64_LIST)), D.INT64_LIST),
    ],
)
def test_a_sent_column_of_another_type_is_refused(column: Any, declared: DataType) -> None:
    rows = len(column.packed) // 8 or 1
    with pytest.raises(WrongType):
        read_column(column, Field("x", declared), rows)


@given(
    st.lists(
        st.one_of(st.none(), st.floats(), st.integers(-(2**60), 2**60).map(float)), min_size=1, max_size=8
    ),
    st.sampled_from(NUMBERS),
)
def test_a_sent_column_equals_a_stored_one(values: list[float | None], declared: DataType) -> None:
    frame = as_frame(values, pl.Float64)
    valid = np.array([v is not None for v in values])
    column = from_numpy("x", np.array([v if v is not None else 0.0 for v in values]), valid)
    stored = rows_or_refused_row(lambda: converted(frame, "x", declared).to_list())
    sent = rows_or_refused_row(lambda: sent_rows(column, declared, len(values)))
    assert sent == stored
    assert not isinstance(stored, list) or all(v is None or not math.isnan(v) for v in stored)


def sent_rows(column: Any, declared: DataType, rows: int) -> list[float | None]:
    values, mask = read_column(column, Field("x", declared), rows)
    return [v if ok else None for v, ok in zip(values.tolist(), mask.tolist(), strict=True)]


def rows_or_refused_row(read: Callable[[], list[float | None]]) -> list[float | None] | str:
    try:
        return read()
    except WrongType as error:
        return error.metadata["row"]
