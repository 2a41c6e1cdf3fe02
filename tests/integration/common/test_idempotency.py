"""Request ids on PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flywheel_common import errors
from flywheel_common.postgres.idempotency import Idempotency, idempotent
from flywheel_common.postgres.pool import Pool, transaction
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.row_counts import count


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


async def test_100_concurrent_equal_requests_have_one_effect(pool: Pool) -> None:
    answers = await asyncio.gather(*(create(pool, "r1", "a") for _ in range(100)))
    assert set(answers) == {"a:1"}
    assert await count(pool, "thing") == 1
    assert await count(pool, "idempotent_request") == 1


async def test_a_reused_request_id_with_another_body_is_refused(pool: Pool) -> None:
    await create(pool, "r1", "a")
    with pytest.raises(errors.InvalidArgument) as caught:
        await create(pool, "r1", "b")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert await count(pool, "thing") == 1


async def test_a_failed_first_call_releases_the_request_id(pool: Pool) -> None:
    with pytest.raises(RuntimeError):
        async with transaction(pool) as conn, idempotent(conn, "Create", "r1", b"body"):
            await conn.execute("INSERT INTO thing VALUES ('a', 1)")
            raise RuntimeError
    assert await create(pool, "r1", "b") == "b:1"


async def test_a_waiting_repeat_runs_when_the_first_call_fails(pool: Pool) -> None:
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


async def test_an_effect_without_a_stored_response_is_an_error(pool: Pool) -> None:
    with pytest.raises(RuntimeError, match="must store its response"):
        async with transaction(pool) as conn, idempotent(conn, "Create", "r1", b"body"):
            pass
    assert await count(pool, "idempotent_request") == 0
