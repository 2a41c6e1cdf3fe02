"""Every Arrow type as every declared type through pushes, online requests and spines: as tables read it.

`parquet_types.PARQUET` has the expected values, which test_parquet_types.py checks for tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flywheel.tables import to_table
from flywheel.types import vector
from flywheel_common.errors import InvalidArgument
from flywheel_feature.definitions.model import DataType, Field, ParquetSource
from flywheel_feature.encoding.wire_columns import read_request_column, read_rows
from tests.support.builders.both_paths import KEY, T0, TIME, BothPaths, LocalTables, plain_value
from tests.support.builders.parquet_types import PARQUET, VECTOR_SIZE

REFUSED = object()
WHOLE_FLOAT = "decimal256 beside a whole float"
"""Pushes and requests carry it as a float64, the nearest of which is whole."""


def field(kind: DataType) -> Field:
    return Field("x", kind, VECTOR_SIZE if kind.is_vector else 0)


def sdk_type(kind: DataType) -> int:
    return vector(VECTOR_SIZE, int(kind.element)) if kind.is_vector else int(kind)


def plain(kind: DataType, values: Any, valid: Any) -> list[Any]:
    is_valid = np.ones(len(values), np.bool_) if valid is None else valid
    return [plain_value(kind, v) if ok else None for v, ok in zip(values, is_valid, strict=True)]


def pushed(array: pa.Array, kind: DataType) -> Any:
    """The second value as the service reads it from a push with a schema."""
    try:
        table = to_table(pa.table({"x": array}), {"x": sdk_type(kind)})
        values, valid = read_rows(table, [field(kind)])["x"]
    except InvalidArgument:
        return REFUSED
    first, second = plain(kind, values, valid)
    assert first is None
    return second


def requested(array: pa.Array, kind: DataType) -> Any:
    """The second value as an online request reads it; the sent values decide the type."""
    try:
        (column,) = to_table(pa.table({"x": array})).columns
        values, valid = read_request_column(column, field(kind), 2)
    except InvalidArgument:
        return REFUSED
    first, second = plain(kind, values, valid)
    assert first is None
    return second


CASES = [stored for stored in PARQUET if stored != WHOLE_FLOAT]


@pytest.mark.parametrize("stored", CASES)
def test_pushes_with_a_schema_read_what_tables_read(stored: str) -> None:
    array, expected = PARQUET[stored]
    assert {kind: pushed(array, kind) for kind in DataType} == {
        kind: expected.get(kind, REFUSED) for kind in DataType
    }


@pytest.mark.parametrize("stored", CASES)
def test_online_requests_read_what_tables_read(stored: str) -> None:
    array, expected = PARQUET[stored]
    if stored == "NaN":
        # The client sends a null, which fits every type.
        expected = dict.fromkeys(DataType)
    assert {kind: requested(array, kind) for kind in DataType} == {
        kind: expected.get(kind, REFUSED) for kind in DataType
    }


@pytest.mark.parametrize("stored", PARQUET)
async def test_keys_of_a_spine_are_read_as_those_of_tables(tmp_path: Path, stored: str) -> None:
    array, expected = PARQUET[stored]
    tables = LocalTables(tmp_path / "bucket")
    for kind in (DataType.STRING, DataType.INT64):
        rows = pa.table({KEY: pa.array(["01"] if kind == DataType.STRING else [7]), TIME: [T0], "x": [1.0]})
        tables.write_arrow(f"{kind.name}/a.parquet", rows)
        both = BothPaths(tables, ParquetSource(f"s3://local/{kind.name}"), {"x": DataType.FLOAT64}, key=kind)
        uri = tables.bucket_uri(f"spine-{kind.name}.parquet")
        time = pa.array([T0.replace(month=6)], pa.timestamp("us", "UTC"))
        tables.write_arrow(f"spine-{kind.name}.parquet", pa.table({KEY: array[1:], "when": time}))
        if kind in expected and expected[kind] is not None:
            found = await both.joined(uri)
            known = expected[kind] in ("01", 7)
            assert found == [(expected[kind], 1.0 if known else None)]
        elif kind not in expected:
            with pytest.raises(InvalidArgument) as refused:
                await both.joined(uri)
            assert refused.value.reason == "WRONG_SPINE"
