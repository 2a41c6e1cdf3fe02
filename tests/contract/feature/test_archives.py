"""Contract tests for the archive that training sets read: in memory, and as the service builds it.

The service's archive consists of PostgreSQL, Kafka and S3.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from flywheel_common.errors import Unavailable
from flywheel_common.ids import SystemIds
from flywheel_common.kafka.producer import Producer
from flywheel_feature.definitions.model import (
    BatchView,
    DataType,
    Feature,
    Field,
    ParquetSource,
    Source,
    StreamSource,
    View,
)
from flywheel_feature.fakes.archive import MemoryArchive
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.ingest.archive import NewSegment
from flywheel_feature.ingest.push_log import PushLog
from flywheel_feature.store.event_history import EventHistory
from flywheel_feature.store.kafka.source_topics import SourceTopics
from flywheel_feature.store.postgres.archive import PostgresArchive
from flywheel_feature.store.postgres.push_log import PostgresPushLog
from flywheel_feature.tables.ports import Archive, Segment
from flywheel_local.kafka import Kafka

AT = Field("at", DataType.TIMESTAMP)
LANDINGS = Source("p", "landings", (AT,), "at", "", StreamSource(partitions=2))
FACTS = View("p", "facts", "plane", BatchView("planes", (Feature("at", DataType.TIMESTAMP),)))
PLANES = Source("p", "planes", (AT,), "at", "", ParquetSource("s3://b/planes/"))
EVENTS = [(0, b"a"), (0, b"b"), (1, b"c")]


@dataclass
class Written:
    """An archive, and functions that write to it."""

    archive: Archive
    send: Callable[[], Awaitable[None]]
    """Sends EVENTS to the topic of LANDINGS."""
    archived: Callable[[int, int], Awaitable[Segment]]
    """Archives the events of a partition up to an offset; returns their segment."""
    push: Callable[[], Awaitable[str]]
    """Pushes a row to FACTS; returns the address of its file."""


@pytest.fixture(params=["memory", "service"])
def written(request: pytest.FixtureRequest) -> Written:
    if request.param == "service":
        found: Written = request.getfixturevalue("in_service")
        return found
    archive, pushes = MemoryArchive(), iter(["s3://memory/z", "s3://memory/a"])

    async def send() -> None:
        archive.topic_ends("p", "landings", {0: 2, 1: 1})

    async def archived(partition: int, end: int) -> Segment:
        segment = Segment(f"s3://memory/{partition}", partition, 0, end, 1, 2, end)
        archive.add("p", "landings", segment, {partition: end})
        return segment

    async def push() -> str:
        uri = next(pushes)
        archive.push("p", "facts", uri)
        return uri

    return Written(archive, send, archived, push)


@pytest.fixture
async def in_service(pool: Any, kafka: Kafka, topic_prefix: str) -> AsyncIterator[Written]:
    async with Producer(kafka.bootstrap, client_id="test") as producer:
        topics = SourceTopics(
            kafka.bootstrap, producer, topic_of=lambda p, s: f"{topic_prefix}{p}.{s}", partitions=2
        )
        segments = PostgresArchive(pool, "bucket")
        log = PushLog(PostgresPushLog(pool), MemoryTables("bucket"), SystemIds().new)

        async def send() -> None:
            await topics.ensure(LANDINGS)
            await topics.send(LANDINGS, EVENTS)

        async def archived(partition: int, end: int) -> Segment:
            await segments.commit(NewSegment(LANDINGS, partition, 0, end, f"k/{partition}", end, 1, 2))
            return Segment(f"s3://bucket/k/{partition}", partition, 0, end, 1, 2, end)

        async def push() -> str:
            await log.append(FACTS, PLANES, {"at": (np.array([1]), np.ones(1, bool))}, 1)
            return (await log.pushed("p", "facts"))[-1].uri

        yield Written(EventHistory(segments, topics, log), send, archived, push)
        await topics.close()
        await producer.close()


async def test_segments_and_offsets_are_the_committed_ones(written: Written) -> None:
    assert [] == list(await written.archive.segments("p", "landings"))
    assert {} == await written.archive.archived_offsets("p", "landings")
    made = [await written.archived(0, 2), await written.archived(1, 1)]
    assert made == list(await written.archive.segments("p", "landings"))
    assert {0: 2, 1: 1} == await written.archive.archived_offsets("p", "landings")
    assert [] == list(await written.archive.segments("q", "landings"))


async def test_topic_ends_after_its_last_event_archived_or_not(written: Written) -> None:
    assert {} == await written.archive.end_offsets("p", "landings")
    await written.send()
    await written.archived(0, 1)
    assert {0: 2, 1: 1} == await written.archive.end_offsets("p", "landings")


async def test_pushed_files_are_in_the_order_of_their_pushes(written: Written) -> None:
    assert [] == list(await written.archive.pushed_uris("p", "facts"))
    made = [await written.push(), await written.push()]
    assert made == list(await written.archive.pushed_uris("p", "facts"))
    assert [] == list(await written.archive.pushed_uris("p", "other"))


async def test_end_offsets_without_kafka_are_unavailable(pool: Any, free_port: Callable[[], int]) -> None:
    bootstrap = f"127.0.0.1:{free_port()}"
    async with Producer(bootstrap, client_id="test") as producer:
        topics = SourceTopics(bootstrap, producer, topic_of=lambda p, s: f"{p}.{s}", partitions=1)
        log = PushLog(PostgresPushLog(pool), MemoryTables("bucket"), SystemIds().new)
        with pytest.raises(Unavailable) as refused:
            await EventHistory(PostgresArchive(pool, "bucket"), topics, log).end_offsets("p", "landings")
    assert "KAFKA_UNAVAILABLE" == refused.value.reason
