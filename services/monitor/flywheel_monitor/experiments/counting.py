"""Counting of waiting events in the running experiments of their models.

Subjects have predictions in many partitions, so that the consumers of partitions cannot count them without
locks on each other. They write events, and one replica counts them, in the order in which they were written.
"""

from __future__ import annotations

import asyncio

from flywheel_common.errors import FlywheelError
from flywheel_common.postgres.transactions import Store
from flywheel_monitor.experiments.ports import ExperimentCounts, of_model
from flywheel_monitor.experiments.tally import count

EVENTS_AT_ONCE = 5_000
"""Most events of one transaction, which bounds its memory and time."""


async def count_events_once(store: Store[ExperimentCounts]) -> int:
    """Count the oldest waiting events; returns how many were taken. A crash takes none of them."""
    async with store.transaction() as records:
        events = await records.take_events(EVENTS_AT_ONCE)
        for model, mine in of_model(events).items():
            for experiment, tally in await records.lock_experiments(model):
                counted = [e for e in mine if e.arrived_at >= experiment.created_at]
                known = await records.subjects(experiment.id, {e.subject for e in counted})
                changed = count(experiment.declaration, tally, known, counted)
                if counted:
                    await records.store_tally(experiment.id, tally, {s: known[s] for s in changed})
        if not events:
            await records.forget_subjects(EVENTS_AT_ONCE)
    return len(events)


async def count_events_forever(store: Store[ExperimentCounts], poll_seconds: float) -> None:
    """Continues after outages of the store."""
    while True:
        try:
            while await count_events_once(store):
                pass
        except FlywheelError as error:
            if not error.retryable:
                raise
        await asyncio.sleep(poll_seconds)
