"""Polars frames and plain dicts as `types.v1.Table`, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from flywheel_common import columns
from flywheel_common.value import micros
from flywheel_protos.types.v1 import column_pb2, value_pb2


def to_table(rows: Any, schema: Mapping[str, int] | None = None) -> column_pb2.Table:
    """A Polars or pandas frame, a pyarrow table, or a dict name → values as packed columns.

    `schema` (name → data type) selects, orders and types the columns; without it types follow from the values.
    """
    table = _arrow(rows)
    names = list(schema) if schema else table.column_names
    return columns.to_table(
        [_column(name, table.column(name), schema[name] if schema else None) for name in names]
    )


def to_dict(table: column_pb2.Table) -> dict[str, list[Any]]:
    """name → Python values, None for null; timestamps as integer microseconds."""
    found = columns.from_table(table)
    return {
        name: [_plain(v) if ok else None for v, ok in zip(values, valid, strict=True)]
        for name, (values, valid) in found.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _arrow(rows: Any) -> pa.Table:
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, Mapping):
        return pa.table({name: _values(values) for name, values in rows.items()})
    if hasattr(rows, "to_arrow"):
        return rows.to_arrow()
    return pa.Table.from_pandas(rows, preserve_index=False)


def _values(values: Sequence[Any]) -> Any:
    if len(values) and isinstance(values[0], datetime):
        return pa.array([None if v is None else micros(v) for v in values]).cast(pa.timestamp("us"))
    return values


def _column(name: str, data: pa.ChunkedArray, kind: int | None) -> column_pb2.Column:
    data = data.combine_chunks()
    valid = np.asarray(data.is_valid())
    arrow = data.type
    if kind == value_pb2.DATA_TYPE_STRING or (
        kind is None
        and (pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow))
    ):
        return columns.from_texts(name, data.to_pylist())
    if pa.types.is_timestamp(arrow):
        data, kind = (
            data.cast(pa.timestamp("us")).cast(pa.int64()),
            kind or value_pb2.DATA_TYPE_TIMESTAMP,
        )
    if kind is None:
        kind = {
            "bool": value_pb2.DATA_TYPE_BOOL,
            "float": value_pb2.DATA_TYPE_FLOAT32,
            "double": value_pb2.DATA_TYPE_FLOAT64,
        }.get(str(arrow), value_pb2.DATA_TYPE_INT64)
    filler = False if pa.types.is_boolean(arrow) else 0
    values = data.fill_null(filler).to_numpy(zero_copy_only=False)
    return columns.from_numpy(name, values.astype(columns.DTYPES[kind]), valid, data_type=kind)
