"""Encoded rows of all types survive a round trip."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_feature.definitions.model import DataType as T
from flywheel_feature.definitions.model import Feature
from flywheel_feature.encoding.keys import entity_keys
from flywheel_feature.encoding.row_encoding import RowLayout

VALUES: dict[T, st.SearchStrategy[Any]] = {
    T.BOOL: st.booleans(),
    T.INT64: st.integers(-(2**63), 2**63 - 1),
    T.FLOAT32: st.floats(width=32, allow_nan=False),
    T.FLOAT64: st.floats(allow_nan=False),
    T.STRING: st.text(max_size=12),
    T.BYTES: st.binary(max_size=12),
    T.TIMESTAMP: st.integers(0, 4_000_000_000_000_000),
    T.INT64_LIST: st.lists(st.integers(-9, 9), max_size=4),
    T.FLOAT64_LIST: st.lists(st.floats(allow_nan=False), max_size=4),
    T.STRING_LIST: st.lists(st.text(max_size=5), max_size=4),
    T.FLOAT32_VECTOR: st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3),
}
DTYPES = {
    T.BOOL: "?",
    T.INT64: "i8",
    T.FLOAT32: "f4",
    T.FLOAT64: "f8",
    T.TIMESTAMP: "i8",
    T.FLOAT32_VECTOR: "f4",
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[T], list[list[Any]]]:
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=10))
    rows = draw(st.integers(1, 5))
    return kinds, [[draw(st.none() | VALUES[k]) for _ in range(rows)] for k in kinds]


def column(kind: T, values: list[Any]) -> tuple[Any, Any]:
    valid = np.array([v is not None for v in values])
    if kind in DTYPES:
        zero: Any = [0.0] * 3 if kind.is_vector else 0
        return np.array([zero if v is None else v for v in values], dtype=DTYPES[kind]), valid
    packed = np.empty(len(values), dtype=object)
    packed[:] = values
    return packed, valid


@settings(max_examples=200, deadline=None)
@given(tables())
def test_rows_of_any_types_survive_a_round_trip(table: tuple[list[T], list[list[Any]]]) -> None:
    kinds, values = table
    layout = RowLayout([Feature(f"f{i}", k, 3 if k.is_vector else 0) for i, k in enumerate(kinds)])
    rows = len(values[0])
    times = np.arange(rows, dtype=np.int64) + 5
    columns = {f"f{i}": column(k, v) for i, (k, v) in enumerate(zip(kinds, values, strict=True))}
    packed = layout.encode(columns, times, times)
    decoded = layout.decode([None, *packed])
    assert decoded.found.tolist() == [False] + [True] * rows
    assert decoded.event.tolist() == [0, *times.tolist()]
    for (got, valid), expected in zip(decoded.columns, values, strict=True):
        assert valid.tolist() == [False] + [v is not None for v in expected]
        for i, v in enumerate(expected):
            if v is not None:
                found = got[i + 1]
                assert (found.tolist() if isinstance(found, np.ndarray) else found) == v


@given(
    st.lists(st.tuples(st.binary(max_size=6), st.binary(max_size=6)), min_size=2, max_size=20, unique=True)
)
def test_two_entities_never_share_a_key(pairs: list[tuple[bytes, bytes]]) -> None:
    keys = entity_keys([(T.BYTES, [p[0] for p in pairs]), (T.BYTES, [p[1] for p in pairs])])
    assert len(set(keys)) == len(pairs)
