"""TensorBoard event files: records with checksums (TFRecord), each an Event message.

The messages are declared here with the field numbers of event.proto and summary.proto in
tensorboard/compat/proto, so that no package of TensorBoard is needed. TensorBoard keeps values as float32.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from flywheel.tracking.curves import Curve

_PACKAGE = "flywheel.tensorboard"
_POLYNOMIAL = 0x82F63B78
_MASK = 0xA282EAD8
_FIELD = descriptor_pb2.FieldDescriptorProto


def _event_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="flywheel/tensorboard.proto", package=_PACKAGE, syntax="proto3"
    )
    value = file.message_type.add(name="Value")
    _add(value, "tag", 1, _FIELD.TYPE_STRING)
    _add(value, "simple_value", 2, _FIELD.TYPE_FLOAT)
    summary = file.message_type.add(name="Summary")
    _add(summary, "value", 1, _FIELD.TYPE_MESSAGE, "Value", repeated=True)
    event = file.message_type.add(name="Event")
    _add(event, "wall_time", 1, _FIELD.TYPE_DOUBLE)
    _add(event, "step", 2, _FIELD.TYPE_INT64)
    _add(event, "file_version", 3, _FIELD.TYPE_STRING)
    _add(event, "summary", 5, _FIELD.TYPE_MESSAGE, "Summary")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Event"))


def _add(
    message: Any, name: str, number: int, kind: Any, type_name: str = "", *, repeated: bool = False
) -> None:
    label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, type=kind, label=label)
    if type_name:
        field.type_name = f".{_PACKAGE}.{type_name}"


Event = _event_class()
"""The Event message, with scalar summaries only."""


def _table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ _POLYNOMIAL if crc & 1 else crc >> 1
        table.append(crc)
    return table


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def record(data: bytes) -> bytes:
    """A TFRecord: length, its masked checksum, the data, their masked checksum."""
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def write_events(folder: Path, curves: Iterable[Curve], name: str) -> Path:
    """Write the curves of one run into `folder`, which TensorBoard shows as a run. Replaces a file of this
    name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{name}"
    with path.open("wb") as file:
        file.write(record(Event(file_version="brain.Event:2").SerializeToString()))
        for curve in curves:
            for step, value, time in zip(curve.steps, curve.values, curve.times, strict=True):
                event = Event(wall_time=time / 1e6, step=step)
                event.summary.value.add(tag=curve.key, simple_value=value)
                file.write(record(event.SerializeToString()))
    return path
