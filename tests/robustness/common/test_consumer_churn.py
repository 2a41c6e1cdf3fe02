"""Members and topics come and go under load, in a group and with claims: each event has its effect once.

FLYWHEEL_CHURN_SECONDS=120 makes it longer; FLYWHEEL_CHURN_SEED repeats a schedule.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import pytest
import pytest_asyncio

from flywheel_common.kafka.claimed_consumer import ClaimedConsumer, TopicPartition
from flywheel_common.kafka.consumer import ConsumerLoop
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.record import Record
from flywheel_common.kafka.topics import TopicSpec
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import Pool, connection, create_pool, transaction
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
            await conn.execute(
                """
                CREATE TABLE effect (id text NOT NULL);
                CREATE TABLE position (topic text, partition int, next bigint, UNIQUE (topic, partition));
                """
            )
        yield opened


async def record_effects(conn: Any, records: Sequence[Record]) -> None:
    await conn.executemany("INSERT INTO effect VALUES ($1)", [(r.event.id,) for r in records if r.event])


class Member(Protocol):
    async def run(self) -> None: ...


class ClaimingMember:
    """Stores its own positions, as the feature service does: it moves them only from where it left them."""

    def __init__(self, bootstrap: str, group: str, pool: Pool, topics: Callable[[], list[TopicSpec]]) -> None:
        self._pool = pool
        self._known: dict[TopicPartition, int] = {}
        self._consumer = ClaimedConsumer(
            bootstrap=bootstrap,
            group=group,
            pool=pool,
            topics=topics,
            begin=self._begin,
            end=self._end,
            handler=self._handle,
            session_timeout_seconds=6,
        )

    async def run(self) -> None:
        await self._consumer.run()

    async def _begin(self, partition: TopicPartition) -> int:
        async with connection(self._pool) as conn:
            found = await conn.fetchval(
                "SELECT next FROM position WHERE topic = $1 AND partition = $2", *partition
            )
        self._known[partition] = found or 0
        return self._known[partition]

    async def _end(self, partition: TopicPartition) -> None:
        del self._known[partition]

    async def _handle(self, _: Any, records: Sequence[Record]) -> None:
        place = TopicPartition(records[0].topic, records[0].partition)
        known, following = self._known[place], records[-1].offset + 1
        async with transaction(self._pool) as conn:
            await conn.execute("INSERT INTO position VALUES ($1, $2, 0) ON CONFLICT DO NOTHING", *place)
            moved = await conn.fetchval(
                """
                UPDATE position SET next = $4
                WHERE topic = $1 AND partition = $2 AND next = $3 RETURNING true
                """,
                *place,
                known,
                following,
            )
            if moved:
                await record_effects(conn, [r for r in records if r.offset >= known])
        if moved:
            self._known[place] = following
        else:
            self._consumer.restart([place])


class Churn:
    """A load on topics that appear one by one, read by members that join, leave and die."""

    def __init__(self, kafka: Any, database: str, prefix: str, *, claims: bool) -> None:
        self.dice = random.Random(SEED)
        self.sent: list[str] = []
        self.topics: list[str] = []
        self.hidden: set[str] = set()
        self.members: list[tuple[asyncio.Task[None], Pool]] = []
        self.deaths = 0
        self._kafka = kafka
        self._database = database
        self._prefix = prefix
        self._claims = claims

    def specs(self) -> list[TopicSpec]:
        return [TopicSpec(name, 2) for name in self.topics if name not in self.hidden]

    def _member(self, pool: Pool) -> Member:
        if self._claims:
            return ClaimingMember(self._kafka.bootstrap, self._prefix + "g", pool, self.specs)
        return ConsumerLoop(
            bootstrap=self._kafka.bootstrap,
            group=self._prefix + "g",
            pattern=f"^{re.escape(self._prefix)}in\\d+$",
            handler=record_effects,
            pool=pool,
            session_timeout_seconds=6,
        )

    async def add_topic(self) -> None:
        name = f"{self._prefix}in{len(self.topics)}"
        self.topics.append(await create_topic(self._kafka, name, 2))

    async def join(self) -> None:
        async def live() -> None:
            async with create_pool(self._database, max_size=4) as pool:
                opened.set_result(pool)
                await self._member(pool).run()

        opened: asyncio.Future[Pool] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(live())
        self.members.append((task, await opened))

    async def leave(self) -> None:
        """A member stops; every third one dies, so that it can no longer say so to PostgreSQL."""
        task, pool = self.members.pop(self.dice.randrange(len(self.members)))
        assert not task.done(), f"a member ended by itself: {task.exception()!r}"
        if self.dice.random() < 0.33:
            self.deaths += 1
            pool.terminate()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def produce(self, stop: asyncio.Event) -> None:
        async with Producer(self._kafka.bootstrap, client_id="churn") as producer:
            while not stop.is_set():
                topic = self.dice.choice(self.topics)
                batch = [f"e{len(self.sent) + i}" for i in range(5)]
                await asyncio.gather(*(producer.send(topic, event(i), key=i) for i in batch))
                self.sent.extend(batch)
                await asyncio.sleep(0.01)

    async def run(self) -> None:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if len(self.topics) < TOPICS:
                await self.add_topic()
            if self._claims:
                self.hidden = set(self.dice.sample(self.topics, len(self.topics) // 10))
            if len(self.members) < MEMBERS and self.dice.random() < 0.6:
                await self.join()
            elif len(self.members) > 1:
                await self.leave()
            await asyncio.sleep(self.dice.uniform(0.1, SECONDS / TOPICS))
        self.hidden = set()


@pytest.mark.parametrize("claims", [False, True], ids=["group", "claims"])
async def test_each_event_counts_once_while_members_and_topics_change(
    kafka: Any, pool: Pool, database: str, topic_prefix: str, claims: bool
) -> None:
    churn = Churn(kafka, database, topic_prefix, claims=claims)
    stop = asyncio.Event()
    await churn.add_topic()
    await churn.join()
    load = asyncio.create_task(churn.produce(stop))
    try:
        await churn.run()
        stop.set()
        await load

        async def all_applied() -> bool:
            async with connection(pool) as conn:
                rows = await conn.fetch("SELECT id FROM effect")
            found = Counter(row["id"] for row in rows)
            assert set(found.values()) == {1}
            assert len(found) == len(churn.sent), f"{len(found)} of {len(churn.sent)}"
            return True

        await eventually(all_applied, within=180, every=0.5)
        assert len(churn.sent) > 20 * SECONDS, "too little load to prove anything"
        assert churn.deaths, "no member died"
        assert [] == [task.exception() for task, _ in churn.members if task.done()]
    finally:
        load.cancel()
        for task, _ in churn.members:
            task.cancel()
        await asyncio.gather(load, *(task for task, _ in churn.members), return_exceptions=True)
