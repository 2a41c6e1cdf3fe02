"""Columns go to a frame and come back the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from flywheel_feature.definitions import DataType as T
from flywheel_feature.definitions import Field
from flywheel_feature.frames import from_series, to_series

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
def test_values_and_nulls_survive_the_way_there_and_back(
    kind: T, values: Any, shown: Any, sliced: bool
) -> None:
    valid = np.array([True, False, True])
    series = to_series(Field("x", kind), values, valid)
    assert series.null_count() == 1
    if shown is not None:
        assert series.to_list() == shown
    low = 1 if sliced else 0
    back, mask = from_series(series[low:], kind)
    assert mask.tolist() == valid[low:].tolist()
    assert back[mask].tolist() == values[low:][mask].tolist()


def test_not_a_number_is_no_value() -> None:
    values, mask = from_series(pl.Series("x", [1.0, float("nan"), None]), T.FLOAT64)
    assert mask.tolist() == [True, False, False]
    assert values.tolist() == [1.0, 0.0, 0.0]
