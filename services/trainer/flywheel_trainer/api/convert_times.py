"""Conversion of times to protobuf."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_trainer.runs.errors import InvalidRunTime

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(value: datetime | None) -> Timestamp | None:
    """None for None, which leaves the field unset."""
    if value is None:
        return None
    # A list has several times per item, and FromDatetime takes five times as long.
    since = value - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def moment(value: Timestamp) -> datetime:
    """The time of a message. Raises InvalidRunTime outside of the years 1 to 9999."""
    try:
        return value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRunTime(f"{value} is no valid time: {error}.") from error


def duration(value: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(value)
    return message


def seconds_of(value: Duration) -> float:
    """0 for an unset duration."""
    return value.seconds + value.nanos / 1e9


def seconds_to_proto(seconds: float) -> Duration | None:
    """None for 0, which leaves the field unset."""
    return duration(timedelta(seconds=seconds)) if seconds else None
