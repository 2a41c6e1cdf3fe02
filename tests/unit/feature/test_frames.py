"""Columns survive a round trip through frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from flywheel_feature.definitions.model import DataType as T
from flywheel_feature.definitions.model import Field
from flywheel_feature.encoding.frames import from_series, to_frame, to_series

CASES: list[tuple[T, Any, Any]] = [
    (T.BOOL, np.array([True, False, True]), [True, None, True]),
    (T.INT64, np.array([1, 2, -(2**62)]), [1, None, -(2**62)]),
    (T.FLOAT32, np.array([1.5, 2, 3], "f4"), [1.5, None, 3.0]),
    (T.FLOAT64, np.array([1.5, 2, 3]), [1.5, None, 3.0]),
    (T.TIMESTAMP, np.array([1_357_000_000_000_000, 2, 3]), None),
    (T.STRING, np.array(["a", "b", "c"], dtype=object), ["a", None, "c"]),
    (T.BYTES, np.array([b"a", b"b", b"c"], dtype=object), [b"a", None, b"c"]),
]


@pytest.mark.parametrize(("kind", "values", "shown"), CASES, ids=lambda c: getattr(c, "name", ""))
@pytest.mark.parametrize("sliced", [False, True])
def test_values_and_nulls_survive_a_round_trip(kind: T, values: Any, shown: Any, sliced: bool) -> None:
    valid = np.array([True, False, True])
    series = to_series(Field("x", kind), values, valid)
    assert series.null_count() == 1
    if shown is not None:
        assert series.to_list() == shown
    low = 1 if sliced else 0
    back, mask = from_series(series[low:], kind)
    assert mask.tolist() == valid[low:].tolist()
    assert back[mask].tolist() == values[low:][mask].tolist()


def test_nan_is_null() -> None:
    values, mask = from_series(pl.Series("x", [1.0, float("nan"), None]), T.FLOAT64)
    assert mask.tolist() == [True, False, False]
    assert values.tolist() == [1.0, 0.0, 0.0]


def test_a_frame_of_numbers_equals_its_series_one_by_one() -> None:
    valid = np.array([True, False, True])
    columns = {kind.name: (values, valid) for kind, values, _ in CASES[:4]}
    # A column of packed rows is not a contiguous array.
    rows = np.zeros(3, [("head", "u1"), ("number", "<f8")])
    rows["number"] = [1.5, 0.0, float("nan")]
    columns["packed"] = rows["number"], np.ones(3, np.bool_)
    fields = [*(Field(kind.name, kind) for kind, _, _ in CASES[:4]), Field("packed", T.FLOAT64)]
    wanted = pl.DataFrame([to_series(f, *columns[f.name]) for f in fields])
    assert wanted.equals(to_frame(fields, columns, 3))
    assert wanted.schema == to_frame(fields, columns, 3).schema
