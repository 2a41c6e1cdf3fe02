"""Leases on PostgreSQL."""

from __future__ import annotations

import asyncio

import pytest

from flywheel_common import errors
from flywheel_common.postgres.lease import Lease, fence
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import Pool, create_pool, transaction
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.row_counts import count


async def test_one_of_many_processes_gets_the_lease(pool: Pool) -> None:
    leases = [Lease(pool, "ticker", holder=str(i), ttl_seconds=30) for i in range(8)]
    tokens = await asyncio.gather(*(lease.try_acquire() for lease in leases))
    assert [t for t in tokens if t is not None] == [1]


async def test_the_token_rises_with_every_change_of_holder(pool: Pool) -> None:
    one, two = (
        Lease(pool, "ticker", holder="one", ttl_seconds=0.2),
        Lease(pool, "ticker", holder="two", ttl_seconds=30),
    )
    assert await one.try_acquire() == 1
    assert await two.try_acquire() is None
    assert await eventually(two.try_acquire, within=5) == 2
    assert not await one.renew(1)
    assert await two.try_acquire() == 2  # held by itself
    await two.release(2)
    assert await one.try_acquire() == 3


async def test_a_process_replaces_its_former_run_once(pool: Pool) -> None:
    former = Lease(pool, "pod-0", ttl_seconds=30)
    assert await former.try_acquire() == 1
    again = Lease(pool, "pod-0", ttl_seconds=30, replace=True)
    assert await again.try_acquire() == 2
    assert not await former.renew(1)
    third = Lease(pool, "pod-0", ttl_seconds=30, replace=True)
    assert await third.try_acquire() == 3
    assert await again.try_acquire() is None, "a process that was replaced waits for the end of the lease"


async def test_a_holder_that_lost_the_lease_cannot_commit(pool: Pool) -> None:
    one, two = (
        Lease(pool, "ticker", holder="one", ttl_seconds=0.1),
        Lease(pool, "ticker", holder="two", ttl_seconds=30),
    )
    token = await one.try_acquire()
    assert token == 1
    await eventually(two.try_acquire, within=5)
    with pytest.raises(errors.Aborted) as caught:
        async with transaction(pool) as conn:
            await conn.execute("INSERT INTO thing VALUES ('late', 1)")
            await fence(conn, "ticker", token)
    assert caught.value.reason == "LEASE_LOST"
    assert await count(pool, "thing") == 0


async def test_work_moves_to_another_member_when_its_holder_stops(pool: Pool) -> None:
    running: list[str] = []

    async def work(name: str, _: int) -> None:
        running.append(name)
        try:
            await asyncio.Event().wait()
        finally:
            running.remove(name)

    def member(name: str) -> asyncio.Task[None]:
        lease = Lease(pool, "ticker", holder=name, ttl_seconds=0.6)
        return asyncio.create_task(lease.run(lambda token: work(name, token)))

    one = member("one")
    await eventually(lambda: running == ["one"])
    two = member("two")
    await asyncio.sleep(1.0)
    assert running == ["one"]
    one.cancel()
    await eventually(lambda: running == ["two"], within=5)
    two.cancel()
    await asyncio.gather(one, two, return_exceptions=True)
    assert running == []


async def test_leased_work_is_cancelled_before_another_holder_starts(database: str) -> None:
    port = int(database.rsplit(":", 1)[1].split("/", maxsplit=1)[0])
    async with create_pool(database) as direct, FaultProxy("127.0.0.1", port) as proxy:
        await migrate(direct)
        async with create_pool(database.replace(f":{port}/", f":{proxy.port}/")) as stalled:
            active = 0
            most = 0

            async def work(_: int) -> None:
                nonlocal active, most
                active += 1
                most = max(most, active)
                try:
                    await asyncio.Event().wait()
                finally:
                    active -= 1

            one = asyncio.create_task(Lease(stalled, "t", ttl_seconds=0.9).run(work))
            await eventually(lambda: active == 1)
            two = asyncio.create_task(Lease(direct, "t", ttl_seconds=0.9).run(work))
            proxy.stall()
            await eventually(lambda: active == 0, within=5, every=0.005)
            await eventually(lambda: active == 1, within=5)
            assert most == 1
            proxy.cut()
            proxy.heal()
            for task in (one, two):
                task.cancel()
            await asyncio.gather(one, two, return_exceptions=True)
