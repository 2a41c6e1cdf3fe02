"""Timestamps and durations from and to protobuf."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.event_time import unset_time
from flywheel_monitor.api.errors import InvalidTime


def duration(micros: int) -> Duration:
    result = Duration()
    result.FromMicroseconds(micros)
    return result


def timestamp(micros: int | None) -> Timestamp | None:
    """Event time in microseconds; None leaves the field unset."""
    if micros is None:
        return None
    result = Timestamp()
    result.FromMicroseconds(micros)
    return result


def wall_time(at: datetime | None) -> Timestamp | None:
    """Wall time; None leaves the field unset."""
    if at is None:
        return None
    result = Timestamp()
    result.FromDatetime(at.astimezone(UTC))
    return result


def micros_of(message: object, field: str) -> int | None:
    """A Timestamp field in microseconds; None if it is unset. Raises InvalidTime, and
    EventTimeOutOfRange for a Timestamp that was sent without a value."""
    if not message.HasField(field):  # type: ignore[attr-defined]
        return None
    value: Timestamp = getattr(message, field)
    if not 0 <= value.nanos < 1_000_000_000:
        raise InvalidTime(f"{field} is not a valid timestamp.", field=field)
    micros = value.ToMicroseconds()
    if micros == 0:
        raise unset_time(field)
    return micros
