"""Transactions, migrations, leases and request ids on the real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flywheel_common import errors
from flywheel_common.context import left_seconds
from flywheel_common.deadline import budget
from flywheel_common.postgres import pool as postgres_module
from flywheel_common.postgres.idempotency import Idempotency, idempotent
from flywheel_common.postgres.lease import Lease, fence
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import Pool, connection, create_pool, transaction
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    async with create_pool(database, max_size=8, statement_timeout_seconds=5) as opened:
        await migrate(opened)
        async with connection(opened) as conn:
            await conn.execute(
                "CREATE TABLE thing (name text CONSTRAINT uq_thing_name PRIMARY KEY, n int CHECK (n > 0))"
            )
        yield opened


async def count(pool: Pool, table: str) -> int:
    async with connection(pool) as conn:
        return int(await conn.fetchval(f"SELECT count(*) FROM {table}"))


# ------------------------------------------------------------------------------------------- transactions


async def test_a_constraint_becomes_the_domain_error_it_means(pool: Pool) -> None:
    translate = {"uq_thing_name": errors.AlreadyExists("There is one.", reason="THING_EXISTS")}
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
    assert sorted(type(o).__name__ for o in outcomes) == ["Aborted", "NoneType"]


async def test_a_slow_statement_is_a_deadline_exceeded(database: str) -> None:
    async with create_pool(database, statement_timeout_seconds=0.2) as pool:
        with pytest.raises(errors.DeadlineExceeded):
            async with connection(pool) as conn:
                await conn.execute("SELECT pg_sleep(5)")
        async with connection(pool) as conn:
            assert await conn.fetchval("SELECT 1") == 1


async def test_a_lost_database_is_unavailable_and_comes_back_by_itself(database: str, postgres: Any) -> None:
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


async def test_a_stalled_database_is_unavailable_before_the_deadline_and_comes_back_by_itself(
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


async def test_a_statement_without_a_deadline_does_not_wait_for_ever(
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


async def test_a_wrong_address_names_itself_without_the_password() -> None:
    with pytest.raises(errors.Unavailable) as caught:
        async with create_pool("postgresql://u:hunter2@127.0.0.1:1/x", wait_seconds=0.3):
            pass
    assert "127.0.0.1:1" in caught.value.message
    assert "hunter2" not in caught.value.message


async def test_a_missing_database_is_said_at_once(database: str) -> None:
    with pytest.raises(errors.FailedPrecondition) as caught:
        async with create_pool(database.rsplit("/", 1)[0] + "/absent", wait_seconds=20):
            pass
    assert caught.value.reason == "POSTGRES_REFUSED"


# --------------------------------------------------------------------------------------------- migrations


def write(folder: Path, **files: str) -> Path:
    target = folder / "flywheel_x" / "migrations"
    target.mkdir(parents=True, exist_ok=True)
    for name, sql in files.items():
        (target / f"{name}.sql").write_text(sql)
    return target


async def test_migrations_apply_once_however_many_processes_start(database: str, tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        **{"0001_a": "CREATE TABLE a (x int)", "0002_b": "CREATE TABLE b (x int); INSERT INTO b VALUES (1)"},
    )
    async with create_pool(database, max_size=8) as pool:
        applied = await asyncio.gather(*(migrate(pool, folder) for _ in range(5)))
        assert sorted(applied)[:4] == [0, 0, 0, 0]
        assert await count(pool, "b") == 1
        write(tmp_path, **{"0003_c": "INSERT INTO b VALUES (2)"})
        assert await migrate(pool, folder) == 1
        assert await count(pool, "b") == 2


async def test_a_changed_migration_is_refused(database: str, tmp_path: Path) -> None:
    folder = write(tmp_path, **{"0001_a": "CREATE TABLE a (x int)"})
    async with create_pool(database) as pool:
        await migrate(pool, folder)
        write(tmp_path, **{"0001_a": "CREATE TABLE a (x bigint)"})
        with pytest.raises(errors.FailedPrecondition) as caught:
            await migrate(pool, folder)
        assert caught.value.reason == "MIGRATION_CHANGED"


async def test_a_broken_migration_leaves_nothing_and_can_be_mended(database: str, tmp_path: Path) -> None:
    folder = write(tmp_path, **{"0001_a": "CREATE TABLE a (x int); SELECT broken"})
    async with create_pool(database) as pool:
        with pytest.raises(Exception, match="broken"):
            await migrate(pool, folder)
        write(tmp_path, **{"0001_a": "CREATE TABLE a (x int)"})
        assert await migrate(pool, folder) == 1


async def test_older_code_refuses_a_newer_database(database: str, tmp_path: Path) -> None:
    folder = write(tmp_path, **{"0001_a": "SELECT 1", "0002_b": "SELECT 1"})
    async with create_pool(database) as pool:
        await migrate(pool, folder)
        (folder / "0002_b.sql").unlink()
        with pytest.raises(errors.FailedPrecondition) as caught:
            await migrate(pool, folder)
        assert caught.value.reason == "SCHEMA_TOO_NEW"


@pytest.mark.parametrize("name", ["1_a", "0001-a", "0001_A"])
async def test_misnamed_migrations_are_refused(tmp_path: Path, name: str) -> None:
    from flywheel_common.postgres.migrate import read_migrations

    with pytest.raises(errors.FailedPrecondition):
        read_migrations(write(tmp_path, **{name: "SELECT 1"}))


def test_numbers_may_be_left_out_but_not_used_twice(tmp_path: Path) -> None:
    from flywheel_common.postgres.migrate import read_migrations

    folder = write(tmp_path, **{"0001_a": "SELECT 1", "0007_b": "SELECT 1"})
    assert [m.number for m in read_migrations(folder)] == [1, 7]
    with pytest.raises(errors.FailedPrecondition) as caught:
        read_migrations(write(tmp_path, **{"0007_c": "SELECT 1"}))
    assert caught.value.reason == "INVALID_MIGRATIONS"


# --------------------------------------------------------------------------------------------- request ids


async def create(pool: Pool, request_id: str, name: str, scope: str | None = None) -> str:
    async def effect(conn: Any) -> Value:
        await asyncio.sleep(0.005)
        n = await conn.fetchval(
            "INSERT INTO thing VALUES ($1, (SELECT count(*) + 1 FROM thing)) RETURNING n", name
        )
        return Value(string_value=f"{name}:{n}")

    request = Value(string_value=name)
    return (
        await Idempotency(pool).run("Create", request_id, request, Value, effect, scope=scope)
    ).string_value


async def test_a_hundred_concurrent_equal_requests_have_one_effect_and_equal_answers(pool: Pool) -> None:
    answers = await asyncio.gather(*(create(pool, "r1", "a") for _ in range(100)))
    assert set(answers) == {"a:1"}
    assert await count(pool, "thing") == 1
    assert await count(pool, "idempotent_request") == 1


async def test_another_body_under_the_same_id_is_refused_and_changes_nothing(pool: Pool) -> None:
    await create(pool, "r1", "a")
    with pytest.raises(errors.InvalidArgument) as caught:
        await create(pool, "r1", "b")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert await count(pool, "thing") == 1


async def test_a_failed_first_attempt_leaves_the_id_free(pool: Pool) -> None:
    with pytest.raises(RuntimeError):
        async with transaction(pool) as conn, idempotent(conn, "Create", "r1", b"body"):
            await conn.execute("INSERT INTO thing VALUES ('a', 1)")
            raise RuntimeError
    assert await create(pool, "r1", "b") == "b:1"


async def test_a_waiting_repeat_takes_over_when_the_first_fails(pool: Pool) -> None:
    entered, fail = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with transaction(pool) as conn, idempotent(conn, "Create", "r1", Value(string_value="a")):
            entered.set()
            await fail.wait()
            raise RuntimeError

    task = asyncio.create_task(first())
    await entered.wait()
    second = asyncio.create_task(create(pool, "r1", "a"))
    await asyncio.sleep(0.1)
    assert not second.done()
    fail.set()
    assert await second == "a:1"
    with pytest.raises(RuntimeError):
        await task


async def test_callers_do_not_share_request_ids(pool: Pool) -> None:
    assert await create(pool, "r1", "a", scope="ada") == "a:1"
    assert await create(pool, "r1", "b", scope="bob") == "b:2"


async def test_without_an_id_every_call_has_its_effect(pool: Pool) -> None:
    assert await create(pool, "", "a") == "a:1"
    assert await create(pool, "", "b") == "b:2"


async def test_forgetting_the_answer_is_a_bug_that_is_noticed(pool: Pool) -> None:
    with pytest.raises(RuntimeError, match="must store its answer"):
        async with transaction(pool) as conn, idempotent(conn, "Create", "r1", b"body"):
            pass
    assert await count(pool, "idempotent_request") == 0


# ---------------------------------------------------------------------------------------------------- lease


async def test_one_of_many_gets_the_lease(pool: Pool) -> None:
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
    assert await two.try_acquire() == 2  # already mine
    await two.release(2)
    assert await one.try_acquire() == 3


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
            await conn.execute("INSERT INTO thing VALUES ('zombie', 1)")
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


async def test_work_is_cancelled_before_another_can_start_when_the_database_stalls(database: str) -> None:
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
