"""Conversion between `types.v1.Column`, `Table` and numpy arrays.

Fixed-width values are packed little-endian (BOOL 1 byte, INT64/FLOAT64/TIMESTAMP 8, FLOAT32 4, vectors
`vector_size` times that). `validity` is a bitmap, least significant bit first; a set bit means that the row
has a value, an empty bitmap that all rows have one. Lengths are checked before memory is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel_common.arrays import Array, Ints, Mask
from flywheel_common.errors import InvalidColumn
from flywheel_protos.types.v1 import column_pb2, value_pb2

Column = column_pb2.Column
Table = column_pb2.Table

DTYPES: dict[int, np.dtype[Any]] = {
    value_pb2.DATA_TYPE_BOOL: np.dtype("?"),
    value_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    value_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    value_pb2.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    value_pb2.DATA_TYPE_TIMESTAMP: np.dtype("<i8"),
    value_pb2.DATA_TYPE_FLOAT32_VECTOR: np.dtype("<f4"),
    value_pb2.DATA_TYPE_FLOAT64_VECTOR: np.dtype("<f8"),
}
"""Element type of each fixed-width data type. TIMESTAMP is microseconds since 1970 UTC."""

_SCALARS = {
    data_type: DTYPES[data_type]
    for data_type in (
        value_pb2.DATA_TYPE_INT64,
        value_pb2.DATA_TYPE_FLOAT32,
        value_pb2.DATA_TYPE_FLOAT64,
        value_pb2.DATA_TYPE_TIMESTAMP,
    )
}
"""Data types whose packed values need no conversion."""

VECTORS = {value_pb2.DATA_TYPE_FLOAT32_VECTOR, value_pb2.DATA_TYPE_FLOAT64_VECTOR}
ELEMENT_OF: dict[int, Any] = {
    value_pb2.DATA_TYPE_BOOL_LIST: value_pb2.DATA_TYPE_BOOL,
    value_pb2.DATA_TYPE_INT64_LIST: value_pb2.DATA_TYPE_INT64,
    value_pb2.DATA_TYPE_FLOAT32_LIST: value_pb2.DATA_TYPE_FLOAT32,
    value_pb2.DATA_TYPE_FLOAT64_LIST: value_pb2.DATA_TYPE_FLOAT64,
    value_pb2.DATA_TYPE_STRING_LIST: value_pb2.DATA_TYPE_STRING,
    value_pb2.DATA_TYPE_TIMESTAMP_LIST: value_pb2.DATA_TYPE_TIMESTAMP,
}
"""Element data type of each list data type."""


def element_of(data_type: int) -> int:
    """The data type of the elements of a list or vector; a scalar data type itself."""
    if data_type == value_pb2.DATA_TYPE_FLOAT32_VECTOR:
        return value_pb2.DATA_TYPE_FLOAT32
    if data_type == value_pb2.DATA_TYPE_FLOAT64_VECTOR:
        return value_pb2.DATA_TYPE_FLOAT64
    return int(ELEMENT_OF.get(data_type, data_type))


def to_numpy(column: Column, rows: int | None = None) -> tuple[Array, Mask]:
    """The values of a column and its mask of valid rows (True = has a value).

    Values: [n] of the column's dtype; [n, vector_size] for vectors; [n] object of str, bytes or (for lists)
    arrays. Packed values are a read-only view of the message. Raises InvalidColumn when lengths contradict
    each other or `rows`.
    """
    kind = column.data_type
    if kind in ELEMENT_OF:
        values = _lists(column)
    elif kind == value_pb2.DATA_TYPE_STRING:
        values = _objects(column, "strings")
    elif kind == value_pb2.DATA_TYPE_BYTES:
        values = _objects(column, "blobs")
    elif kind in DTYPES:
        values = _fixed(column)
    else:
        raise _invalid(column, "its data_type is not set")
    if rows is not None and len(values) != rows:
        raise _invalid(column, f"it has {len(values)} rows where {rows} are expected")
    return values, valid_mask(column, len(values))


def all_to_numpy(columns: Sequence[Column], rows: int) -> list[tuple[Array, Mask]]:
    """`to_numpy` of every column. The masks are unpacked together, which takes half the time."""
    bitmap = (rows + 7) // 8
    validity = [column.validity or b"\xff" * bitmap for column in columns]
    if not rows or any(len(bits) != bitmap for bits in validity):
        return [to_numpy(column, rows) for column in columns]
    bits = np.frombuffer(b"".join(validity), np.uint8).reshape(len(columns), bitmap)
    masks = np.unpackbits(bits, axis=1, count=rows, bitorder="little").view(np.bool_)
    found = []
    for column, valid in zip(columns, masks, strict=True):
        dtype, packed = _SCALARS.get(column.data_type), column.packed
        if dtype is not None and len(packed) == rows * dtype.itemsize:
            found.append((np.frombuffer(packed, dtype), valid))
        else:
            found.append(to_numpy(column, rows))
    return found


def valid_mask(column: Column, rows: int) -> Mask:
    """The mask of valid rows: [rows] bool, True = the row has a value. Raises InvalidColumn."""
    if not column.validity:
        return np.ones(rows, dtype=np.bool_)
    if len(column.validity) != (rows + 7) // 8:
        raise _invalid(
            column, f"validity has {len(column.validity)} bytes where {rows} rows need {(rows + 7) // 8}"
        )
    bits = np.unpackbits(np.frombuffer(column.validity, np.uint8), count=rows, bitorder="little")
    return bits.astype(np.bool_)


def pack_mask(valid: Mask) -> bytes:
    """The validity bitmap of a mask; empty when every row is valid."""
    return b"" if _all(valid) else np.packbits(valid, bitorder="little").tobytes()


def _all(valid: Mask) -> bool:
    # Of few rows, numpy's reduction takes ten times as long.
    return 0 not in valid.tobytes()


def from_numpy(
    name: str, values: Array, valid: Mask | None = None, *, data_type: int | None = None
) -> Column:
    """A packed column of [n] bool, integer, float32, float64 or datetime64, or of [n, k] float vectors.

    `data_type` overrides the type that the dtype implies. Arrays of str or bytes objects become STRING or
    BYTES.
    """
    values = np.asarray(values)
    if values.dtype.kind in "OU":
        if data_type == value_pb2.DATA_TYPE_BYTES or (
            data_type is None and any(isinstance(v, bytes) for v in values)
        ):
            return from_blobs(name, list(values), valid)
        return from_texts(name, list(values), valid)
    if values.dtype.kind == "M":
        values = values.astype("datetime64[us]").astype(np.int64)
        data_type = data_type or value_pb2.DATA_TYPE_TIMESTAMP
    kind = data_type or _type_of(values)
    validity = b"" if valid is None else pack_mask(np.asarray(valid, np.bool_))
    if valid is not None and validity:
        keep = valid if values.ndim == 1 else valid[:, None]
        values = np.where(keep, values, values.dtype.type(0))
    packed = np.ascontiguousarray(values, dtype=DTYPES[kind]).tobytes()
    column = Column(name=name, data_type=kind, packed=packed, validity=validity)  # type: ignore[arg-type]
    if kind in VECTORS:
        column.vector_size = values.shape[1]
    return column


def from_texts(name: str, texts: Sequence[str | None], valid: Mask | None = None) -> Column:
    """A STRING column; None (or an invalid row) is null."""
    mask = (
        np.array([t is not None for t in texts], np.bool_) if valid is None else np.asarray(valid, np.bool_)
    )
    strings = [str(t) if ok else "" for t, ok in zip(texts, mask, strict=True)]
    return Column(
        name=name,
        data_type=value_pb2.DATA_TYPE_STRING,
        strings=column_pb2.StringValues(values=strings),
        validity=pack_mask(mask),
    )


def from_blobs(name: str, blobs: Sequence[bytes | None], valid: Mask | None = None) -> Column:
    """A BYTES column; None (or an invalid row) is null."""
    mask = (
        np.array([b is not None for b in blobs], np.bool_) if valid is None else np.asarray(valid, np.bool_)
    )
    values = [b if ok and b is not None else b"" for b, ok in zip(blobs, mask, strict=True)]
    return Column(
        name=name,
        data_type=value_pb2.DATA_TYPE_BYTES,
        blobs=column_pb2.BytesValues(values=values),
        validity=pack_mask(mask),
    )


def from_lists(name: str, rows: Sequence[Sequence[Any] | Array | None], data_type: int) -> Column:
    """A column of lists of varying length. None is null; elements are not null."""
    element = ELEMENT_OF[data_type]
    mask = np.array([row is not None for row in rows], np.bool_)
    lengths = [0 if row is None else len(row) for row in rows]
    offsets = np.zeros(len(rows) + 1, "<u4")
    np.cumsum(lengths, out=offsets[1:])
    column = Column(name=name, offsets=offsets.tobytes(), validity=pack_mask(mask))
    column.data_type = data_type  # type: ignore[assignment]
    if element == value_pb2.DATA_TYPE_STRING:
        column.strings.values.extend(str(v) for row in rows if row is not None for v in row)
    else:
        flat = [np.asarray(row, DTYPES[element]) for row in rows if row is not None and len(row)]
        column.packed = np.concatenate(flat).tobytes() if flat else b""
    return column


def row_count(column: Column) -> int:
    """The number of rows of a column, from its lengths only. Raises InvalidColumn."""
    if column.data_type in ELEMENT_OF:
        return max(0, len(column.offsets) // 4 - 1)
    which = column.WhichOneof("values")
    if which == "packed":
        dtype = DTYPES.get(column.data_type)
        if dtype is None:
            raise _invalid(column, "values of its data_type cannot be packed")
        width = dtype.itemsize * (_vector_size(column) if column.data_type in VECTORS else 1)
        if len(column.packed) % width:
            raise _invalid(column, f"packed has {len(column.packed)} bytes, not a multiple of {width}")
        return len(column.packed) // width
    if which is None:
        return 0
    return len(getattr(column, which).values) // (_vector_size(column) if column.data_type in VECTORS else 1)


def from_table(table: Table) -> dict[str, tuple[Array, Mask]]:
    """name → (values, valid), in order. Raises InvalidColumn for wrong lengths and duplicate or empty
    names."""
    found: dict[str, tuple[Array, Mask]] = {}
    for column in table.columns:
        if not column.name or column.name in found:
            raise _invalid(column, "its name is empty or appears twice")
        found[column.name] = to_numpy(column, table.row_count)
    return found


def take_rows(table: Table, rows: Ints) -> Table:
    """The rows at these indices, in this order. Raises InvalidArgument INVALID_COLUMN like `from_table`."""
    found = from_table(table)
    taken = []
    for column in table.columns:
        values, valid = found[column.name]
        values, valid = values[rows], valid[rows]
        if column.data_type in ELEMENT_OF:
            lists = [value if ok else None for value, ok in zip(values, valid, strict=True)]
            taken.append(from_lists(column.name, lists, column.data_type))
        else:
            taken.append(from_numpy(column.name, values, valid, data_type=column.data_type))
    return Table(row_count=len(rows), columns=taken)


def check_table(table: Table, rows: int) -> None:
    """Raises InvalidColumn where `from_table` would, or where a length is not `rows`; does not build
    lists."""
    names = set()
    for column in table.columns:
        if not column.name or column.name in names:
            raise _invalid(column, "its name is empty or appears twice")
        names.add(column.name)
        if column.data_type not in ELEMENT_OF:
            to_numpy(column, rows)
            continue
        bounds, _ = _list_elements(column)
        if len(bounds) - 1 != rows:
            raise _invalid(column, f"it has {len(bounds) - 1} rows where {rows} are expected")
        valid_mask(column, rows)


def to_table(columns: Sequence[Column]) -> Table:
    """A table of columns of equal length. Raises InvalidColumn."""
    counts = {row_count(column) for column in columns}
    if len(counts) > 1:
        raise InvalidColumn(f"Columns differ in length: {sorted(counts)}.")
    return Table(row_count=counts.pop() if counts else 0, columns=columns)


def _vector_size(column: Column) -> int:
    if column.vector_size == 0:
        raise _invalid(column, "vector_size is 0")
    return column.vector_size


def _fixed(column: Column) -> Array:
    kind, dtype, which = column.data_type, DTYPES[column.data_type], column.WhichOneof("values")
    rows = row_count(column)
    if which == "packed":
        values: Array = np.frombuffer(column.packed, dtype)
        if kind == value_pb2.DATA_TYPE_BOOL:
            values = np.frombuffer(column.packed, np.uint8) != 0
    elif which == "ints" and kind not in VECTORS:
        values = np.array(column.ints.values, np.int64)
        values = values != 0 if kind == value_pb2.DATA_TYPE_BOOL else values.astype(dtype)
    elif which == "doubles" and dtype.kind == "f":
        values = np.array(column.doubles.values, np.float64).astype(dtype)
    elif which is None:
        values = np.empty(0, dtype)
    else:
        raise _invalid(column, f"{which} cannot hold values of its data_type")
    if kind in VECTORS:
        size = _vector_size(column)
        if len(values) != rows * size:
            raise _invalid(column, f"{len(values)} elements are not a multiple of vector_size {size}")
        values = values.reshape(rows, size)
    return values


def _objects(column: Column, field: str) -> Array:
    which = column.WhichOneof("values")
    if which not in (field, None):
        raise _invalid(column, f"{which} cannot hold values of its data_type: use {field}")
    source = getattr(column, field).values
    values = np.empty(len(source), dtype=object)
    values[:] = list(source)
    return values


def _lists(column: Column) -> Array:
    offsets, flat = _list_elements(column)
    rows = np.empty(len(offsets) - 1, dtype=object)
    for i in range(len(rows)):
        rows[i] = flat[offsets[i] : offsets[i + 1]]
    return rows


def _list_elements(column: Column) -> tuple[Array, Array]:
    """The offsets of the rows, [n + 1], and the elements of all rows."""
    if len(column.offsets) % 4 or not column.offsets:
        raise _invalid(column, "offsets must be n + 1 little-endian uint32")
    offsets = np.frombuffer(column.offsets, "<u4").astype(np.int64)
    flat_column = Column(name=column.name, data_type=ELEMENT_OF[column.data_type])
    which = column.WhichOneof("values")
    if which is not None:
        field = getattr(column, which)
        if which == "packed":
            flat_column.packed = field
        else:
            getattr(flat_column, which).CopyFrom(field)
    flat, _ = to_numpy(flat_column)
    if offsets[0] != 0 or offsets[-1] != len(flat) or bool((np.diff(offsets) < 0).any()):
        raise _invalid(column, f"offsets must rise from 0 to the {len(flat)} elements")
    return offsets, flat


def _type_of(values: Array) -> int:
    if values.ndim == 2:
        return (
            value_pb2.DATA_TYPE_FLOAT32_VECTOR
            if values.dtype == np.float32
            else value_pb2.DATA_TYPE_FLOAT64_VECTOR
        )
    if values.ndim != 1:
        raise ValueError(f"a column has 1 or 2 dimensions, not {values.ndim}")
    if values.dtype.kind == "b":
        return value_pb2.DATA_TYPE_BOOL
    if values.dtype.kind in "iu":
        return value_pb2.DATA_TYPE_INT64
    if values.dtype == np.float32:
        return value_pb2.DATA_TYPE_FLOAT32
    if values.dtype.kind == "f":
        return value_pb2.DATA_TYPE_FLOAT64
    raise ValueError(f"no data type for {values.dtype}")


def _invalid(column: Column, why: str) -> InvalidColumn:
    return InvalidColumn(f"Column {column.name!r} is malformed: {why}.", column=column.name)
