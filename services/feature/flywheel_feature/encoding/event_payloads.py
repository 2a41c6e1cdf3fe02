"""Rows of a stream source ↔ flywheel.events.v1 on its Kafka topic."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.errors import FlywheelError, InvalidArgument
from flywheel_common.kafka.envelope import build_event, payload_of
from flywheel_common.value import to_python
from flywheel_feature.definitions.model import DataType, Field, Source
from flywheel_feature.encoding.frames import Columns
from flywheel_feature.encoding.row_checks import check_values, required
from flywheel_feature.encoding.row_encoding import DTYPES
from flywheel_feature.encoding.wire_columns import read_rows, to_column
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.source_pb2 import SourceEvent, SourceEventBatch
from flywheel_protos.types.v1 import column_pb2, value_pb2

PRODUCER = "flywheel-feature"
_SINGLE = SourceEvent.DESCRIPTOR.full_name
_NUMBER = frozenset({None, "double_value", "int64_value"})
_USUAL = {
    DataType.BOOL: frozenset({None, "bool_value"}),
    DataType.INT64: frozenset({None, "int64_value"}),
    DataType.FLOAT32: _NUMBER,
    DataType.FLOAT64: _NUMBER,
    DataType.STRING: frozenset({None, "string_value"}),
    DataType.BYTES: frozenset({None, "bytes_value"}),
    DataType.TIMESTAMP: frozenset({None, "timestamp_value"}),
}
"""The kinds of Value (None: null) that a type's values come in: such a column is read without a look at each value's own type."""


def to_event(source: Source, columns: Columns, event_ids: list[str], partition: int) -> Event:
    """One event with all rows; its time is the newest row's."""
    rows = len(event_ids)
    table = column_pb2.Table(row_count=rows, columns=[to_column(f, *columns[f.name]) for f in source.schema])
    newest = int(columns[source.timestamp_field][0].max())
    return build_event(
        SourceEventBatch(source=source.name, rows=table, event_ids=event_ids),
        source=PRODUCER,
        key=str(partition),
        event_time=datetime.fromtimestamp(newest / 1e6, UTC),
    )


def source_name(event: Event) -> str:
    """The source whose rows an event carries. Raises InvalidArgument for an event that carries none."""
    return _payload(event).source


def from_event(event: Event, source: Source) -> tuple[Columns, list[str]]:
    """Rows and their ids. Raises InvalidArgument when they do not fit the source's schema: such an event is poison."""
    payload = _payload(event)
    if isinstance(payload, SourceEvent):
        columns = _single(payload, source)
        ids = [event.id]
    else:
        columns = _with_absent_fields(payload, source)
        ids = list(payload.event_ids)
        if len(ids) != payload.rows.row_count or not all(ids):
            raise InvalidArgument("A batch needs one event id per row.", reason="MALFORMED_EVENT")
    for field in source.schema:
        check_values(field, *columns[field.name])
    required(columns, [source.timestamp_field], "every event has a time")
    return columns, ids


def from_single_events(events: Sequence[Event], source: Source) -> tuple[Columns, list[str]]:
    """Rows of many events that carry one each, as `from_event` reads them one by one; raises InvalidArgument when any does not fit."""
    # Asking a message for its map costs as much as a look-up in it.
    given = [payload_of(event, SourceEvent).fields for event in events]
    columns: Columns = {}
    for field in source.schema:
        name = field.name
        columns[name] = _many_values(field, [fields.get(name) for fields in given])
        check_values(field, *columns[name])
    required(columns, [source.timestamp_field], "every event has a time")
    return columns, [event.id for event in events]


def carries_one(event: Event) -> bool:
    """Whether an event is a SourceEvent: one row."""
    return event.type == _SINGLE


def _payload(event: Event) -> SourceEvent | SourceEventBatch:
    if carries_one(event):
        return payload_of(event, SourceEvent)
    return payload_of(event, SourceEventBatch)


def _with_absent_fields(payload: SourceEventBatch, source: Source) -> Columns:
    # A field that the schema got since is null in older events; one that it lost is ignored.
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
        value = _readable(payload.fields[field.name]) if field.name in payload.fields else None
        if value is None:
            columns[field.name] = _nulls(field, 1)
            continue
        columns[field.name] = _one_value(field, value)
    return columns


def _readable(value: value_pb2.Value) -> Any:
    """A Python value; a timestamp as whole microseconds, whatever its year."""
    if value.WhichOneof("kind") == "timestamp_value":
        return _micros(value.timestamp_value)
    return to_python(value)


def _micros(time: Timestamp) -> int:
    return time.seconds * 1_000_000 + time.nanos // 1000


def _many_values(field: Field, cells: Sequence[value_pb2.Value | None]) -> tuple[Any, Any]:
    kinds = [None if cell is None else cell.WhichOneof("kind") for cell in cells]
    if not set(kinds) <= _USUAL.get(field.data_type, frozenset()):
        alone = [
            _nulls(field, 1) if cell is None or kind is None else _one_value(field, _readable(cell))
            for cell, kind in zip(cells, kinds, strict=True)
        ]
        return np.concatenate([values for values, _ in alone]), np.concatenate([there for _, there in alone])
    present = [(cell, kind) for cell, kind in zip(cells, kinds, strict=True) if kind is not None]
    values = [getattr(cell, kind) for cell, kind in present]
    if field.data_type == DataType.TIMESTAMP:
        values = [_micros(time) for time in values]
    packed, there = _nulls(field, len(cells))
    there[:] = [kind is not None for kind in kinds]
    try:
        packed[there] = values
    except OverflowError:
        raise InvalidArgument(
            f"Field {field.name!r} is no {field.data_type.name}.", reason="WRONG_TYPE"
        ) from None
    return packed, there


def _one_value(field: Field, value: Any) -> tuple[Any, Any]:
    kind = field.data_type
    try:
        if kind in (DataType.STRING, DataType.BYTES) or kind.is_list:
            if kind in (DataType.STRING, DataType.BYTES) and not isinstance(
                value, str if kind == DataType.STRING else bytes
            ):
                raise TypeError
            values = np.empty(1, dtype=object)
            values[0] = value
        else:
            if isinstance(value, (str, bytes)) or isinstance(value, list) != kind.is_vector:
                raise TypeError
            values = np.array([value], DTYPES[kind.element])
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgument(f"Field {field.name!r} is no {kind.name}.", reason="WRONG_TYPE") from None
    return values, np.ones(1, np.bool_)


__all__ = ["FlywheelError", "carries_one", "from_event", "from_single_events", "source_name", "to_event"]
