"""Conversions that all resources need: texts, times and durations.

Functions named after a value parse protobuf and raise InvalidArgument; `…_to_proto` and `to_…` cannot fail.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.errors import InvalidValue
from flywheel_common.grpc.message_limits import check_text


def check_texts(message: Message) -> None:
    """Raise InvalidText for the first field that contains NUL, which PostgreSQL cannot store in text."""
    for descriptor, value in message.ListFields():
        if descriptor.type == descriptor.TYPE_STRING:
            texts = [value] if isinstance(value, str) else value
            for text in texts:
                check_text(text, descriptor.name)
        elif descriptor.type == descriptor.TYPE_MESSAGE:
            if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
                for text in (*value.keys(), *value.values()):
                    if isinstance(text, str):
                        check_text(text, descriptor.name)
            else:
                for part in [value] if isinstance(value, Message) else value:
                    check_texts(part)


def to_timestamp(moment: datetime | None) -> Timestamp | None:
    """Convert a time; None stays None, an unset field."""
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment.astimezone(UTC))
    return stamp


def to_duration(seconds: float | None) -> Duration | None:
    """Convert seconds; None stays None, an unset field."""
    if seconds is None:
        return None
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def to_seconds(duration: Duration) -> float:
    """Convert a duration to seconds."""
    return duration.seconds + duration.nanos / 1e9


def to_time(stamp: Timestamp, field: str) -> datetime:
    """Convert a timestamp. Raises InvalidValue outside of the years 1 to 9999."""
    try:
        return stamp.ToDatetime(UTC)
    except (OverflowError, ValueError):
        raise InvalidValue(f"{field} is no time in the years 1 to 9999.", field=field) from None
