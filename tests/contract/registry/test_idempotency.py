"""Contract tests for idempotent mutations, in memory and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from flywheel_common.context import Call, Principal, current_call
from flywheel_common.errors import InvalidArgument
from flywheel_common.postgres.transactions import Store
from flywheel_registry.models.model import Model
from flywheel_registry.rollouts.ports import RolloutRecords
from tests.support.builders.registry import CREATED_AT

Effect = Callable[[RolloutRecords], Awaitable[bytes]]


def adding_model(name: str, answer: bytes = b"made") -> Effect:
    async def effect(records: RolloutRecords) -> bytes:
        assert await records.add_model(Model(f"projects/p/models/{name}", created_at=CREATED_AT))
        return answer

    return effect


async def names(store: Store[RolloutRecords]) -> list[str]:
    async with store.reading() as records:
        return [model.name.rsplit("/", 1)[1] for model in await records.models("p", "", {}, 99)]


async def test_a_repeat_returns_the_first_answer_without_effect(store: Store[RolloutRecords]) -> None:
    assert b"made" == await store.once("Make", "one", b"body", adding_model("a"))
    assert b"made" == await store.once("Make", "one", b"body", adding_model("b", b"other"))
    assert ["a"] == await names(store)


async def test_an_empty_answer_is_repeated_too(store: Store[RolloutRecords]) -> None:
    for _ in range(2):
        assert b"" == await store.once("Make", "one", b"", adding_model("a", b""))
    assert ["a"] == await names(store)


async def test_a_reused_id_with_another_body_changes_nothing(store: Store[RolloutRecords]) -> None:
    await store.once("Make", "one", b"body", adding_model("a"))
    with pytest.raises(InvalidArgument) as reused:
        await store.once("Make", "one", b"another", adding_model("b"))
    assert ("REQUEST_ID_REUSED", {"request_id": "one"}) == (reused.value.reason, reused.value.metadata)
    assert ["a"] == await names(store)
    assert b"made" == await store.once("Make", "one", b"body", adding_model("c"))


async def test_concurrent_equal_calls_have_one_effect_and_one_answer(store: Store[RolloutRecords]) -> None:
    async def slowly(records: RolloutRecords) -> bytes:
        await asyncio.sleep(0.05)
        return await adding_model("a")(records)

    answers = await asyncio.gather(*(store.once("Make", "one", b"body", slowly) for _ in range(8)))
    assert [b"made"] * 8 == answers
    assert ["a"] == await names(store)


async def test_a_waiting_repeat_runs_after_the_first_call_failed(store: Store[RolloutRecords]) -> None:
    started = asyncio.Event()

    async def failing(records: RolloutRecords) -> bytes:
        await adding_model("a")(records)
        started.set()
        await asyncio.sleep(0.05)
        raise RuntimeError("fails here")

    first = asyncio.create_task(store.once("Make", "one", b"body", failing))
    await started.wait()
    second = await store.once("Make", "one", b"body", adding_model("b"))
    with pytest.raises(RuntimeError, match="fails here"):
        await first
    assert (b"made", ["b"]) == (second, await names(store))


async def test_calls_without_an_id_all_take_effect(store: Store[RolloutRecords]) -> None:
    for name in ("a", "b"):
        assert b"made" == await store.once("Make", "", b"body", adding_model(name))
    assert ["a", "b"] == await names(store)


async def test_ids_are_scoped_by_method_and_caller(store: Store[RolloutRecords]) -> None:
    await store.once("Make", "one", b"body", adding_model("a"))
    await store.once("Build", "one", b"another", adding_model("b"))
    token = current_call.set(Call(principal=Principal("bob")))
    try:
        await store.once("Make", "one", b"of bob", adding_model("c"))
    finally:
        current_call.reset(token)
    assert ["a", "b", "c"] == await names(store)


async def test_an_id_that_is_too_long_is_rejected(store: Store[RolloutRecords]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await store.once("Make", "x" * 201, b"body", adding_model("a"))
    assert "INVALID_REQUEST_ID" == refused.value.reason
    assert [] == await names(store)
    assert b"made" == await store.once("Make", "x" * 200, b"body", adding_model("a"))
