"""`types.v1.Column` messages to typed columns and back, checked against the declared fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.columns import from_lists, from_numpy, row_count, to_numpy
from flywheel_common.conversion import convert
from flywheel_common.errors import InvalidColumn
from flywheel_common.event_time import unset_time
from flywheel_feature.definitions.errors import UnknownField
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.encoding.errors import PartialRow, RowCountMismatch
from flywheel_feature.encoding.frames import Columns, nan_to_null
from flywheel_feature.encoding.row_checks import wrong_type
from flywheel_feature.encoding.row_encoding import DTYPES, WIDE
from flywheel_protos.types.v1 import column_pb2

_NUMBERS = frozenset({DataType.INT64, DataType.FLOAT32, DataType.FLOAT64})
"""Types that are accepted for one another where flywheel_common.conversion accepts the values."""
_FLOATS = frozenset({DataType.FLOAT32, DataType.FLOAT64})
_TEXT = (0, int(DataType.STRING))
_DATA_TYPES = frozenset(int(t) for t in DataType)


def micros(timestamp: Timestamp) -> int:
    """Microseconds since 1970 UTC."""
    return timestamp.seconds * 1_000_000 + timestamp.nanos // 1000


def micros_if_set(message: Message, name: str) -> int | None:
    """Microseconds since 1970 UTC of a Timestamp field, None if the message lacks it.

    Raises EventTimeOutOfRange for 1970-01-01, the value of a Timestamp that was never set.
    """
    if not message.HasField(name):
        return None
    value = micros(getattr(message, name))
    if value == 0:
        raise unset_time(name)
    return value


def to_timestamp(value: int) -> Timestamp:
    """A Timestamp from microseconds since 1970 UTC."""
    return Timestamp(seconds=value // 1_000_000, nanos=value % 1_000_000 * 1000)


def to_duration(value: int) -> Duration | None:
    """A Duration from microseconds; None for 0, which leaves the field unset."""
    return Duration(seconds=value // 1_000_000, nanos=value % 1_000_000 * 1000) if value else None


def row_total(table: column_pb2.Table) -> int:
    """Rows of a table; those of its first column if the sender left row_count out."""
    return table.row_count or (row_count(table.columns[0]) if table.columns else 0)


def read_column(column: column_pb2.Column, field: Field, rows: int) -> tuple[Any, Any]:
    """Values and mask of a column, converted to the type of its field; NaN is null.

    Raises WrongType or InvalidColumn.
    """
    declared = field.data_type
    if column.data_type == 0:
        column.data_type = int(declared)  # type: ignore[assignment]
        column.vector_size = field.vector_size
    given = int(column.data_type)
    if given != int(declared):
        sent = DataType(given) if given in _DATA_TYPES else None
        if sent is None or not {sent, declared} <= _NUMBERS:
            raise wrong_type(field, sent.name if sent else f"type {given}")
    if rows and column.WhichOneof("values") is None and not column.offsets:
        raise InvalidColumn(f"Column {field.name!r} has no values.", column=field.name)
    values, valid = to_numpy(column, rows)
    if given != int(declared):
        array = convert(pa.array(values, mask=~valid), int(declared), column=field.name)
        values, valid = np.asarray(array.fill_null(0)), np.asarray(array.is_valid())
    elif declared in _FLOATS:
        values, valid = nan_to_null(values, valid)
    if declared.is_vector and values.shape[1] != field.vector_size:
        raise wrong_type(field, f"a vector of {values.shape[1]} where {field.vector_size} are declared")
    return values, valid


def read_request_column(column: column_pb2.Column, field: Field, rows: int) -> tuple[Any, Any | None]:
    """Values of a column of an online request, and the mask of values that are not null (None: all of them).

    Raises RowCountMismatch, WrongType or InvalidColumn.
    """
    packed = column.packed
    if (
        len(packed) == 8 * rows
        and int(column.data_type) == int(field.data_type)
        and field.data_type in WIDE
        and not column.validity
    ):
        # The usual column: numbers of eight bytes without nulls.
        values = np.frombuffer(packed, DTYPES[field.data_type])
        if field.data_type != DataType.FLOAT64 or not np.isnan(values).any():
            return values, None
    count = row_count(column)
    if count != rows:
        raise _mismatch(field, count, rows)
    values, valid = read_column(column, field, rows)
    return values, None if valid.all() else valid


def read_texts(column: column_pb2.Column, field: Field, rows: int) -> list[str]:
    """The texts of a column for which `holds_texts` is true. Raises RowCountMismatch."""
    texts = list(column.strings.values)
    if len(texts) != rows:
        raise _mismatch(field, len(texts), rows)
    return texts


def holds_texts(column: column_pb2.Column, field: Field) -> bool:
    """Whether a column consists of texts without nulls, as its field declares."""
    return (
        field.data_type == DataType.STRING
        and column.data_type in _TEXT
        and not column.validity
        and column.HasField("strings")
    )


def _mismatch(field: Field, count: int, rows: int) -> RowCountMismatch:
    return RowCountMismatch(
        f"Column {field.name!r} has {count} rows, but the request has {rows}.", column=field.name
    )


def read_rows(table: column_pb2.Table, fields: Sequence[Field]) -> Columns:
    """The columns of a table that must have every field of a schema and no other.

    Raises PartialRow, UnknownField, WrongType or InvalidColumn.
    """
    by_name = {c.name: c for c in table.columns}
    if len(by_name) != len(table.columns):
        raise InvalidColumn("Two columns have the same name.")
    missing = [f.name for f in fields if f.name not in by_name]
    if missing:
        raise PartialRow(
            f"Columns {missing} are missing: send every field; use null where there is no value."
        )
    unknown = sorted(set(by_name) - {f.name for f in fields})
    if unknown:
        names = ", ".join(f.name for f in fields)
        raise UnknownField(f"Columns {unknown} are not in the schema, which has: {names}.")
    return {f.name: read_column(by_name[f.name], f, table.row_count) for f in fields}


def to_column(field: Field, values: Any, valid: Any) -> column_pb2.Column:
    """A Column message of a field's values; rows that are not valid are null."""
    if field.data_type.is_list:
        return from_lists(
            field.name, [v if ok else None for v, ok in zip(values, valid, strict=True)], int(field.data_type)
        )
    return from_numpy(field.name, values, valid, data_type=int(field.data_type))
