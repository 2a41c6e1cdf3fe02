"""One law for mutations that are asked for again, in memory and in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from flywheel_common.context import Call, Principal, current_call
from flywheel_common.errors import InvalidArgument
from flywheel_registry.ports import Records, Store
from flywheel_registry.resources import Model

AT = datetime(2026, 1, 1, tzinfo=UTC)
Effect = Callable[[Records], Awaitable[bytes]]


def making(name: str, answer: bytes = b"made") -> Effect:
    async def effect(records: Records) -> bytes:
        assert await records.add_model(Model(f"projects/p/models/{name}", created_at=AT))
        return answer

    return effect


async def names(store: Store) -> list[str]:
    async with store.reading() as records:
        return [model.name.rsplit("/", 1)[1] for model in await records.models("p", "", {}, 99)]


async def test_a_repeat_gets_the_first_answer_and_has_no_effect(store: Store) -> None:
    assert b"made" == await store.once("Make", "one", b"body", making("a"))
    assert b"made" == await store.once("Make", "one", b"body", making("b", b"other"))
    assert ["a"] == await names(store)


async def test_an_answer_of_no_bytes_is_an_answer(store: Store) -> None:
    for _ in range(2):
        assert b"" == await store.once("Make", "one", b"", making("a", b""))
    assert ["a"] == await names(store)


async def test_another_body_under_a_known_id_is_refused_and_changes_nothing(store: Store) -> None:
    await store.once("Make", "one", b"body", making("a"))
    with pytest.raises(InvalidArgument) as reused:
        await store.once("Make", "one", b"another", making("b"))
    assert ("REQUEST_ID_REUSED", {"request_id": "one"}) == (reused.value.reason, reused.value.metadata)
    assert ["a"] == await names(store)
    assert b"made" == await store.once("Make", "one", b"body", making("c"))


async def test_equal_calls_that_race_have_one_effect_and_one_answer(store: Store) -> None:
    async def slowly(records: Records) -> bytes:
        await asyncio.sleep(0.05)
        return await making("a")(records)

    answers = await asyncio.gather(*(store.once("Make", "one", b"body", slowly) for _ in range(8)))
    assert [b"made"] * 8 == answers
    assert ["a"] == await names(store)


async def test_a_call_that_failed_leaves_nothing_and_the_next_takes_its_place(store: Store) -> None:
    at_work = asyncio.Event()

    async def failing(records: Records) -> bytes:
        await making("a")(records)
        at_work.set()
        await asyncio.sleep(0.05)
        raise RuntimeError("dies here")

    first = asyncio.create_task(store.once("Make", "one", b"body", failing))
    await at_work.wait()
    second = await store.once("Make", "one", b"body", making("b"))
    with pytest.raises(RuntimeError, match="dies here"):
        await first
    assert (b"made", ["b"]) == (second, await names(store))


async def test_without_an_id_every_call_has_its_effect(store: Store) -> None:
    for name in ("a", "b"):
        assert b"made" == await store.once("Make", "", b"body", making(name))
    assert ["a", "b"] == await names(store)


async def test_ids_are_apart_per_method_and_caller(store: Store) -> None:
    await store.once("Make", "one", b"body", making("a"))
    await store.once("Build", "one", b"another", making("b"))
    token = current_call.set(Call(principal=Principal("bob")))
    try:
        await store.once("Make", "one", b"his own", making("c"))
    finally:
        current_call.reset(token)
    assert ["a", "b", "c"] == await names(store)


async def test_an_id_that_is_too_long_is_refused(store: Store) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await store.once("Make", "x" * 201, b"body", making("a"))
    assert "INVALID_REQUEST_ID" == refused.value.reason
    assert [] == await names(store)
    assert b"made" == await store.once("Make", "x" * 200, b"body", making("a"))
