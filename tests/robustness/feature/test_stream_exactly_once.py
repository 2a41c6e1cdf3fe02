"""Workers that are killed again and again apply every event once, online and in the archive."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import polars as pl
import pytest

import flywheel as fw
from flywheel.tables import to_dict
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_protos.feature.v1 import feature_pb2 as pb

T0 = datetime(2013, 1, 1, tzinfo=UTC)
SCHEMA = {"carrier": fw.STRING, "origin": fw.STRING, "at": fw.TIMESTAMP, "delay": fw.FLOAT64}
carrier = fw.Entity("carrier", {"carrier": fw.STRING})
origin = fw.Entity("origin", {"origin": fw.STRING})
landings = fw.StreamSource("landings", SCHEMA, timestamp="at")
ROWS, BATCH, KILLS = 28_000, 50, 6


def view(name: str, entity: fw.Entity) -> fw.StreamView:
    return fw.StreamView(
        name,
        entity,
        landings,
        [
            fw.count("7d", name="n"),
            fw.total("delay", "7d", name="sum"),
            fw.last("delay", "7d", name="latest"),
        ],
        tile="1h",
    )


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_killed_workers_lose_no_event_and_apply_none_twice(
    client: fw.Client, workers: Any, environment: dict[str, str], bucket: str, tables: S3Tables
) -> None:
    workers.environment["FLYWHEEL_FEATURE_STREAM_BATCH_RECORDS"] = "8"
    views = [view("by_carrier", carrier), view("by_origin", origin)]
    features = fw.FeatureSet("both", ["by_carrier:*", "by_origin:*"])
    await client.apply(fw.compile_definitions([*views, features], "default"))
    dice = random.Random(7)
    events = [
        {
            "carrier": dice.choice(["AA", "B6", "DL", "UA", "WN"]),
            "origin": dice.choice(["EWR", "JFK", "LGA"]),
            # Out of order by up to two hours; unique times, so that the latest does not depend on ids.
            "at": T0 + timedelta(seconds=i * 15 + dice.randrange(7200), microseconds=i),
            "delay": float(dice.randrange(-20, 120)),
        }
        for i in range(ROWS)
    ]
    wanted: dict[tuple[str, int], int] = {}

    async def push(portion: range) -> None:
        for low in portion:
            chunk = events[low : low + BATCH]
            rows = {name: [e[name] for e in chunk] for name in SCHEMA}
            ids = [f"event-{low + i}" for i in range(len(chunk))]
            # Every fifth push is repeated, as by a client that lost the response.
            for _ in range(2 if low // BATCH % 5 == 0 else 1):
                answer = await client.push("landings", rows, SCHEMA, ids=ids)
                wanted.update({(o.source, o.partition): o.next_offset for o in answer.offsets})

    async def applied() -> int:
        fresh = await client.feature.GetFreshness(pb.GetFreshnessRequest(parent="projects/default"))
        return sum(o.next_offset for f in fresh.freshness for o in f.applied)

    portion = ROWS // (KILLS + 1)
    for kill in range(KILLS):
        low = kill * portion
        pushing = asyncio.create_task(push(range(low, low + portion, BATCH)))
        before, worker = await applied(), workers.start()
        # Killed after some batches, at a random point of one.
        while await applied() < before + dice.randrange(2, 60):
            await asyncio.sleep(0.002)
        await asyncio.sleep(dice.uniform(0.0, 0.05))
        await asyncio.to_thread(workers.kill, worker)
        await pushing
    await push(range(KILLS * portion, ROWS, BATCH))
    workers.start()
    positions = [pb.AppliedOffset(source=s, partition=p, next_offset=o) for (s, p), o in wanted.items()]
    await client.wait_applied(positions, within=90)

    newest = max(e["at"] for e in events)
    as_of = newest + timedelta(seconds=1)
    hour = int(as_of.timestamp()) // 3600
    inside = [e for e in events if hour - 168 < int(e["at"].timestamp()) // 3600 <= hour]
    keys = [("AA", "EWR"), ("B6", "JFK"), ("DL", "LGA"), ("UA", "EWR"), ("WN", "JFK")]
    answer = await client.online_features(
        "both", {"carrier": [k[0] for k in keys], "origin": [k[1] for k in keys]}, as_of=as_of
    )
    values = to_dict(answer.features)
    for place, prefix in ((0, "by_carrier"), (1, "by_origin")):
        field = ("carrier", "origin")[place]
        groups: dict[str, list[Any]] = defaultdict(list)
        for e in inside:
            groups[e[field]].append(e)
        for row, key in enumerate(keys):
            group = groups[key[place]]
            assert values[f"{prefix}__n"][row] == len(group)
            assert values[f"{prefix}__sum"][row] == sum(e["delay"] for e in group)
            assert values[f"{prefix}__latest"][row] == max(group, key=lambda e: e["at"])["delay"]

    await check_archive(environment, bucket, tables)


async def check_archive(environment: dict[str, str], bucket: str, tables: S3Tables) -> None:
    """The archive has every event once."""
    connection = await asyncpg.connect(environment["FLYWHEEL_FEATURE_POSTGRES_DSN"])
    try:
        async with asyncio.timeout(60):
            while await connection.fetchval("SELECT sum(event_count) FROM archive_segment") != ROWS:
                await asyncio.sleep(0.2)
        keys = [r["key"] for r in await connection.fetch("SELECT key FROM archive_segment")]
    finally:
        await connection.close()
    archived = tables.read_files([f"s3://{bucket}/{key}" for key in keys], ["__event_id", "delay"])
    assert archived.height == ROWS
    assert archived.get_column("__event_id").n_unique() == ROWS
    assert isinstance(archived, pl.DataFrame)
