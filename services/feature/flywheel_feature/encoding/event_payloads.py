"""Conversion between rows of a stream source and flywheel.events.v1 messages on its Kafka topic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel_common.errors import WrongType
from flywheel_common.kafka.envelope import build_event, payload_of
from flywheel_common.kafka.errors import MalformedEvent
from flywheel_common.value import coerce, from_micros
from flywheel_feature.definitions.model import DataType, Field, Source
from flywheel_feature.encoding.frames import Columns, nan_to_null
from flywheel_feature.encoding.row_checks import check_values, required, wrong_type
from flywheel_feature.encoding.row_encoding import DTYPES
from flywheel_feature.encoding.wire_columns import micros, read_rows, to_column
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.source_pb2 import SourceEvent, SourceEventBatch
from flywheel_protos.types.v1 import column_pb2, value_pb2

PRODUCER = "flywheel-feature"
_SINGLE = SourceEvent.DESCRIPTOR.full_name
_FLOATING = frozenset({None, "double_value"})
_USUAL_KINDS = {
    DataType.BOOL: frozenset({None, "bool_value"}),
    DataType.INT64: frozenset({None, "int64_value"}),
    DataType.FLOAT32: _FLOATING,
    DataType.FLOAT64: _FLOATING,
    DataType.STRING: frozenset({None, "string_value"}),
    DataType.BYTES: frozenset({None, "bytes_value"}),
    DataType.TIMESTAMP: frozenset({None, "timestamp_value"}),
}
"""Kinds of Value (None: null) that a column of a data type usually has; such a column is read in one step."""


def to_event(source: Source, columns: Columns, event_ids: list[str], partition: int) -> Event:
    """One event with all rows; its event time is that of the newest row."""
    rows = len(event_ids)
    table = column_pb2.Table(row_count=rows, columns=[to_column(f, *columns[f.name]) for f in source.schema])
    newest = int(columns[source.timestamp_field][0].max())
    return build_event(
        SourceEventBatch(source=source.name, rows=table, event_ids=event_ids),
        source=PRODUCER,
        key=str(partition),
        event_time=from_micros(newest),
    )


def encode_event(source: Source, columns: Columns, event_ids: list[str], partition: int) -> bytes:
    """`to_event`, serialized."""
    return to_event(source, columns, event_ids, partition).SerializeToString()


def from_event(event: Event, source: Source) -> tuple[Columns, list[str]]:
    """The rows of an event and their ids.

    Raises InvalidArgument for a poison event: its rows do not fit the schema.
    """
    payload = _payload(event)
    if isinstance(payload, SourceEvent):
        columns = _single(payload, source)
        ids = [event.id]
    else:
        columns = _with_missing_fields(payload, source)
        ids = list(payload.event_ids)
        if len(ids) != payload.rows.row_count or not all(ids):
            raise MalformedEvent("A batch needs one event id per row.")
    for field in source.schema:
        check_values(field, *columns[field.name])
    required(columns, [source.timestamp_field], "every event needs a time")
    return columns, ids


def from_single_events(events: Sequence[Event], source: Source) -> tuple[Columns, list[str]]:
    """The rows of many events of one row each, with the same result as `from_event` for each of them.

    Raises InvalidArgument when one of them does not fit the schema.
    """
    # Reading the map field of a message takes as long as a lookup in the map.
    given = [payload_of(event, SourceEvent).fields for event in events]
    columns: Columns = {}
    for field in source.schema:
        name = field.name
        columns[name] = _many_values(field, [fields.get(name) for fields in given])
        check_values(field, *columns[name])
    required(columns, [source.timestamp_field], "every event needs a time")
    return columns, [event.id for event in events]


def carries_one(event: Event) -> bool:
    """Whether an event is a SourceEvent, which holds one row."""
    return event.type == _SINGLE


def _payload(event: Event) -> SourceEvent | SourceEventBatch:
    if carries_one(event):
        return payload_of(event, SourceEvent)
    return payload_of(event, SourceEventBatch)


def _with_missing_fields(payload: SourceEventBatch, source: Source) -> Columns:
    # A field that was added to the schema later is null in older events; a field that was removed is ignored.
    names = {f.name for f in source.schema}
    table = column_pb2.Table(
        row_count=payload.rows.row_count, columns=[c for c in payload.rows.columns if c.name in names]
    )
    given = {c.name for c in table.columns}
    columns = read_rows(table, [f for f in source.schema if f.name in given])
    for field in source.schema:
        if field.name not in given:
            columns[field.name] = _nulls(field, table.row_count)
    return columns


def _nulls(field: Field, rows: int) -> tuple[Any, Any]:
    kind = field.data_type
    if kind.is_list or kind in (DataType.STRING, DataType.BYTES):
        values = np.empty(rows, dtype=object)
        values[:] = [b"" if kind == DataType.BYTES else "" if kind == DataType.STRING else ()] * rows
    else:
        values = np.zeros((rows, field.vector_size) if kind.is_vector else rows, DTYPES[kind.element])
    return values, np.zeros(rows, np.bool_)


def _single(payload: SourceEvent, source: Source) -> Columns:
    columns: Columns = {}
    for field in source.schema:
        found = payload.fields.get(field.name)
        columns[field.name] = _nulls(field, 1) if found is None else _one_value(field, found)
    return columns


def _many_values(field: Field, cells: Sequence[value_pb2.Value | None]) -> tuple[Any, Any]:
    kinds = [None if cell is None else cell.WhichOneof("kind") for cell in cells]
    if not set(kinds) <= _USUAL_KINDS.get(field.data_type, frozenset()):
        single = [_nulls(field, 1) if cell is None else _one_value(field, cell) for cell in cells]
        return np.concatenate([v for v, _ in single]), np.concatenate([valid for _, valid in single])
    present = [(cell, kind) for cell, kind in zip(cells, kinds, strict=True) if kind is not None]
    values = [getattr(cell, kind) for cell, kind in present]
    if field.data_type == DataType.TIMESTAMP:
        values = [micros(time) for time in values]
    packed, valid = _nulls(field, len(cells))
    valid[:] = [kind is not None for kind in kinds]
    try:
        packed[valid] = values
    except OverflowError:
        raise _too_large(field) from None
    return nan_to_null(packed, valid) if packed.dtype.kind == "f" else (packed, valid)


def _one_value(field: Field, cell: value_pb2.Value) -> tuple[Any, Any]:
    """The value in an array of one, converted by flywheel_common.value. Raises WrongType."""
    kind = field.data_type
    if cell.WhichOneof("kind") == "timestamp_value" and kind == DataType.TIMESTAMP:
        # A datetime cannot hold every year.
        value: Any = micros(cell.timestamp_value)
    else:
        value = coerce(cell, int(kind), f"Field {field.name!r}")
    if value is None:
        return _nulls(field, 1)
    if kind.is_vector and len(value) != field.vector_size:
        raise wrong_type(field, f"a vector of {len(value)} where {field.vector_size} are declared")
    if kind.is_list or kind in (DataType.STRING, DataType.BYTES):
        values = np.empty(1, dtype=object)
        values[0] = value
    else:
        try:
            values = np.array([value], DTYPES[kind.element])
        except OverflowError:
            raise _too_large(field) from None
    return values, np.ones(1, np.bool_)


def _too_large(field: Field) -> WrongType:
    return wrong_type(field, "a number that does not fit into 64 bits")
