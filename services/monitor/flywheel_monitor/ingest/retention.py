"""Deletion of predictions that are older than the retention time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_common.postgres.transactions import Store
from flywheel_monitor.ingest.ports import Retention

PRUNE_SECONDS = 60.0
"""Pause after a pass that found nothing to delete."""


async def prune_forever(store: Store[Retention], keep: timedelta, keep_minutes_us: int, clock: Clock) -> None:
    """Delete predictions that arrived longer ago than `keep`, in small transactions; continues after outages
    of the store."""
    while True:
        try:
            async with store.transaction() as records:
                pruned = await records.prune(clock.now() - keep)
            async with store.transaction() as records:
                pruned += await records.compact(keep_minutes_us)
        except FlywheelError as error:
            if not error.retryable:
                raise
            pruned = 0
        if not pruned:
            await asyncio.sleep(PRUNE_SECONDS)
