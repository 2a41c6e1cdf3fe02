"""Joint decoding of records that differ only in their values.

A gateway writes records of equal structure: the same fields, names and lengths, other ids, times and
numbers. The first record of a length is parsed byte by byte into a template: which bytes may differ, and
where the columns are. All records that agree with it in every other byte are taken apart as one matrix of
bytes [records, length], and become one `PredictionBatch`. Everything else is left to the decoder of single
records.

A byte of a text may differ while it is ASCII, a byte of a number of varying length while it ends the number
where the template does, and a byte of packed values freely. Hence a record that agrees with the template of
a valid record is valid too, but for what is checked on the values (`decode.prediction_columns`)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from flywheel_common.arrays import Mask
from flywheel_common.errors import InvalidArgument
from flywheel_monitor.ingest.decode import prediction_columns
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.prediction_pb2 import PredictionBatch
from flywheel_protos.types.v1.column_pb2 import Column, Table

FEWEST = 8
"""Records of a length from which a template pays."""
MOST_BYTES = 8 * 1024 * 1024
MOST_KINDS = 10_000
"""What is kept of templates, and of kinds of records without one."""
COMPARED_BYTES = 128 * 1024
"""Bytes that are compared with a template at once: they stay in the cache of a core."""
_FIXED, _VARINT = 0xFF, 0x80
"""Bits of a byte that must equal those of the template."""
_ASCII = 0x80
_LONGEST_VARINT = 5
_TEXTS = {
    "flywheel.events.v1.Event.id",
    "flywheel.events.v1.Event.key",
    "flywheel.events.v1.Event.trace_parent",
    "flywheel.events.v1.PredictionBatch.prediction_ids",
    "flywheel.events.v1.PredictionBatch.subjects",
    "flywheel.events.v1.PredictionBatch.segments",
    "flywheel.types.v1.StringValues.values",
}
_PACKED = ("event_times", "scores", "decisions", "sources", "latencies_ms", "costs")
_BYTES = {f"flywheel.events.v1.PredictionBatch.{name}" for name in _PACKED} | {
    "flywheel.types.v1.Column.packed",
    "flywheel.types.v1.Column.validity",
}
_PER_ROW = ("prediction_ids", "subjects", "segments")
_TABLES = ("features", "entities", "request_fields", "applied_offsets")
_UNUSUAL = ("error_reasons", "not_yet_valid")
_VALUES = ("packed", "strings", "blobs", "ints", "doubles")
_USUAL_COLUMN = {"name", "data_type", "validity", "packed", "strings", "vector_size", "offsets"}
_DELIMITED = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE)
Bytes: TypeAlias = NDArray[np.uint8]
_Kind: TypeAlias = tuple[int, bytes]


@dataclass
class _Message:
    """Where the fields of a message lie: (start, end) of each value, or the message of a submessage."""

    fields: dict[str, list[Any]] = field(default_factory=dict)

    def one(self, name: str) -> Any:
        return self.fields[name][0]

    def spans(self, name: str) -> list[Any]:
        return self.fields.get(name, [])


@dataclass(frozen=True)
class Similar:
    """Records that were decoded together: their indices, in order, and their joint batch."""

    indices: tuple[int, ...]
    batch: PredictionBatch

    @property
    def arrivals(self) -> NDArray[np.int64]:
        """The index of the record of each row."""
        return np.repeat(np.array(self.indices), len(self.batch.prediction_ids) // len(self.indices))


class SimilarRecords:
    """Joins records, and keeps the templates that were used lately."""

    def __init__(self) -> None:
        self._templates: OrderedDict[_Kind, list[_Template]] = OrderedDict()
        self._bytes = 0
        self._seen: dict[_Kind, int] = {}
        """Records of a kind without a template."""

    def join(self, values: Sequence[bytes]) -> tuple[list[Similar], list[int]]:
        """Groups of records of the topic `prediction.logged` that could be decoded together, and the
        indices of the others, in order."""
        groups: list[Similar] = []
        rest: list[int] = []
        for kind, indices in _by_kind(values).items():
            if kind in self._templates:
                self._templates.move_to_end(kind)
            for template in self._templates.get(kind, ()):
                if indices:
                    indices = template.take(values, indices, groups)
            while indices and len(indices) + self._seen.get(kind, 0) >= FEWEST:
                made = self._add(kind, values[indices[0]])
                if made is None:
                    rest.append(indices.pop(0))
                else:
                    indices = made.take(values, indices, groups)
            if indices:
                self._count_seen(kind, len(indices))
                rest += indices
        return groups, sorted(rest)

    def _add(self, kind: _Kind, value: bytes) -> _Template | None:
        """A new template; the oldest ones make room for it."""
        template = _template(value)
        self._seen.pop(kind, None)
        if template is None:
            return None
        while self._templates and self._bytes + template.size > MOST_BYTES:
            _, removed = self._templates.popitem(last=False)
            self._bytes -= sum(t.size for t in removed)
        self._templates.setdefault(kind, []).append(template)
        self._bytes += template.size
        return template

    def _count_seen(self, kind: _Kind, records: int) -> None:
        if len(self._seen) >= MOST_KINDS:
            self._seen.clear()
        self._seen[kind] = self._seen.get(kind, 0) + records


def _by_kind(values: Sequence[bytes]) -> dict[_Kind, list[int]]:
    """The indices of the records of each kind. Records of a length that all have the same bytes where the
    first one names its model are of its kind."""
    lengths: dict[int, list[int]] = {}
    for i, length in enumerate(map(len, values)):
        lengths.setdefault(length, []).append(i)
    kinds: dict[_Kind, list[int]] = {}
    for indices in lengths.values():
        first = values[indices[0]]
        kind = _kind(first)
        start = first.find(kind[1])
        name = slice(start, start + len(kind[1]))
        if all(values[i][name] == kind[1] for i in indices):
            kinds[kind] = indices
            continue
        for i in indices:
            kinds.setdefault(_kind(values[i]), []).append(i)
    return kinds


def _kind(value: bytes) -> _Kind:
    """The length of a record and the name of its model, if it is where it is expected: records of different
    kinds have no template in common."""
    start = value.find(b"projects/")
    return len(value), value[start : start + value[start - 1]] if start > 0 else b""


def _template(value: bytes) -> _Template | None:
    """The template of a record; None if it is not valid, or not of the usual structure."""
    mask = bytearray(b"\xff" * len(value))
    try:
        event = Event.FromString(value)
        batch = PredictionBatch.FromString(event.payload)
        if event.type != PredictionBatch.DESCRIPTOR.full_name or not event.id:
            return None
        prediction_columns(batch, event.payload)
        found = _parsed(value, 0, len(value), Event.DESCRIPTOR, mask)
        start, end = found.one("payload")
        message = _parsed(value, start, end, PredictionBatch.DESCRIPTOR, mask)
        return _Template(value, mask, message, batch)
    except (InvalidArgument, DecodeError, _Unusual):  # The decoder of single records says why.
        return None


class _Unusual(Exception):
    """The record is valid, but no template for others."""


class _Template:
    """Which bytes of a record may differ, and where its columns lie."""

    def __init__(self, value: bytes, mask: bytearray, message: _Message, batch: PredictionBatch) -> None:
        tables = [t for name in _TABLES for t in message.spans(name)]
        usual = all(_USUAL_COLUMN.issuperset(c.fields) for table in tables for c in table.spans("columns"))
        if not batch.prediction_ids or not usual or any(name in message.fields for name in _UNUSUAL):
            raise _Unusual
        self._mask = np.frombuffer(bytes(mask), np.uint8)
        self._expected = np.frombuffer(value, np.uint8) & self._mask
        self._message = message
        self._rows = len(batch.prediction_ids)
        self._tables = {name: _emptied(getattr(batch, name)) for name in _TABLES if batch.HasField(name)}
        for name in (*_PER_ROW, *_PACKED, *_TABLES):
            batch.ClearField(name)
        self._fixed = batch

    @property
    def size(self) -> int:
        """About the memory that the template takes, in bytes."""
        return 3 * len(self._mask)

    def take(self, values: Sequence[bytes], indices: list[int], groups: list[Similar]) -> list[int]:
        """Add a group of the records that agree with the template; returns the indices of the others."""
        matrix = np.frombuffer(b"".join([values[i] for i in indices]), np.uint8).reshape(len(indices), -1)
        agree = self._agree(matrix)
        if agree.all():
            groups.append(Similar(tuple(indices), self._joined(matrix)))
            return []
        if agree.any():
            found = np.flatnonzero(agree)
            groups.append(Similar(tuple(indices[k] for k in found.tolist()), self._joined(matrix[found])))
        return [indices[k] for k in np.flatnonzero(~agree).tolist()]

    def _agree(self, matrix: Bytes) -> Mask:
        """[records] which of them agree with the template."""
        step = max(1, COMPARED_BYTES // len(self._mask))
        parts = (matrix[at : at + step] for at in range(0, len(matrix), step))
        return np.concatenate([((part & self._mask) == self._expected).all(axis=1) for part in parts])

    def _joined(self, matrix: Bytes) -> PredictionBatch:
        """The rows of the records as one batch."""
        batch = PredictionBatch()
        batch.CopyFrom(self._fixed)
        for name in _PER_ROW:
            if spans := self._message.spans(name):
                getattr(batch, name).extend(_texts(matrix, spans))
        for name in _PACKED:
            for start, end in self._message.spans(name):
                setattr(batch, name, _bytes(matrix, start, end))
        for name, table in self._tables.items():
            added = getattr(batch, name)
            added.CopyFrom(table)
            added.row_count = table.row_count * len(matrix)
            columns = self._message.one(name).spans("columns")
            for column, place in zip(added.columns, columns, strict=True):
                self._fill(column, place, matrix)
        return batch

    def _fill(self, column: Column, place: _Message, matrix: Bytes) -> None:
        for strings in place.spans("strings"):
            column.strings.values.extend(_texts(matrix, strings.spans("values")))
        for start, end in place.spans("packed"):
            column.packed = _bytes(matrix, start, end)
        for start, end in place.spans("validity"):
            if end > start:
                bits = np.unpackbits(matrix[:, start:end], axis=1, count=self._rows, bitorder="little")
                column.validity = np.packbits(bits.ravel(), bitorder="little").tobytes()
        for start, end in place.spans("offsets"):
            offsets = np.frombuffer(matrix[0, start:end].tobytes(), "<u4").astype(np.int64)
            if len(offsets):
                later = offsets[1:] + offsets[-1] * np.arange(len(matrix))[:, None]
                column.offsets = np.concatenate([offsets[:1], later.ravel()]).astype("<u4").tobytes()


def _emptied(table: Table) -> Table:
    """The table without its values."""
    found = Table()
    found.CopyFrom(table)
    for column in found.columns:
        for name in ("validity", "packed", "offsets"):
            if name != "packed" or column.WhichOneof("values") == "packed":
                setattr(column, name, b"")
        if column.WhichOneof("values") == "strings":
            del column.strings.values[:]
    return found


def _texts(matrix: Bytes, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The ASCII texts in these spans of each record, record by record."""
    widths = {end - start for start, end in spans}
    if len(widths) == 1:
        (width,) = widths
        if width == 0:
            return [""] * (len(spans) * len(matrix))
        text = _taken(matrix, [start for start, _ in spans], width).tobytes().decode("ascii")
        return [text[i : i + width] for i in range(0, len(text), width)]
    columns = [_texts(matrix, [span]) for span in spans]
    return [text for row in zip(*columns, strict=True) for text in row]


