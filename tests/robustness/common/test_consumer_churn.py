"""Members and topics of one consumer group come and go under load: each event has its effect once.

FLYWHEEL_CHURN_SECONDS=120 makes it longer; FLYWHEEL_CHURN_SEED repeats a schedule.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from flywheel_common.kafka.consumer import ConsumerLoop
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.record import Record
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import Pool, connection, create_pool
from tests.support.builders.events import create_topic, event
from tests.support.eventually import eventually

SECONDS = float(os.environ.get("FLYWHEEL_CHURN_SECONDS", "40"))
SEED = int(os.environ.get("FLYWHEEL_CHURN_SEED", "7"))
TOPICS = 40
MEMBERS = 6

pytestmark = pytest.mark.timeout(SECONDS + 240)


@pytest_asyncio.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    async with create_pool(database, max_size=12) as opened:
        await migrate(opened)
        async with connection(opened) as conn:
            await conn.execute("CREATE TABLE effect (id text NOT NULL)")
        yield opened


async def record_effects(conn: Any, records: Sequence[Record]) -> None:
    await conn.executemany("INSERT INTO effect VALUES ($1)", [(r.event.id,) for r in records if r.event])


async def test_each_event_counts_once_while_members_and_topics_change(
    kafka: Any, pool: Pool, topic_prefix: str
) -> None:
    dice = random.Random(SEED)
    sent: list[str] = []
    topics: list[str] = []
    members: list[asyncio.Task[None]] = []
    producer = Producer(kafka.bootstrap, client_id="churn")

    def join() -> None:
        loop = ConsumerLoop(
            bootstrap=kafka.bootstrap,
            group=topic_prefix + "g",
            pattern=f"^{re.escape(topic_prefix)}in\\d+$",
            handler=record_effects,
            pool=pool,
            session_timeout_seconds=6,
        )
        members.append(asyncio.create_task(loop.run()))

    async def leave() -> None:
        task = members.pop(dice.randrange(len(members)))
        assert not task.done(), f"a member ended by itself: {task.exception()!r}"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stop = asyncio.Event()

    async def produce() -> None:
        while not stop.is_set():
            topic = dice.choice(topics)
            batch = [f"e{len(sent) + i}" for i in range(5)]
            await asyncio.gather(*(producer.send(topic, event(i), key=i) for i in batch))
            sent.extend(batch)
            await asyncio.sleep(0.01)

    topics.append(await create_topic(kafka, f"{topic_prefix}in0", 2))
    join()
    load = asyncio.create_task(produce())
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if len(topics) < TOPICS:
                topics.append(await create_topic(kafka, f"{topic_prefix}in{len(topics)}", 2))
            if len(members) < MEMBERS and dice.random() < 0.6:
                join()
            elif len(members) > 1:
                await leave()
            await asyncio.sleep(dice.uniform(0.1, SECONDS / TOPICS))
        stop.set()
        await load

        async def all_applied() -> bool:
            async with connection(pool) as conn:
                rows = await conn.fetch("SELECT id FROM effect")
            found = Counter(row["id"] for row in rows)
            assert len(found) == len(sent), f"{len(found)} of {len(sent)}"
            assert set(found.values()) == {1}
            return True

        await eventually(all_applied, within=180, every=0.5)
        assert len(sent) > 20 * SECONDS, "too little load to prove anything"
        assert [] == [task.exception() for task in members if task.done()]
    finally:
        load.cancel()
        for task in members:
            task.cancel()
        await asyncio.gather(load, *members, return_exceptions=True)
        await producer.close()
