"""Dead letters: records that cannot be processed, parked with where they came from and why."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.errors import TooMuchPoison
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.record import Record
from flywheel_common.kafka.topics import TopicSpec, dead_letter
from flywheel_common.telemetry.logs import get_logger

log = get_logger(__name__)


class PoisonError(Exception):
    """Raised by a handler: these records can never be processed. The transaction is rolled back, they are parked,
    and the rest of the batch is tried again without them."""

    def __init__(self, why: str, records: Sequence[Record]) -> None:
        super().__init__(why)
        self.why = why
        self.records = list(records)


class DeadLetters:
    """Parks records of a group in `dead-letter.<group>`: original key, value and headers, and `x-…` headers with
    origin and error. A crash between parking and moving the position parks a record twice."""

    def __init__(self, bootstrap: str, producer: Producer, group: str, limit: int) -> None:
        self._bootstrap = bootstrap
        self._producer = producer
        self._topic_exists = False
        self._group = group
        self._limit = limit
        self._in_a_row = 0

    def progress(self) -> None:
        """Some record was processed well."""
        self._in_a_row = 0

    async def park(self, poison: PoisonError) -> None:
        """Returns once Kafka has them. Raises Unavailable, or TooMuchPoison at `limit` in a row."""
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
                "record parked",
                group=self._group,
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                error=poison.why,
            )
        self._in_a_row += len(poison.records)