def _bytes(matrix: Bytes, start: int, end: int) -> bytes:
    """These bytes of each record, record by record."""
    if start == end:
        return b""
    # One item for each record: items are copied faster than rows of few bytes.
    items = np.ndarray(len(matrix), f"V{end - start}", matrix, start, (matrix.shape[1],))
    return items.tobytes()


def _taken(matrix: Bytes, starts: Sequence[int], width: int) -> Bytes:
    """The bytes of these places of each record."""
    if len(starts) == 1:
        return matrix[:, starts[0] : starts[0] + width]
    steps = set(np.diff(starts).tolist())
    if len(steps) == 1:
        (step,) = steps
        # All but the last one are as far from the next: they are taken as a whole.
        head = matrix[:, starts[0] : starts[-1]].reshape(len(matrix), len(starts) - 1, step)[:, :, :width]
        last = matrix[:, None, starts[-1] : starts[-1] + width]
        return np.concatenate([head, last], axis=1)
    return matrix[:, (np.array(starts)[:, None] + np.arange(width)).ravel()]


def _parsed(data: bytes, at: int, end: int, kind: Any, mask: bytearray) -> _Message:
    """Where the fields of a message in data[at:end] lie. Relaxes the mask where values may differ. Raises
    _Unusual for what has no template."""
    found = _Message()
    while at < end:
        tag, at = _varint(data, at, end)
        field_ = kind.fields_by_number.get(tag >> 3)
        if field_ is None:
            raise _Unusual
        # A value of another wire type would be an unknown field.
        delimited = field_.type in _DELIMITED
        if not field_.is_repeated and (field_.name in found.fields or delimited != (tag & 7 == 2)):
            raise _Unusual
        if delimited and tag & 7 != 2:
            raise _Unusual
        match tag & 7:
            case 0:
                start = at
                _, at = _varint(data, at, end)
                place: Any = (start, at)
            case 1:
                place, at = (at, at + 8), at + 8
            case 2:
                size, at = _varint(data, at, end)
                place, at = _delimited(data, at, at + size, field_, mask), at + size
            case 5:
                place, at = (at, at + 4), at + 4
            case _:
                raise _Unusual
        if at > end:
            raise _Unusual
        found.fields.setdefault(field_.name, []).append(place)
    return found


