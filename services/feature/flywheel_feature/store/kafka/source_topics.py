"""Creates the Kafka topics of stream sources, writes events to them and reads their end offsets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from flywheel_common.deadline import in_time
from flywheel_common.kafka.client import close_quietly, ensure_topics, kafka_errors
from flywheel_common.kafka.errors import KafkaUnavailable
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.topics import TopicSpec, feature_source
from flywheel_feature.definitions.model import Source, StreamSource

END_SECONDS = 1.0
"""How long end offsets may be reused for computing lag."""
FIRST_RECORD_BYTES = 4096
"""Bytes to read of each partition for the time of a record; the broker sends a larger record whole."""
READ_SECONDS = 1.0
"""Longest wait for such records."""


def topic_name(project: str, source: str) -> str:
    """The topic of a stream source; only projects other than `default` are part of the name."""
    return feature_source(source if project == "default" else f"{project}.{source}")


def topic_spec(source: Source, prefix: str, partitions: int) -> TopicSpec:
    """The topic of a stream source; `partitions`: the platform's default."""
    assert isinstance(source.kind, StreamSource)
    return TopicSpec(prefix + topic_name(source.project, source.id), source.kind.partitions or partitions)


class SourceTopics:
    """Topics of stream sources; methods raise Unavailable KAFKA_UNAVAILABLE while Kafka is unreachable."""

    def __init__(
        self, bootstrap: str, producer: Producer, *, topic_of: Callable[[str, str], str], partitions: int
    ) -> None:
        self._bootstrap = bootstrap
        self._producer = producer
        self._topic_of = topic_of
        self._partitions = partitions
        self._ready: dict[str, int] = {}
        self._counted: dict[str, int] = {}
        self._consumer: AIOKafkaConsumer | None = None
        self._lock = asyncio.Lock()
        self._reader: AIOKafkaConsumer | None = None
        """On connections of its own, so that `end_offsets` does not wait for its fetches."""
        self._reading = asyncio.Lock()
        self._ends: dict[str, tuple[float, dict[int, int]]] = {}
        self._times: dict[str, tuple[float, dict[tuple[TopicPartition, int], int]]] = {}

    def topic(self, project: str, source: str) -> str:
        return self._topic_of(project, source)

    async def ensure(self, source: Source) -> int:
        """Create the topic if it is missing; returns its number of partitions."""
        topic = self.topic(source.project, source.id)
        if topic not in self._ready:
            assert isinstance(source.kind, StreamSource)
            wanted = source.kind.partitions or self._partitions
            async with in_time(_timed_out):
                await ensure_topics(self._bootstrap, [TopicSpec(topic, wanted)], timeout_seconds=5.0)
            self._ready[topic] = wanted
        return self._ready[topic]

    async def send(self, source: Source, events: Sequence[tuple[int, bytes]]) -> list[tuple[int, int]]:
        """Send (partition, value) events; returns their (partition, offset) when all replicas have them."""
        topic = self.topic(source.project, source.id)
        sends = [self._producer.send(topic, value, key=str(p), partition=p) for p, value in events]
        async with in_time(_timed_out):
            return list(await asyncio.gather(*sends)) if len(sends) > 1 else [await sends[0]] if sends else []

    async def end_offsets(self, project: str, source: str) -> Mapping[int, int]:
        """The end offset of each partition now; empty when there is no topic."""
        topic = self.topic(project, source)
        async with in_time(_timed_out), self._lock:
            with kafka_errors():
                async with asyncio.timeout(10.0):
                    partitions = await self._partitions_of(topic)
                    if not partitions:
                        return {}
                    consumer = await self._connected()
                    ends = await consumer.end_offsets([TopicPartition(topic, p) for p in range(partitions)])
        found = {tp.partition: int(end) for tp, end in ends.items()}
        self._ends[topic] = time.monotonic(), found
        return found

    async def recent_end_offsets(self, project: str, source: str) -> Mapping[int, int]:
        """As `end_offsets`, but up to END_SECONDS old."""
        at, found = self._ends.get(self.topic(project, source), (0.0, {}))
        if found and time.monotonic() - at < END_SECONDS:
            return found
        return await self.end_offsets(project, source)

    async def stored_since(self, project: str, source: str, offsets: Mapping[int, int]) -> int:
        """When the first record at or after these offsets was stored, in microseconds; 0: there is none."""
        topic = self.topic(project, source)
        wanted = {TopicPartition(topic, p): offset for p, offset in offsets.items()}
        async with in_time(_timed_out), self._reading:
            at, known = self._times.get(topic, (0.0, {}))
            if time.monotonic() - at > END_SECONDS:
                # A record never changes, so that only positions that have moved are looked up again.
                known = {place: stored for place, stored in known.items() if place in wanted.items()}
                missing = {tp: offset for tp, offset in wanted.items() if (tp, offset) not in known}
                if missing:
                    with kafka_errors():
                        known |= await self._stored(missing)
                self._times[topic] = time.monotonic(), known
        return min((stored for (tp, _), stored in known.items() if tp in wanted), default=0)

    async def _partitions_of(self, topic: str) -> int:
        """The number of partitions of a topic; 0 when it does not exist."""
        if topic not in self._counted:
            admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
            try:
                await admin.start()
                # All topics at once: freshness is asked for every source, one after the other.
                described = await admin.describe_topics()
            finally:
                await close_quietly(admin.close())
            counts = {found["topic"]: len(found["partitions"]) for found in described}
            self._counted.update({name: count for name, count in counts.items() if count})
        return self._counted.get(topic, 0)

    async def _stored(self, offsets: Mapping[TopicPartition, int]) -> dict[tuple[TopicPartition, int], int]:
        """(partition, offset) → microseconds at which the first record from there on was stored."""
        if self._reader is None:
            self._reader = await _started(
                AIOKafkaConsumer(
                    bootstrap_servers=self._bootstrap,
                    group_id=None,
                    auto_offset_reset="earliest",
                    fetch_max_wait_ms=100,
                    max_partition_fetch_bytes=FIRST_RECORD_BYTES,
                )
            )
        reader = self._reader
        reader.assign(list(offsets))
        for tp, offset in offsets.items():
            reader.seek(tp, offset)
        found: dict[tuple[TopicPartition, int], int] = {}
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(READ_SECONDS):
                    while len(found) < len(offsets):
                        for tp, records in (await reader.getmany(timeout_ms=200)).items():
                            found.setdefault((tp, offsets[tp]), int(records[0].timestamp) * 1000)
        finally:
            # Otherwise it would go on to fetch.
            reader.pause(*offsets)
        return found

    async def close(self) -> None:
        for consumer in (self._consumer, self._reader):
            if consumer is not None:
                await close_quietly(consumer.stop(), seconds=2.0)

    async def _connected(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            self._consumer = await _started(
                AIOKafkaConsumer(bootstrap_servers=self._bootstrap, group_id=None, metadata_max_age_ms=30_000)
            )
        return self._consumer


async def _started(consumer: AIOKafkaConsumer) -> AIOKafkaConsumer:
    try:
        await consumer.start()
    except BaseException:
        await close_quietly(consumer.stop())
        raise
    return consumer


def _timed_out() -> KafkaUnavailable:
    return KafkaUnavailable("Kafka did not answer before the deadline: retry with the same event ids.")
