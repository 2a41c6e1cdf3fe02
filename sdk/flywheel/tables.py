"""Conversion between frames, dicts and `types.v1.Table`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from flywheel.types import vector_size
from flywheel_common import columns
from flywheel_common.value import micros
from flywheel_protos.types.v1 import column_pb2, value_pb2


def to_arrow(rows: Any) -> pa.Table:
    """A Polars or pandas frame, a dict name → values or a pyarrow table as a pyarrow table."""
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, Mapping):
        return pa.table({name: _values(values) for name, values in rows.items()})
    if hasattr(rows, "to_arrow"):
        return rows.to_arrow()
    return pa.Table.from_pandas(rows, preserve_index=False)


def to_table(rows: Any, schema: Mapping[str, int] | None = None) -> column_pb2.Table:
    """A Polars or pandas frame, a pyarrow table, or a dict name → values as packed columns.

    `schema` (name → data type) selects, orders and types the columns; without it the values decide the types.
    """
    table = to_arrow(rows)
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


def _values(values: Sequence[Any]) -> Any:
    if len(values) and isinstance(values[0], datetime):
        return pa.array([None if v is None else micros(v) for v in values]).cast(pa.timestamp("us"))
    return values


def _column(name: str, data: pa.ChunkedArray, kind: int | None) -> column_pb2.Column:
    data = data.combine_chunks()
    size = vector_size(kind) if kind is not None else 0
    kind = int(kind) if kind is not None else _kind_of(data.type)
    if kind == value_pb2.DATA_TYPE_STRING:
        return columns.from_texts(name, data.to_pylist())
    if kind == value_pb2.DATA_TYPE_BYTES:
        return columns.from_blobs(name, data.to_pylist())
    if kind in columns.ELEMENT_OF:
        return columns.from_lists(name, [_elements(row) for row in data.to_pylist()], kind)
    valid = np.asarray(data.is_valid())
    if pa.types.is_null(data.type):
        data = pa.nulls(len(data), pa.int64())
    if kind in columns.VECTORS:
        return columns.from_numpy(name, _vectors(name, data.to_pylist(), kind, size), valid, data_type=kind)
    if pa.types.is_timestamp(data.type):
        data = data.cast(pa.timestamp("us")).cast(pa.int64())
    filler = False if pa.types.is_boolean(data.type) else 0
    values = data.fill_null(filler).to_numpy(zero_copy_only=False)
    return columns.from_numpy(name, values.astype(columns.DTYPES[kind]), valid, data_type=kind)


def _kind_of(arrow: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(arrow):
        double = arrow.value_type == pa.float64()
        return value_pb2.DATA_TYPE_FLOAT64_VECTOR if double else value_pb2.DATA_TYPE_FLOAT32_VECTOR
    if pa.types.is_list(arrow) or pa.types.is_large_list(arrow):
        element = _kind_of(arrow.value_type)
        return next(k for k, e in columns.ELEMENT_OF.items() if e == element)
    if pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow):
        return value_pb2.DATA_TYPE_STRING
    if pa.types.is_binary(arrow) or pa.types.is_large_binary(arrow) or pa.types.is_binary_view(arrow):
        return value_pb2.DATA_TYPE_BYTES
    if pa.types.is_timestamp(arrow):
        return value_pb2.DATA_TYPE_TIMESTAMP
    return {
        "bool": value_pb2.DATA_TYPE_BOOL,
        "float": value_pb2.DATA_TYPE_FLOAT32,
        "double": value_pb2.DATA_TYPE_FLOAT64,
    }.get(str(arrow), value_pb2.DATA_TYPE_INT64)


def _elements(row: list[Any] | None) -> list[Any] | None:
    if row is None:
        return None
    return [micros(v if v.tzinfo else v.replace(tzinfo=UTC)) if isinstance(v, datetime) else v for v in row]


def _vectors(name: str, rows: list[list[float] | None], kind: int, declared: int) -> np.ndarray:
    """[n, size] with zeros where a row is null. Raises ValueError when rows differ in size."""
    sizes = {len(row) for row in rows if row is not None} | ({declared} if declared else set())
    if len(sizes) > 1:
        raise ValueError(
            f"column {name!r} has vectors of {sorted(sizes)} elements; all must have the same size"
        )
    size = sizes.pop() if sizes else 1
    filled = [row if row is not None else [0.0] * size for row in rows]
    return np.array(filled, columns.DTYPES[kind]).reshape(len(rows), size)
