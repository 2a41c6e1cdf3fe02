"""Fields that the specifications of several kinds share, between protobuf and domain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_trainer.runs.run import ExperimentName


def experiment_id(text: str) -> str:
    """The id in the name of an experiment; also accepts the id alone."""
    return ExperimentName.parse(text).experiment if "/" in text else text


def seconds_of(message: Any, field: str, default: float) -> float:
    """A Duration in seconds; the default if it is not set."""
    if not message.HasField(field):
        return default
    given: Duration = getattr(message, field)
    return given.seconds + given.nanos / 1e9


def duration(seconds: float) -> Duration:
    found = Duration()
    found.FromTimedelta(timedelta(seconds=seconds))
    return found


def time_of(message: Any, field: str) -> datetime | None:
    """A Timestamp; None if it is not set."""
    return getattr(message, field).ToDatetime(tzinfo=UTC) if message.HasField(field) else None


def timestamp(at: datetime | None) -> Timestamp | None:
    if at is None:
        return None
    found = Timestamp()
    found.FromDatetime(at)
    return found
