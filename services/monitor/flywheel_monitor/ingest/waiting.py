"""Counting of predictions that waited for the reference of their version."""

from __future__ import annotations

import asyncio

from flywheel_common.errors import FlywheelError
from flywheel_common.postgres.transactions import Store
from flywheel_common.telemetry.logs import get_logger
from flywheel_monitor.ingest.ports import WaitingPredictions

log = get_logger(__name__)


async def count_waiting_once(store: Store[WaitingPredictions]) -> int:
    """Count the waiting batches of every version whose reference can be had now; returns how many. A version
    that has to wait longer delays no other one."""
    counted = 0
    async with store.reading() as records:
        versions = await records.waiting_versions()
    for version in versions:
        try:
            while True:
                async with store.transaction() as records:
                    batches = await records.count_waiting(version)
                if not batches:
                    break
                counted += batches
        except FlywheelError as error:
            if not error.retryable:
                raise
            log.warning("predictions wait for a reference", version=version, reason=error.reason)
    return counted


async def count_waiting_forever(store: Store[WaitingPredictions], poll_seconds: float) -> None:
    """Continues after outages of the store."""
    while True:
        try:
            await count_waiting_once(store)
        except FlywheelError as error:
            if not error.retryable:
                raise
        await asyncio.sleep(poll_seconds)
