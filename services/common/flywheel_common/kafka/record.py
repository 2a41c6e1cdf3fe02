"""The Kafka record that handlers get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flywheel_protos.events.v1.event_pb2 import Event


@dataclass(slots=True)
class Record:
    """A record. `event` is the parsed envelope, None if the loop does not decode; `timestamp_ms` is wall
    time."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int
    event: Event | None = None

    @classmethod
    def of(cls, item: Any) -> Record:
        """From an aiokafka ConsumerRecord."""
        key = item.key.decode("utf-8", "replace") if item.key is not None else ""
        return cls(
            item.topic,
            item.partition,
            item.offset,
            key,
            item.value or b"",
            tuple(item.headers),
            item.timestamp,
        )
