"""Conversion between frames, dicts and `types.v1.Table`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from flywheel.types import vector_size
from flywheel_common import columns, conversion
from flywheel_common.errors import InvalidColumn, WrongType
from flywheel_protos.types.v1 import column_pb2, value_pb2


def to_arrow(rows: Any) -> pa.Table:
    """A Polars or pandas frame, a dict name → values or a pyarrow table as a pyarrow table.

    Named index levels of a pandas frame become columns. Raises WrongType for a column of mixed types and
    InvalidColumn for two columns of one name.
    """
    if isinstance(rows, pa.Table):
        table = rows
    elif isinstance(rows, Mapping):
        table = pa.table({name: _array(name, values) for name, values in rows.items()})
    elif hasattr(rows, "to_arrow"):
        table = rows.to_arrow()
    else:
        named = [name for name in rows.index.names if name is not None]
        table = pa.Table.from_pandas(rows.reset_index(level=named), preserve_index=False)
    repeated = [name for name in table.column_names if table.column_names.count(name) > 1]
    if repeated:
        raise InvalidColumn(f"Two columns have the name {repeated[0]!r}.", column=repeated[0])
    return table


def to_table(rows: Any, schema: Mapping[str, int] | None = None) -> column_pb2.Table:
    """A Polars or pandas frame, a pyarrow table, or a dict name → values as packed columns.

    `schema` (name → data type) selects, orders and types the columns; without it the values decide the types.
    Naive times are UTC. Raises WrongType for a value that its data type does not hold exactly
    (`flywheel_common.conversion`), InvalidColumn for a column of the schema that the rows lack.
    """
    table = to_arrow(rows)
    names = list(schema) if schema else table.column_names
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise InvalidColumn(
            f"The rows have no column {missing[0]!r}; they have: {', '.join(table.column_names)}.",
            column=missing[0],
        )
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


def _array(name: str, values: Any) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise WrongType(
            f"Column {name!r} has values that are not of one type: {str(error)[:200]}.", column=name
        ) from error


def _column(name: str, data: pa.ChunkedArray, declared: int | None) -> column_pb2.Column:
    if declared is None:
        data_type, size = _type_of(name, data), 0
    else:
        data_type, size = int(declared), vector_size(declared)
    array = conversion.convert(data, data_type, vector_size=size, column=name)
    if data_type == value_pb2.DATA_TYPE_STRING:
        return columns.from_texts(name, array.to_pylist())
    if data_type == value_pb2.DATA_TYPE_BYTES:
        return columns.from_blobs(name, array.to_pylist())
    if data_type == value_pb2.DATA_TYPE_TIMESTAMP_LIST:
        array = array.cast(pa.large_list(pa.int64()))
    if data_type in columns.ELEMENT_OF:
        return columns.from_lists(name, array.to_pylist(), data_type)
    valid = np.asarray(array.is_valid())
    if data_type in columns.VECTORS:
        flat = array.values.fill_null(0).to_numpy()
        return columns.from_numpy(
            name, flat.reshape(len(array), array.type.list_size), valid, data_type=data_type
        )
    if data_type == value_pb2.DATA_TYPE_TIMESTAMP:
        array = array.cast(pa.int64())
    filler = False if data_type == value_pb2.DATA_TYPE_BOOL else 0
    values = array.fill_null(filler).to_numpy(zero_copy_only=False)
    return columns.from_numpy(name, values, valid, data_type=data_type)


def _type_of(name: str, data: pa.ChunkedArray) -> int:
    """The data type that the values have; INT64 for a column without any type."""
    if pa.types.is_null(data.type):
        return value_pb2.DATA_TYPE_INT64
    return conversion.data_type_of(data.type, name)