def _delimited(data: bytes, start: int, end: int, field_: FieldDescriptor, mask: bytearray) -> Any:
    name = field_.full_name
    if field_.type == FieldDescriptor.TYPE_MESSAGE:
        kind: Any = field_.message_type
        if kind.full_name == "google.protobuf.Timestamp":
            return _timestamp(data, start, end, mask)
        found = _parsed(data, start, end, kind, mask)
        if kind is Column.DESCRIPTOR and sum(f in found.fields for f in _VALUES) > 1:
            raise _Unusual
        return found
    if name in _TEXTS:
        if not data[start:end].isascii():
            raise _Unusual
        mask[start:end] = bytes([_ASCII]) * (end - start)
    elif name in _BYTES:
        mask[start:end] = bytes(end - start)
    return start, end


def _timestamp(data: bytes, at: int, end: int, mask: bytearray) -> tuple[int, int]:
    """A timestamp, whose numbers may differ in all bits but those that end them."""
    start = at
    while at < end:
        tag, at = _varint(data, at, end)
        if tag & 7:
            raise _Unusual
        first = at
        _, at = _varint(data, at, end)
        if at - first <= _LONGEST_VARINT:
            mask[first:at] = bytes([_VARINT]) * (at - first)
    return start, end


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise _Unusual
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
