"""Windows that are read again and again while rows arrive, and how many statements a read takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from flywheel_common.postgres.pool import Pool, connection
from flywheel_monitor.comparison.rollout_evidence import rollout_evidence
from flywheel_monitor.evaluation.report_lookup import find_report
from flywheel_monitor.performance.served import served_performance
from flywheel_monitor.store.postgres.pool import monitor_pool
from flywheel_monitor.store.postgres.records import PostgresRecords, PostgresStore
from flywheel_monitor.store.postgres.versions import VersionCache
from flywheel_monitor.windows.pieces import DAY_US
from flywheel_monitor.windows.span import Span
from tests.support.builders.monitor import (
    CHALLENGER,
    HOUR_US,
    MINUTE_US,
    MODEL,
    PANE_US,
    START_US,
    predictions,
    version_name,
)
from tests.support.servers.monitor import LocalMonitor, known_references, memory_monitor

ROLLOUT = f"{MODEL}/rollouts/1"
WINDOWS = [
    Span(START_US, START_US + 6 * HOUR_US),
    Span(START_US + 17 * MINUTE_US, START_US + 30 * HOUR_US),
    Span(START_US - 3 * DAY_US, START_US + 40 * DAY_US),
]


class CountingConnection:
    """A connection that counts its round trips, and the rows that `fetch` returns."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn
        self.statements = 0
        self.rows = 0

    async def fetch(self, *args: Any) -> Any:
        self.statements += 1
        found = await self._conn.fetch(*args)
        self.rows += len(found)
        return found

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._conn, name)
        if name in ("fetchrow", "fetchval", "execute"):
            self.statements += 1
        if name == "transaction":
            self.statements += 2
        return found


class CountingStore:
    """The reads of a store, and the statements and rows of the last one."""

    def __init__(self, store: PostgresStore, pool: Pool) -> None:
        self._store = store
        self._pool = pool
        self.statements = 0
        self.rows = 0

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[PostgresRecords]:
        async with connection(self._pool) as conn:
            counting = CountingConnection(conn)
            yield self._store.on(counting)
            self.statements, self.rows = counting.statements, counting.rows


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    async with monitor_pool(database) as found:
        yield found


def new_store(pool: Pool) -> PostgresStore:
    return PostgresStore(pool, VersionCache(pool, known_references()), PANE_US)


@pytest.mark.parametrize("limits", ["usual", "few slices at once", "little memory"])
async def test_windows_read_repeatedly_equal_those_of_a_new_process(
    edge: LocalMonitor, pool: Pool, limits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limits == "few slices at once":
        monkeypatch.setattr("flywheel_monitor.store.postgres.pane_reads.SLICES_AT_ONCE", 2)
    if limits == "little memory":
        monkeypatch.setattr("flywheel_monitor.store.postgres.pane_cache.MOST_BYTES", 60_000)
    rng, memory = np.random.default_rng(5), memory_monitor()
    kept = new_store(pool)
    for turn in range(12):
        for partition in range(3):
            n = int(rng.integers(1, 120))
            times = START_US + rng.integers(0, int(rng.choice([HOUR_US, 30 * HOUR_US, 35 * DAY_US])), n)
            batch = predictions(
                [f"{turn}-{partition}-{i}" for i in range(n)],
                rng.uniform(size=n),
                times=times,
                values=rng.normal(size=n),
            )
            await edge.predicted(batch, partition=partition)
            await memory.predicted(batch, partition=partition)
        new = new_store(pool)
        for span in WINDOWS:
            found = []
            for store in (kept, new, memory.store):
                async with store.reading() as records:
                    version = await records.version(version_name())
                    assert version is not None
                    found.append(await records.window(version, span))
            again, first, counted = found
            assert first.count_blocks.tolist() == again.count_blocks.tolist()
            assert first.sum_blocks.tolist() == again.sum_blocks.tolist()
            assert (counted.predictions, counted.counts.tolist()) == (
                again.predictions,
                again.counts.tolist(),
            )
            assert counted.sums.tolist() == again.sums.tolist()


async def test_a_window_without_changes_is_the_same_object(edge: LocalMonitor, pool: Pool) -> None:
    await edge.predicted(predictions(["a", "b"], times=[START_US, START_US + HOUR_US]))
    store, found = new_store(pool), []
    for number in range(3):
        async with store.reading() as records:
            version = await records.version(version_name())
            assert version is not None
            found.append(await records.window(version, WINDOWS[0]))
        if number == 1:
            await edge.predicted(predictions(["c"], times=[START_US]))
    assert found[1] is found[0]
    assert (2, 3) == (found[1].predictions, found[2].predictions)


async def test_hours_and_minutes_are_read_again_only_in_days_that_changed(
    edge: LocalMonitor, pool: Pool
) -> None:
    start, hours = START_US // DAY_US * DAY_US + 30 * MINUTE_US, 10 * 24
    times = start + np.arange(hours) * HOUR_US
    await edge.predicted(predictions([f"a{i}" for i in range(hours)], times=times))
    store = CountingStore(new_store(pool), pool)

    async def rows(first: int, last: int) -> tuple[int, int]:
        """(rows that a read of the window needs, predictions in it)"""
        async with store.reading() as records:
            version = await records.version(version_name())
            assert version is not None
            window = await records.window(version, Span(first, last))
        return store.rows, window.predictions

    end = start + hours * HOUR_US
    days = 10
    needed, found = await rows(start, end)
    assert needed > 2 * hours, "the first read finds the state of all hours, and their panes"
    assert found == hours
    assert await rows(start, end) == (days, hours)
    await edge.predicted(predictions(["late"], times=[int(times[100]) + 1]))
    assert await rows(start, end) == (days + 24 + 1, hours + 1), "24 hours of a day, and one pane of them"
    assert await rows(start, end) == (days, hours + 1)
    # A window that moves on has read all whole days before.
    needed, found = await rows(start + HOUR_US, end + HOUR_US)
    assert needed < 2 * days + 6 * 24
    assert found == hours


async def test_a_read_takes_few_statements(edge: LocalMonitor, pool: Pool) -> None:
    n = 6_000  # More than are read for an exact AUC.
    times = START_US + np.arange(n) * MINUTE_US

    async def predicted(name: str, chosen: np.ndarray, **fields: Any) -> None:
        ids = [f"{name}{i}" for i in range(len(chosen))]
        await edge.predicted(predictions(ids, times=chosen, rollout=ROLLOUT, **fields))

    await predicted("a", times)
    await predicted("b", times, role=CHALLENGER, release=2, version=2)
    store = CountingStore(new_store(pool), pool)
    start, end = int(times[0]), int(times[-1]) + MINUTE_US

    async def report() -> None:
        await find_report(
            store,
            version_name(),
            start_us=start,
            end_us=end,
            segment="",
            pane_us=PANE_US,  # type: ignore[arg-type]
        )

    async def performance() -> None:
        await served_performance(
            store,
            version_name(),
            start_us=start,
            end_us=end,
            segment="",
            pane_us=PANE_US,  # type: ignore[arg-type]
        )

    async def comparison() -> None:
        releases = f"{MODEL}/releases/1", f"{MODEL}/releases/2"
        await rollout_evidence(
            store,
            ROLLOUT,
            *releases,
            shadow=False,
            start_us=start,
            alpha=0.0,  # type: ignore[arg-type]
        )

    for read, most in ((report, 3), (performance, 3), (comparison, 5)):
        await read()
        await read()
        assert store.statements <= most, f"{read.__name__} without a change"
        await predicted(f"{read.__name__}-late", times[-3:] + 1)
        await read()
        assert store.statements <= most, f"{read.__name__} after a change"
