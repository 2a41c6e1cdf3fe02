"""Building and parsing of the event envelope `flywheel.events.v1.Event`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from flywheel_common.context import current_traceparent
from flywheel_common.ids import new_id
from flywheel_common.kafka.errors import MalformedEvent, UnexpectedEventType
from flywheel_protos.events.v1.event_pb2 import Event

M = TypeVar("M", bound=Message)


def build_event(
    payload: Message, *, source: str, key: str, event_time: datetime, event_id: str | None = None
) -> Event:
    """An envelope around `payload`, with the current trace context. `event_time` must have a time zone. Give
    `event_id` when a retry must send the same id."""
    if event_time.tzinfo is None:
        raise ValueError("event_time must have a time zone")
    event = Event(
        id=event_id or new_id(),
        type=payload.DESCRIPTOR.full_name,
        source=source,
        key=key,
        trace_parent=current_traceparent(),
        payload=payload.SerializeToString(),
    )
    event.event_time.FromDatetime(event_time.astimezone(UTC))
    return event


def parse_event(value: bytes) -> Event:
    """The envelope in a Kafka record. Raises MalformedEvent."""
    try:
        event = Event.FromString(value)
    except DecodeError:
        raise MalformedEvent("The record is not a flywheel.events.v1.Event.") from None
    if not event.id or not event.type:
        raise MalformedEvent("The event has no id or no type.")
    return event


def payload_of(event: Event, kind: type[M]) -> M:
    """The payload as `kind`. Raises UnexpectedEventType or MalformedEvent."""
    if event.type != kind.DESCRIPTOR.full_name:
        raise UnexpectedEventType(f"The event is a {event.type}, not a {kind.DESCRIPTOR.full_name}.")
    try:
        return kind.FromString(event.payload)
    except DecodeError:
        raise MalformedEvent(f"The payload is not a {event.type}.") from None
