"""The dead-letter topic of a consumer group."""

from __future__ import annotations

from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.errors import TooMuchPoison
from flywheel_common.kafka.poison import PoisonError
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.topics import TopicSpec, dead_letter
from flywheel_common.telemetry.logs import get_logger

log = get_logger(__name__)


class DeadLetters:
    """Copies poison records to `dead-letter.<group>`: key, value and headers unchanged, plus `x-…` headers
    with origin and error. A crash before the position moves copies a record twice."""

    def __init__(self, bootstrap: str, producer: Producer, group: str, limit: int) -> None:
        self._bootstrap = bootstrap
        self._producer = producer
        self._topic_exists = False
        self._group = group
        self._limit = limit
        self._in_a_row = 0

    def reset(self) -> None:
        """Starts counting poison records again, because a record was processed."""
        self._in_a_row = 0

    async def send(self, poison: PoisonError) -> None:
        """Returns when Kafka has acknowledged the records. Raises KafkaUnavailable, and TooMuchPoison when
        more than `limit` records in a row are poison."""
        if self._in_a_row + len(poison.records) > self._limit:
            raise TooMuchPoison(
                f"{self._limit} records of {self._group} in a row could not be processed: {poison.why}"
            )
        if not self._topic_exists:
            spec = TopicSpec(dead_letter(self._group), partitions=1, retention_days=30)
            await ensure_topics(self._bootstrap, [spec], timeout_seconds=5)
            self._topic_exists = True
        for record in poison.records:
            headers = [
                *record.headers,
                ("x-original-topic", record.topic.encode()),
                ("x-original-partition", str(record.partition).encode()),
                ("x-original-offset", str(record.offset).encode()),
                ("x-group", self._group.encode()),
                ("x-error", poison.why.encode()[:1000]),
            ]
            await self._producer.send(
                dead_letter(self._group), record.value, key=record.key or None, headers=headers
            )
            log.error(
                "record sent to the dead-letter topic",
                group=self._group,
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                error=poison.why,
            )
        self._in_a_row += len(poison.records)
