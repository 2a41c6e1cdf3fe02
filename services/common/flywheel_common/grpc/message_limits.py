"""Values that protobuf can carry but stores cannot: NUL in text, timestamps and durations out of range.

The pipeline checks a whole message only after a call has failed with an unexpected exception, so that
successful calls do not pay for it. A method that passes texts on without a store that would refuse them (into
events, for example) calls `check_text` itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.errors import InvalidArgument
from flywheel_common.grpc.errors import InvalidDuration, InvalidText, InvalidTimestamp

_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799
"""The years 1 to 9999: the range of google.protobuf.Timestamp."""
_LONGEST_SECONDS = 315_576_000_000
_NANOS = 1_000_000_000


def check_text(text: str, field: str) -> str:
    """Returns the text. Raises InvalidText if it contains a NUL character."""
    if "\0" in text:
        raise _nul(field)
    return text


def _nul(field: str) -> InvalidText:
    return InvalidText(f"{field} contains a NUL character: remove it.", field=field)


def unsupported_value(message: Message) -> InvalidArgument | None:
    """The error for the first such field; None if there is none."""
    return next(_found(message, ""), None)


def _found(message: Message, prefix: str) -> Iterator[InvalidArgument]:
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        for part in _parts(field, value):
            if isinstance(part, str):
                if "\0" in part:
                    yield _nul(path)
            elif isinstance(part, Timestamp):
                if not (_FIRST_SECOND <= part.seconds <= _LAST_SECOND and 0 <= part.nanos < _NANOS):
                    yield InvalidTimestamp(f"{path} must be between the years 1 and 9999.", field=path)
            elif isinstance(part, Duration):
                if not (abs(part.seconds) <= _LONGEST_SECONDS and abs(part.nanos) < _NANOS) or (
                    part.seconds * part.nanos < 0
                ):
                    yield InvalidDuration(f"{path} must be a duration of at most 10,000 years.", field=path)
            elif isinstance(part, Message):
                yield from _found(part, f"{path}.")


def _parts(field: Any, value: Any) -> Iterator[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        yield from value.keys()
        yield from value.values()
    elif field.is_repeated:
        yield from value
    else:
        yield value
