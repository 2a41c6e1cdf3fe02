"""Protobuf ↔ values, what every resource's conversion needs: texts, times, durations. Parsing raises InvalidArgument; writing cannot fail."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.errors import InvalidArgument


def check_text(message: Message) -> None:
    """PostgreSQL cannot hold NUL in text. Raises InvalidArgument INVALID_TEXT naming the field."""
    for descriptor, value in message.ListFields():
        if descriptor.type == descriptor.TYPE_STRING:
            texts = [value] if isinstance(value, str) else value
            if any("\0" in text for text in texts):
                raise InvalidArgument(
                    f"{descriptor.name} holds a NUL character.", reason="INVALID_TEXT", field=descriptor.name
                )
        elif descriptor.type == descriptor.TYPE_MESSAGE:
            entry = descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry
            if entry:
                texts = [*value, *(v for v in value.values() if isinstance(v, str))]
                if any("\0" in text for text in texts if isinstance(text, str)):
                    raise InvalidArgument(
                        f"{descriptor.name} holds a NUL character.",
                        reason="INVALID_TEXT",
                        field=descriptor.name,
                    )
            else:
                for part in [value] if isinstance(value, Message) else value:
                    check_text(part)


def to_timestamp(moment: datetime | None) -> Timestamp | None:
    """None stays None: an unset field."""
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment.astimezone(UTC))
    return stamp


def from_timestamp(stamp: Timestamp) -> datetime:
    """UTC."""
    return stamp.ToDatetime(tzinfo=UTC)


def to_duration(seconds: float | None) -> Duration | None:
    """None stays None: an unset field."""
    if seconds is None:
        return None
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def to_seconds(duration: Duration) -> float:
    """A duration in seconds."""
    return duration.seconds + duration.nanos / 1e9
