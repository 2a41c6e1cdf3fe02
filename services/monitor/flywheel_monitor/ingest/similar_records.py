"""Joint decoding of records that differ only in their values.

A gateway writes records of equal structure: the same fields, names and lengths, other ids, times and numbers. The
first record of a length is parsed byte by byte into a template: which bytes may differ, and where the columns
are. All records that agree with it in every other byte are taken apart as one matrix of bytes [records, length],
and become one `PredictionBatch`. Everything else is left to the decoder of single records.

A byte of a text may differ while it is ASCII, a byte of a number of varying length while it ends the number where
the template does, and a byte of packed values freely. Hence a record that agrees with the template of a valid
record is valid too, but for what is checked on the values (`decode.prediction_columns`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from flywheel_common.errors import InvalidArgument
from flywheel_monitor.ingest.decode import prediction_columns
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.prediction_pb2 import PredictionBatch
from flywheel_protos.types.v1.column_pb2 import Column

FEWEST = 8
"""Records of a length from which a template pays."""
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
_OTHER_TABLES = ("entities", "request_fields", "applied_offsets")
_UNUSUAL = ("error_reasons", "not_yet_valid")
_VALUES = ("packed", "strings", "blobs", "ints", "doubles")
_USUAL_COLUMN = {"name", "data_type", "validity", "packed", "strings", "vector_size"}
_DELIMITED = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE)
Bytes = NDArray[np.uint8]


@dataclass
class _Message:
    """Where the fields of a message lie: (start, end) of each value, or the message of a submessage."""

    fields: dict[str, list[Any]] = field(default_factory=dict)

    def one(self, name: str) -> Any:
        return self.fields[name][0]

    def spans(self, name: str) -> list[tuple[int, int]]:
        return self.fields.get(name, [])


@dataclass(frozen=True)
class Similar:
    """Records that were decoded together: their indices and payloads, in order, and their joint batch."""

    indices: tuple[int, ...]
    payloads: tuple[bytes, ...]
    batch: PredictionBatch


def join_similar(values: Sequence[bytes]) -> tuple[list[Similar], list[int]]:
    """Groups of records of the topic `prediction.logged` that could be decoded together, and the indices of the
    others."""
    lengths: dict[int, list[int]] = {}
    for i, value in enumerate(values):
        lengths.setdefault(len(value), []).append(i)
    groups: list[Similar] = []
    rest: list[int] = []
    for length, indices in lengths.items():
        while len(indices) >= FEWEST:
            template = _template(values[indices[0]])
            if template is None:
                rest.append(indices.pop(0))
                continue
            matrix = np.frombuffer(b"".join([values[i] for i in indices]), np.uint8).reshape(-1, length)
            agree = template.agree(matrix)
            found = np.flatnonzero(agree).tolist()
            chosen = [indices[k] for k in found]
            if len(chosen) < FEWEST:
                rest += chosen
            else:
                kept = matrix if len(chosen) == len(indices) else matrix[found]
                start, end = template.payload
                payloads = tuple([values[i][start:end] for i in chosen])
                groups.append(Similar(tuple(chosen), payloads, template.joined(kept)))
            indices = [indices[k] for k in np.flatnonzero(~agree).tolist()]
        rest += indices
    return groups, sorted(rest)


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
        return _Template(value, mask, (start, end), message, batch)
    except (InvalidArgument, DecodeError, _Unusual):  # The decoder of single records says why.
        return None


class _Unusual(Exception):
    """The record is valid, but no template for others."""


class _Template:
    """Which bytes of a record may differ, and where its columns lie."""

    def __init__(
        self,
        value: bytes,
        mask: bytearray,
        payload: tuple[int, int],
        message: _Message,
        batch: PredictionBatch,
    ) -> None:
        if any(name in message.fields for name in _UNUSUAL):
            raise _Unusual
        self._mask = np.frombuffer(bytes(mask), np.uint8)
        self._expected = np.frombuffer(value, np.uint8) & self._mask
        self.payload = payload
        self._message = message
        self._rows = len(batch.prediction_ids)
        self._fixed = PredictionBatch()
        self._fixed.CopyFrom(batch)
        for name in (*_PER_ROW, *_PACKED, "features", *_OTHER_TABLES):
            self._fixed.ClearField(name)
        self._columns = list(batch.features.columns)
        tables = message.spans("features")
        usual = all(_USUAL_COLUMN.issuperset(c.fields) for table in tables for c in table.spans("columns"))
        if self._rows == 0 or not usual:
            raise _Unusual

    def agree(self, matrix: Bytes) -> NDArray[np.bool_]:
        """[records] those that differ from the template only where they may."""
        found: NDArray[np.bool_] = ((matrix & self._mask) == self._expected).all(axis=1)
        return found

    def joined(self, matrix: Bytes) -> PredictionBatch:
        """The rows of the records as one batch, without the tables that are only archived."""
        batch = PredictionBatch()
        batch.CopyFrom(self._fixed)
        for name in _PER_ROW:
            spans = self._message.spans(name)
            if spans:
                getattr(batch, name).extend(_texts(matrix, spans))
        for name in _PACKED:
            for start, end in self._message.spans(name):
                setattr(batch, name, matrix[:, start:end].tobytes())
        if "features" in self._message.fields:
            self._add_features(batch, matrix)
        return batch

    def _add_features(self, batch: PredictionBatch, matrix: Bytes) -> None:
        table = self._message.one("features")
        batch.features.row_count = self._rows * len(matrix)
        for column, place in zip(self._columns, table.spans("columns"), strict=True):
            added = batch.features.columns.add()
            added.name, added.data_type, added.vector_size = column.name, column.data_type, column.vector_size
            if "strings" in place.fields:
                added.strings.values.extend(_texts(matrix, place.one("strings").spans("values")))
                if not place.one("strings").spans("values"):
                    added.strings.SetInParent()
            for start, end in place.spans("packed"):
                added.packed = matrix[:, start:end].tobytes()
            for start, end in place.spans("validity"):
                added.validity = self._validity(matrix[:, start:end])

    def _validity(self, bitmaps: Bytes) -> bytes:
        bits = np.unpackbits(np.ascontiguousarray(bitmaps), axis=1, count=self._rows, bitorder="little")
        return np.packbits(bits.ravel(), bitorder="little").tobytes()


def _texts(matrix: Bytes, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The ASCII texts in these spans of each record, record by record."""
    widths = {end - start for start, end in spans}
    if len(widths) == 1:
        (width,) = widths
        if width == 0:
            return [""] * (len(spans) * len(matrix))
        at = (np.array([start for start, _ in spans])[:, None] + np.arange(width)).ravel()
        if len(spans) == 1:
            taken = matrix[:, spans[0][0] : spans[0][1]]
        else:
            taken = matrix[:, at]
        text = taken.tobytes().decode("ascii")
        return [text[i : i + width] for i in range(0, len(text), width)]
    columns = [_texts(matrix, [span]) for span in spans]
    return [text for row in zip(*columns, strict=True) for text in row]


def _parsed(data: bytes, at: int, end: int, kind: Descriptor, mask: bytearray) -> _Message:
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
        kind = field_.message_type
        if kind.full_name == "google.protobuf.Timestamp":
            return _timestamp(data, start, end, mask)
        found = _parsed(data, start, end, kind, mask)
        if kind is Column.DESCRIPTOR and sum(f in found.fields for f in _VALUES) > 1:
            raise _Unusual
        return found
    if name in _TEXTS:
        if any(byte & _ASCII for byte in data[start:end]):
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
