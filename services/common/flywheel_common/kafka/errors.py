"""Errors of Kafka, its topics and its records."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition, Internal, InvalidArgument, Unavailable


class KafkaUnavailable(Unavailable):
    """Kafka is down or does not answer in time; a record that was being sent may have arrived."""

    reason = "KAFKA_UNAVAILABLE"
    remedy = "Retry with backoff, with the same event ids."


class TooFewPartitions(FailedPrecondition):
    """An existing topic has fewer partitions than the service needs."""

    reason = "TOO_FEW_PARTITIONS"
    remedy = "Create the topic again, or set `kafka_partitions` to the number that it has."


class EventTooLarge(InvalidArgument):
    """An event is larger than a Kafka record may be (8 MiB)."""

    reason = "EVENT_TOO_LARGE"
    remedy = "Send it in smaller pieces."


class MalformedEvent(InvalidArgument):
    """A record is not a flywheel.events.v1.Event, lacks an id or a type, or its payload is not of its
    type."""

    reason = "MALFORMED_EVENT"
    remedy = "Build events with `kafka.envelope.build_event`."


class UnexpectedEventType(InvalidArgument):
    """A record holds another event type than its topic is for."""

    reason = "UNEXPECTED_EVENT_TYPE"
    remedy = "Send the event to the topic of its type."


class TooMuchPoison(Internal):
    """A consumer found nothing but poison records: it stops, because the cause is a bug or a wrong topic."""

    reason = "TOO_MUCH_POISON"
    remedy = (
        "Read the dead-letter topic of the group, fix the handler or the topic, and start the service again."
    )
