"""Unit tests of reads of production versions that share a statement."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from flywheel_common.context import Call, current_call
from flywheel_common.postgres.errors import PostgresUnavailable
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.models.errors import UnknownModel
from flywheel_registry.models.production_reads import ProductionReads
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.stages.transitions import Stage
from tests.support.builders.registry import CREATED_AT, MODEL, OTHER_MODEL, add_model


class SlowStore(MemoryStore):
    """A store whose statements read at once and answer when `go` is set; they fail with `error`."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        self.statements: list[list[str]] = []
        self.error: Exception | None = None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        async with super().reading() as records:
            yield _SlowRecords(self, records)


class _SlowRecords:
    def __init__(self, store: SlowStore, records: Any) -> None:
        self._store = store
        self._records = records

    async def production_versions(self, models: list[str]) -> dict[str, ModelVersion | None]:
        self._store.statements.append(sorted(models))
        found: dict[str, ModelVersion | None] = await self._records.production_versions(models)
        self._store.begun.set()
        await self._store.go.wait()
        if self._store.error is not None:
            raise self._store.error
        return found


@asynccontextmanager
async def running(store: MemoryStore) -> AsyncIterator[ProductionReads[int]]:
    reads = ProductionReads(store, lambda version: 0 if version is None else version.number)
    task = asyncio.create_task(reads.run())
    try:
        yield reads
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def promote(store: MemoryStore, number: int) -> None:
    async with store.transaction() as records:
        champion = await records.champion(MODEL)
        if champion is not None:
            await records.move_version(champion, Stage.ARCHIVED, CREATED_AT, "ann")
        version = await records.version(MODEL, number)
        assert version is not None
        await records.move_version(version, Stage.PRODUCTION, CREATED_AT, "ann")


async def test_a_read_shows_what_was_committed_while_an_earlier_one_ran() -> None:
    store = SlowStore()
    await add_model(store, versions=2)
    await promote(store, 1)
    async with running(store) as reads:
        earlier = asyncio.create_task(reads.of(MODEL))
        await store.begun.wait()
        await promote(store, 2)
        later = asyncio.create_task(reads.of(MODEL))
        await asyncio.sleep(0)
        store.go.set()
        assert 2 == await later
        assert 1 == await earlier


async def test_callers_that_wait_share_one_statement() -> None:
    store = SlowStore()
    await add_model(store, versions=1)
    await add_model(store, OTHER_MODEL, versions=1)
    await promote(store, 1)
    async with running(store) as reads:
        first = asyncio.create_task(reads.of(MODEL))
        await store.begun.wait()
        rest = [asyncio.create_task(reads.of(m)) for m in (MODEL, OTHER_MODEL, "projects/p/models/none") * 5]
        await asyncio.sleep(0)
        store.go.set()
        assert 1 == await first
        answers = await asyncio.gather(*rest, return_exceptions=True)
    assert [1, 0] * 5 == [answer for answer in answers if isinstance(answer, int)]
    assert [UnknownModel] * 5 == [type(answer) for answer in answers if isinstance(answer, Exception)]
    assert [[MODEL], sorted((MODEL, OTHER_MODEL, "projects/p/models/none"))] == store.statements


async def test_a_caller_that_leaves_disturbs_no_other_one() -> None:
    store = SlowStore()
    await add_model(store, versions=1)
    async with running(store) as reads:
        leaving, staying = (asyncio.create_task(reads.of(MODEL)) for _ in range(2))
        await store.begun.wait()
        leaving.cancel()
        await asyncio.sleep(0)
        store.go.set()
        assert 0 == await staying
        assert leaving.cancelled()


@pytest.mark.parametrize("error", [PostgresUnavailable("down"), RuntimeError("a bug")])
async def test_an_error_reaches_the_callers_and_the_next_read_works(error: Exception) -> None:
    store = SlowStore()
    store.go.set()
    await add_model(store, versions=1)
    async with running(store) as reads:
        store.error = error
        with pytest.raises(type(error)):
            await reads.of(MODEL)
        store.error = None
        assert 0 == await reads.of(MODEL)


async def test_a_store_that_hangs_is_reported_before_the_deadline() -> None:
    store = SlowStore()
    await add_model(store, versions=1)
    async with running(store) as reads:
        call = Call()
        call.deadline = time.monotonic() + 0.4
        current_call.set(call)
        with pytest.raises(PostgresUnavailable):
            await reads.of(MODEL)
        assert time.monotonic() < call.deadline
