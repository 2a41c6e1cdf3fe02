"""What a backend's outage stops, what it does not, a poison event, and that everything goes on by itself."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

import flywheel as fw
from flywheel.tables import to_dict, to_table
from flywheel_common.errors import Unavailable
from flywheel_common.producer import Producer
from flywheel_common.testing.eventually import eventually
from flywheel_common.topics import dead_letter
from flywheel_feature.server import GROUP, topic_name
from flywheel_local.kafka import Kafka
from flywheel_local.postgres import Postgres
from flywheel_protos.feature.v1 import feature_pb2 as pb

T0 = datetime(2013, 3, 1, tzinfo=UTC)
plane = fw.Entity("plane", {"tailnum": fw.STRING})
SCHEMA = {"tailnum": fw.STRING, "at": fw.TIMESTAMP, "weight": fw.FLOAT64}
weighings = fw.StreamSource("weighings", SCHEMA, timestamp="at")
recent = fw.StreamView("recent", plane, weighings, [fw.count("1h", name="n")])
weighed = fw.FeatureSet("weighed", ["recent:n"])
ROWS = {"tailnum": ["N1"], "at": [T0], "weight": [2.5]}
READ = pb.GetOnlineFeaturesRequest(
    feature_set="projects/default/featureSets/weighed", entities=to_table({"tailnum": ["N1"]})
)
READ.as_of.FromDatetime(T0)


async def apply(client: fw.Client) -> None:
    await client.apply(fw.compile_definitions([recent, weighed], "default"))


async def seen(client: fw.Client) -> int | None:
    count = to_dict((await client.feature.GetOnlineFeatures(READ)).features)["recent__n"][0]
    return None if count is None else int(count)


@pytest.mark.timeout(120)
async def test_a_stream_worker_outlives_postgresql_and_counts_what_came_meanwhile(
    client: fw.Client, workers: Any, postgres: Postgres, tmp_path: Path
) -> None:
    await apply(client)
    worker = workers.start()
    await client.push("weighings", ROWS, SCHEMA, ids=["before"])

    async def counted(wanted: int) -> bool:
        # While the database is away the service's health says so, and the channel keeps away from it.
        with suppress(Unavailable):
            return await seen(client) == wanted
        return False

    await eventually(lambda: counted(1), within=60)
    postgres.kill()
    await client.push("weighings", ROWS, SCHEMA, ids=["meanwhile"])
    await eventually(lambda: b"POSTGRES_UNAVAILABLE" in (tmp_path / "worker-1.log").read_bytes(), within=30)
    await asyncio.to_thread(postgres.restart)
    await eventually(lambda: counted(2), within=60)
    assert worker.poll() is None, "it went on by itself"


@pytest.mark.timeout(120)
async def test_a_poison_event_is_parked_and_the_events_around_it_count(
    client: fw.Client, workers: Any, kafka: Kafka, topic_prefix: str
) -> None:
    await apply(client)
    workers.start()
    topic = topic_prefix + topic_name("default", "weighings")
    await client.push("weighings", ROWS, SCHEMA, ids=["before"])
    async with Producer(kafka.bootstrap, client_id="test-poison") as producer:
        for partition in range(2):
            await producer.send(topic, b"\xff\xfenot an event", key="poison", partition=partition)
    await client.push("weighings", ROWS, SCHEMA, ids=["after"])

    async def both() -> bool:
        return await seen(client) == 2

    await eventually(both, within=60)
    consumer = AIOKafkaConsumer(
        dead_letter(topic_prefix + GROUP), bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        parked: list[Any] = []
        async with asyncio.timeout(20):
            while len(parked) < 2:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    parked += records
    finally:
        await consumer.stop()
    assert {b"\xff\xfenot an event"} == {record.value for record in parked}
    assert {b"poison"} == {record.key for record in parked}
