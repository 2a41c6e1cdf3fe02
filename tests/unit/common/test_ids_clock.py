"""Ids and the manual clock."""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from flywheel_common.clock import ManualClock
from flywheel_common.ids import SystemIds, uuid7


def test_the_layout_is_uuid_version_7() -> None:
    # RFC 9562, appendix A.6: unix_ts_ms 0x017F22E279B0, rand_a 0xCC3, rand_b 0x18C4DC0C0C07398F
    assert uuid7(0x017F22E279B0, 0xCC3 << 62 | 0x18C4DC0C0C07398F) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


def test_ids_sort_in_creation_order() -> None:
    ids = SystemIds()
    made = [ids.new() for _ in range(20_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert all(uuid.UUID(i).version == 7 for i in made[:100])


def test_ids_are_unique_across_threads() -> None:
    ids = SystemIds()
    with ThreadPoolExecutor(4) as pool:
        made = [i for chunk in pool.map(lambda _: [ids.new() for _ in range(2000)], range(4)) for i in chunk]
    assert len(set(made)) == 8000


async def test_sleepers_wake_in_order_of_their_due_time() -> None:
    clock, woken = ManualClock(), []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    async with asyncio.TaskGroup() as tasks:
        for seconds in (3.0, 1.0, 2.0):
            tasks.create_task(sleeper(seconds))
        await asyncio.sleep(0)
        clock.advance(2.0)
        await asyncio.sleep(0.001)
        assert woken == [1.0, 2.0]
        clock.advance(1.0)
    assert woken == [1.0, 2.0, 3.0]
    assert clock.now() == datetime(2013, 1, 1, tzinfo=UTC) + timedelta(seconds=3)
    assert clock.monotonic() == 3.0
