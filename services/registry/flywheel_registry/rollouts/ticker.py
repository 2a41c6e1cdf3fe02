"""The ticker: fetches evidence for every active rollout and applies the verdict, under a lease.

A tick may be repeated or interrupted at any point: it decides from what is stored, and a verdict is applied
only to the step that it was made for.
"""

from __future__ import annotations

import asyncio

from flywheel_common.errors import FlywheelError
from flywheel_common.postgres.transactions import Store
from flywheel_common.telemetry.logs import get_logger
from flywheel_registry.rollouts.decision import Decision, decide
from flywheel_registry.rollouts.lifecycle import RolloutLifecycle
from flywheel_registry.rollouts.ports import Monitor, RolloutRecords
from flywheel_registry.rollouts.rollout import Rollout

log = get_logger(__name__)

ACTOR = "registry-ticker"
"""The actor of the ticker's changes in the audit."""
MAX_CONCURRENT = 8
"""How many rollouts are decided at once."""


class Ticker:
    """Decides rollouts every `interval_seconds` of wall time, which bounds how late a decision is noticed."""

    def __init__(
        self,
        store: Store[RolloutRecords],
        lifecycle: RolloutLifecycle,
        monitor: Monitor,
        interval_seconds: float,
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._monitor = monitor
        self._interval = interval_seconds
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            try:
                await self.tick_all()
            except FlywheelError as error:
                if not error.retryable:
                    raise
                log.warning("tick interrupted", reason=error.reason)
            await asyncio.sleep(self._interval)

    async def tick_all(self) -> None:
        """Tick every rollout that is active and not paused."""
        async with self._store.reading() as records:
            active = await records.undecided_rollouts()
        async with asyncio.TaskGroup() as ticks:
            for rollout in active:
                ticks.create_task(self._tick_logged(rollout))

    async def _tick_logged(self, rollout: Rollout) -> None:
        """Tick one rollout; its error is logged and does not stop the others."""
        async with self._slots:
            try:
                await self.tick(rollout)
            except FlywheelError as error:
                log.warning(
                    "rollout not ticked", rollout=rollout.name, reason=error.reason, message=error.message
                )

    async def tick(self, rollout: Rollout) -> None:
        """Fetch the evidence of a rollout's current step, decide, and apply the verdict."""
        comparison = await self._monitor.compare(rollout)
        verdict = decide(comparison, rollout.policy, rollout.progress)
        if verdict.decision is Decision.HOLD:
            async with self._store.reading() as records:
                await self._lifecycle.apply_verdict(records, rollout, verdict, comparison, ACTOR)
            return
        async with self._store.transaction() as records:
            changed = await self._lifecycle.apply_verdict(records, rollout, verdict, comparison, ACTOR)
        if changed is not None:
            log.info(
                "rollout changed",
                rollout=rollout.name,
                decision=verdict.decision,
                state=changed.progress.state,
                percent=changed.progress.challenger_percent,
                reason=verdict.reason,
            )
