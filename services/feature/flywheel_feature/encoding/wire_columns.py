"""`types.v1.Column` messages to columns of values and back, by declared type."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.columns import from_lists, from_numpy, row_count, to_numpy
from flywheel_common.errors import InvalidArgument
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.encoding.frames import Columns
from flywheel_feature.encoding.row_checks import wrong_type
from flywheel_feature.encoding.row_encoding import DTYPES
from flywheel_protos.types.v1 import column_pb2

_WIDER = {
    (DataType.INT64, DataType.FLOAT64),
    (DataType.INT64, DataType.FLOAT32),
    (DataType.FLOAT32, DataType.FLOAT64),
    (DataType.FLOAT64, DataType.FLOAT32),
    (DataType.INT64, DataType.TIMESTAMP),
}


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_DATA_TYPES = frozenset(int(t) for t in DataType)


def micros(timestamp: Timestamp) -> int:
    return timestamp.seconds * 1_000_000 + timestamp.nanos // 1000


def to_timestamp(value: int) -> Timestamp:
    return Timestamp(seconds=value // 1_000_000, nanos=value % 1_000_000 * 1000)


def read_column(column: column_pb2.Column, field: Field, rows: int) -> tuple[Any, Any]:
    """Values and mask of a column that must be of a field's type. Raises InvalidArgument WRONG_TYPE or INVALID_COLUMN."""
    declared = field.data_type
    if column.data_type == 0:
        column.data_type = int(declared)  # type: ignore[assignment]
        column.vector_size = field.vector_size
    given = int(column.data_type)
    if given != int(declared):
        sent = DataType(given) if given in _DATA_TYPES else None
        if sent is None or (sent, declared) not in _WIDER:
            raise wrong_type(field, sent.name if sent else f"type {given}")
    if rows and row_count(column) == 0 and column.WhichOneof("values") is None and not column.offsets:
        raise InvalidArgument(
            f"Column {field.name!r} has no values.", reason="INVALID_COLUMN", column=field.name
        )
    values, valid = to_numpy(column, rows)
    if given != int(declared):
        values = values.astype(DTYPES[declared])
    if declared.is_vector and values.shape[1] != field.vector_size:
        raise wrong_type(field, f"a vector of {values.shape[1]} where {field.vector_size} are declared")
    return values, valid


def read_rows(table: column_pb2.Table, fields: Sequence[Field]) -> Columns:
    """Every field of a schema out of a table. Raises InvalidArgument PARTIAL_ROW, UNKNOWN_FIELD, WRONG_TYPE, INVALID_COLUMN."""
    by_name = {c.name: c for c in table.columns}
    if len(by_name) != len(table.columns):
        raise InvalidArgument("A column is there twice.", reason="INVALID_COLUMN")
    missing = [f.name for f in fields if f.name not in by_name]
    if missing:
        raise InvalidArgument(
            f"Columns {missing} are missing: rows are written whole; send null where there is no value.",
            reason="PARTIAL_ROW",
        )
    unknown = sorted(set(by_name) - {f.name for f in fields})
    if unknown:
        raise InvalidArgument(
            f"Columns {unknown} are not in the schema, which has: {', '.join(f.name for f in fields)}.",
            reason="UNKNOWN_FIELD",
        )
    return {f.name: read_column(by_name[f.name], f, table.row_count) for f in fields}


def row_total(table: column_pb2.Table) -> int:
    """Rows of a table; taken from its first column where the sender left row_count out."""
    return table.row_count or (row_count(table.columns[0]) if table.columns else 0)


def _mismatch(name: str, has: int, rows: int) -> InvalidArgument:
    return InvalidArgument(
        f"Column {name!r} has {has} rows, the request {rows}.", reason="ROW_COUNT_MISMATCH", column=name
    )


def _readable(value: Any, data_type: DataType) -> Any:
    if data_type == DataType.TIMESTAMP:
        return EPOCH + timedelta(microseconds=int(value))
    if data_type == DataType.TIMESTAMP_LIST:
        return [EPOCH + timedelta(microseconds=int(v)) for v in value]
    return value


def to_column(field: Field, values: Any, valid: Any) -> column_pb2.Column:
    if field.data_type.is_list:
        return from_lists(
            field.name, [v if ok else None for v, ok in zip(values, valid, strict=True)], int(field.data_type)
        )
    return from_numpy(field.name, values, valid, data_type=int(field.data_type))


def convert_duration(value: int) -> Duration | None:
    return Duration(seconds=value // 1_000_000, nanos=value % 1_000_000 * 1000) if value else None
