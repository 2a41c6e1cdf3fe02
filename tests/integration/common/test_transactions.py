"""Transactions, errors and reconnection on PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flywheel_common import errors
from flywheel_common.context import left_seconds
from flywheel_common.deadline import budget
from flywheel_common.postgres import pool as postgres_module
from flywheel_common.postgres.pool import Pool, connection, create_pool, transaction
from tests.support.fault_proxy import FaultProxy
from tests.support.row_counts import count


class ThingExists(errors.AlreadyExists):
    reason = "THING_EXISTS"


async def test_a_violated_constraint_becomes_a_domain_error(pool: Pool) -> None:
    translate = {"uq_thing_name": ThingExists("There is one.")}
    for _ in range(2):
        with pytest.raises(errors.AlreadyExists, match="There is one") as caught:
            async with transaction(pool, translate=translate) as conn:
                await conn.execute("INSERT INTO thing VALUES ('a', 1)")
                await conn.execute("INSERT INTO thing VALUES ('a', 2)")
        assert caught.value.reason == "THING_EXISTS"
    assert await count(pool, "thing") == 0


async def test_any_exception_rolls_back(pool: Pool) -> None:
    with pytest.raises(RuntimeError):
        async with transaction(pool) as conn:
            await conn.execute("INSERT INTO thing VALUES ('a', 1)")
            raise RuntimeError
    assert await count(pool, "thing") == 0


async def test_a_deadlock_aborts_one_side(pool: Pool) -> None:
    async with transaction(pool) as conn:
        await conn.execute("INSERT INTO thing VALUES ('a', 1), ('b', 1)")
    barrier = asyncio.Barrier(2)

    async def update(first: str, second: str) -> None:
        async with transaction(pool) as conn:
            await conn.execute("UPDATE thing SET n = n + 1 WHERE name = $1", first)
            await barrier.wait()
            await conn.execute("UPDATE thing SET n = n + 1 WHERE name = $1", second)

    outcomes = await asyncio.gather(update("a", "b"), update("b", "a"), return_exceptions=True)
    assert sorted(type(o).__name__ for o in outcomes) == ["NoneType", "SerializationFailure"]


async def test_a_slow_statement_is_a_deadline_exceeded(database: str) -> None:
    async with create_pool(database, statement_timeout_seconds=0.2) as pool:
        with pytest.raises(errors.DeadlineExceeded):
            async with connection(pool) as conn:
                await conn.execute("SELECT pg_sleep(5)")
        async with connection(pool) as conn:
            assert await conn.fetchval("SELECT 1") == 1


async def test_the_pool_reconnects_after_lost_connections(database: str, postgres: Any) -> None:
    host, port = "127.0.0.1", int(database.rsplit(":", 1)[1].split("/", maxsplit=1)[0])
    async with (
        FaultProxy(host, port) as proxy,
        create_pool(database.replace(f":{port}/", f":{proxy.port}/"), max_size=2) as pool,
    ):
        async with connection(pool) as conn:
            assert await conn.fetchval("SELECT 1") == 1
        with pytest.raises(errors.Unavailable) as caught:
            async with transaction(pool) as conn:
                proxy.cut()
                await conn.fetchval("SELECT pg_sleep(1)")
        assert caught.value.reason == "POSTGRES_UNAVAILABLE"
        with pytest.raises(errors.Unavailable):
            async with connection(pool) as conn:
                await conn.fetchval("SELECT 1")
        proxy.heal()
        async with connection(pool) as conn:
            assert await conn.fetchval("SELECT 2") == 2


async def test_a_stalled_database_is_unavailable_before_the_deadline(
    database: str,
) -> None:
    port = int(database.rsplit(":", 1)[1].split("/", maxsplit=1)[0])
    async with (
        FaultProxy("127.0.0.1", port) as proxy,
        create_pool(database.replace(f":{port}/", f":{proxy.port}/"), max_size=2) as pool,
    ):
        for opened in (connection, transaction):
            proxy.stall()
            with budget(1.0):
                with pytest.raises(errors.Unavailable) as caught:
                    async with opened(pool) as conn:
                        await conn.fetchval("SELECT 1")
                left = left_seconds()
            assert caught.value.reason == "POSTGRES_UNAVAILABLE"
            assert left is not None
            assert left > 0
            proxy.heal()
            async with opened(pool) as conn:
                assert await conn.fetchval("SELECT 2") == 2


async def test_a_connection_that_the_server_ended_is_unavailable(database: str) -> None:
    """The server announces the end of an idle connection before the socket closes: asyncpg then raises
    InternalClientError, which once stopped whole processes when PostgreSQL crashed."""
    port = int(database.rsplit(":", 1)[1].split("/", maxsplit=1)[0])
    async with (
        FaultProxy("127.0.0.1", port) as proxy,
        create_pool(database.replace(f":{port}/", f":{proxy.port}/"), max_size=1) as pool,
        create_pool(database, max_size=1) as other,
    ):
        for opened in (connection, transaction):
            async with opened(pool) as conn:
                backend = await conn.fetchval("SELECT pg_backend_pid()")
            proxy.hide_ends()
            async with connection(other) as conn:
                assert await conn.fetchval("SELECT pg_terminate_backend($1, 5000)", backend)
            await asyncio.sleep(0.1)  # the announcement arrives, and shows nowhere
            with pytest.raises(errors.Unavailable) as caught:
                async with opened(pool) as conn:
                    await conn.fetchval("SELECT 1")
            assert caught.value.reason == "POSTGRES_UNAVAILABLE"
            async with opened(pool) as conn:
                assert await conn.fetchval("SELECT 2") == 2
            proxy.heal()


async def test_a_statement_without_a_deadline_times_out(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "GRACE_SECONDS", 0.0)
    port = int(database.rsplit(":", 1)[1].split("/", maxsplit=1)[0])
    async with (
        FaultProxy("127.0.0.1", port) as proxy,
        create_pool(
            database.replace(f":{port}/", f":{proxy.port}/"), max_size=1, statement_timeout_seconds=0.5
        ) as pool,
    ):
        proxy.stall()
        with pytest.raises(errors.Unavailable) as caught:
            async with connection(pool) as conn:
                await conn.fetchval("SELECT 1")
        assert caught.value.reason == "POSTGRES_UNAVAILABLE"
        proxy.heal()


async def test_an_exhausted_pool_is_unavailable_within_the_budget(database: str) -> None:
    async with create_pool(database, max_size=1) as pool, connection(pool):
        began = asyncio.get_running_loop().time()
        with budget(0.2), pytest.raises(errors.Unavailable, match="free in time"):
            async with connection(pool):
                pass
        assert asyncio.get_running_loop().time() - began < 2


async def test_a_wrong_address_is_reported_without_the_password() -> None:
    with pytest.raises(errors.Unavailable) as caught:
        async with create_pool("postgresql://u:hunter2@127.0.0.1:1/x", wait_seconds=0.3):
            pass
    assert "127.0.0.1:1" in caught.value.message
    assert "hunter2" not in caught.value.message


async def test_a_missing_database_is_reported_without_retries(database: str) -> None:
    with pytest.raises(errors.FailedPrecondition) as caught:
        async with create_pool(database.rsplit("/", 1)[0] + "/absent", wait_seconds=20):
            pass
    assert caught.value.reason == "POSTGRES_REFUSED"


@pytest.mark.parametrize("plan_once", [False, True])
async def test_a_pool_that_plans_once_has_one_plan_for_all_arguments(postgres: Any, plan_once: bool) -> None:
    dsn = postgres.dsn("postgres")
    # The number of elements is known to a plan for its arguments only, which looks cheaper.
    statement = "SELECT count(*) FROM unnest($1::int[]) a JOIN unnest($2::int[]) b ON a = b"
    async with create_pool(dsn, max_size=1, plan_once=plan_once) as pool, connection(pool) as conn:
        for n in range(8):
            assert await conn.fetchval(statement, [n], [n]) == 1
        plans = await conn.fetchrow(
            "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement = $1", statement
        )
    assert tuple(plans) == (8, 0) if plan_once else plans["custom_plans"] >= 5
