"""Online values are rebuilt from S3 after Redis lost its data and Kafka its records."""

from __future__ import annotations

import asyncio
import contextlib
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

import flywheel as fw
from flywheel.tables import to_dict
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_local.kafka import Kafka
from flywheel_local.redis import Redis
from flywheel_protos.feature.v1 import feature_pb2 as pb
from tests.support.servers.feature import events_archived

T0 = datetime(2013, 1, 1, tzinfo=UTC)
LANDING = {"carrier": fw.STRING, "at": fw.TIMESTAMP, "delay": fw.FLOAT64}
FACT = {"carrier": fw.STRING, "at": fw.TIMESTAMP, "planes": fw.INT64}
CARRIERS = ["AA", "B6", "DL", "UA", "WN"]
carrier = fw.Entity("carrier", {"carrier": fw.STRING})
landings = fw.StreamSource("landings", LANDING, timestamp="at")
recent = fw.StreamView(
    "recent",
    carrier,
    landings,
    [fw.count("7d", name="n"), fw.total("delay", "7d", name="sum"), fw.last("delay", "7d", name="latest")],
    tile="1h",
)
pytestmark = pytest.mark.timeout(150)


def definitions(bucket: str) -> Any:
    fleet = fw.ParquetSource("fleet", FACT, timestamp="at", uri=f"s3://{bucket}/fleet/")
    facts = fw.BatchView("facts", carrier, fleet, {"planes": fw.INT64})
    return fw.compile_definitions([recent, facts, fw.FeatureSet("all", ["recent:*", "facts:*"])], "default")


def events(count: int, seed: int) -> list[dict[str, Any]]:
    dice = random.Random(seed)
    return [
        {
            "carrier": dice.choice(CARRIERS),
            "at": T0 + timedelta(seconds=i * 60 + dice.randrange(7200), microseconds=i),
            "delay": float(dice.randrange(-20, 120)),
        }
        for i in range(count)
    ]


def expected(rows: list[dict[str, Any]], as_of: datetime) -> dict[str, list[Any]]:
    hour = int(as_of.timestamp()) // 3600
    groups = [
        [e for e in rows if e["carrier"] == c and hour - 168 < int(e["at"].timestamp()) // 3600 <= hour]
        for c in CARRIERS
    ]
    return {
        "recent__n": [len(g) for g in groups],
        "recent__sum": [sum(e["delay"] for e in g) for g in groups],
        "recent__latest": [max(g, key=lambda e: e["at"])["delay"] for g in groups],
    }


async def push(client: fw.Client, rows: list[dict[str, Any]], name: str) -> list[pb.AppliedOffset]:
    offsets: dict[int, pb.AppliedOffset] = {}
    for low in range(0, len(rows), 100):
        chunk = rows[low : low + 100]
        columns = {f: [e[f] for e in chunk] for f in LANDING}
        ids = [f"{name}-{low + i}" for i in range(len(chunk))]
        answer = await client.push("landings", columns, LANDING, ids=ids)
        offsets.update({o.partition: o for o in answer.offsets})
    return list(offsets.values())


async def values(client: fw.Client, as_of: datetime) -> dict[str, list[Any]]:
    answer = await client.online_features("all", {"carrier": CARRIERS}, as_of=as_of)
    return to_dict(answer.features)


async def settled(client: fw.Client, rows: list[dict[str, Any]], as_of: datetime) -> dict[str, list[Any]]:
    """The stream features once the counts are as expected, or after 40 seconds."""
    found: dict[str, list[Any]] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(40):
            while found.get("recent__n") != expected(rows, as_of)["recent__n"]:
                await asyncio.sleep(0.1)
                found = await values(client, as_of)
    return {name: v for name, v in found.items() if name.startswith("recent")}


async def delete_records(kafka: Kafka, topic: str) -> None:
    """Delete all records of a topic, as retention does."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, p): RecordsToDelete(-1) for p in (0, 1)})
    finally:
        await admin.close()


async def test_a_rebuild_needs_neither_redis_data_nor_kafka_records(
    client: fw.Client,
    workers: Any,
    bucket: str,
    tables: S3Tables,
    redis: Redis,
    kafka: Kafka,
    topic_prefix: str,
) -> None:
    tables.write(
        f"s3://{bucket}/fleet/a.parquet",
        pl.DataFrame({"carrier": CARRIERS, "at": [T0] * 5, "planes": [1, 2, 3, 4, 5]}),
    )
    await client.apply(definitions(bucket))
    worker = workers.start()
    rows = events(3_000, 1)
    await client.wait_applied(await push(client, rows, "a"), within=60)
    await client.materialize("facts")
    fact = {"carrier": ["UA"], "at": [T0 + timedelta(hours=1)], "planes": [40]}
    await client.push("views/facts", fact, FACT)
    await events_archived(client, len(rows))
    await asyncio.to_thread(workers.kill, worker)
    await delete_records(kafka, f"{topic_prefix}feature.source.landings")
    redis.flush()

    as_of = max(e["at"] for e in rows) + timedelta(seconds=1)
    assert (await values(client, as_of))["recent__n"] == [None] * 5
    await client.rebuild_online_store()
    want = expected(rows, as_of)
    want["facts__planes"] = [1, 2, 3, 40, 5]
    assert await values(client, as_of) == want
    # A worker continues from there: no event is lost or applied twice.
    more = events(500, 2)
    workers.start()
    await client.wait_applied(await push(client, more, "b"), within=60)
    assert await values(client, as_of) == {**expected(rows + more, as_of), "facts__planes": [1, 2, 3, 40, 5]}
    # A rebuild of a full store beside a worker changes no value; events not archived yet are read from Kafka
    # again.
    await client.rebuild_online_store()
    assert await settled(client, rows + more, as_of) == expected(rows + more, as_of)


async def test_a_worker_rebuilds_the_store_when_redis_lost_its_data(
    client: fw.Client, workers: Any, bucket: str, redis: Redis, kafka: Kafka, topic_prefix: str
) -> None:
    await client.apply(definitions(bucket))
    workers.start()
    workers.start()
    rows = events(2_000, 3)
    await client.wait_applied(await push(client, rows, "a"), within=60)
    await events_archived(client, len(rows))
    await delete_records(kafka, f"{topic_prefix}feature.source.landings")
    as_of = max(e["at"] for e in rows) + timedelta(seconds=1)
    # The loss is noticed while idle and during traffic, when states written after the loss lack earlier
    # events.
    redis.flush()
    assert await settled(client, rows, as_of) == expected(rows, as_of)
    more = events(6_000, 4)
    pushing = asyncio.create_task(push(client, more, "b"))
    for pause in np.linspace(0.1, 0.5, 4):
        await asyncio.sleep(pause)
        redis.flush()
    await client.wait_applied(await pushing, within=60)
    as_of = max(e["at"] for e in more) + timedelta(seconds=1)
    assert await settled(client, rows + more, as_of) == expected(rows + more, as_of)
