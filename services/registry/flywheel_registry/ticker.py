"""The ticker: under a lease, asks for evidence on every active rollout and applies what the state machine decides.

A tick may be repeated or interrupted anywhere: it decides anew from what is stored, and a verdict is applied only to the
step it was made for.
"""

from __future__ import annotations

import asyncio

from flywheel_common.errors import FlywheelError
from flywheel_common.telemetry.logs import get_logger
from flywheel_registry.ports import Monitor, Store
from flywheel_registry.resources import Rollout
from flywheel_registry.rollout import Decision, tick
from flywheel_registry.rollouts import Rollouts

log = get_logger(__name__)

ACTOR = "registry-ticker"
CONCURRENT = 8
"""Rollouts judged at once."""


class Ticker:
    """`interval_seconds` is wall time between two looks; it decides nothing but how soon a decision is noticed."""

    def __init__(self, store: Store, rollouts: Rollouts, monitor: Monitor, interval_seconds: float) -> None:
        self._store = store
        self._rollouts = rollouts
        self._monitor = monitor
        self._interval = interval_seconds
        self._slots = asyncio.Semaphore(CONCURRENT)

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.tick_all()
            except FlywheelError as error:
                if not error.retryable:
                    raise
                log.warning("tick interrupted", reason=error.reason)
            await asyncio.sleep(self._interval)

    async def tick_all(self) -> None:
        """One look at every active rollout."""
        async with self._store.reading() as records:
            active = await records.undecided_rollouts()
        await asyncio.gather(*(self._tick(rollout) for rollout in active))

    async def _tick(self, rollout: Rollout) -> None:
        """One bad rollout must not stop the others."""
        async with self._slots:
            try:
                await self.tick(rollout)
            except FlywheelError as error:
                log.warning(
                    "rollout not ticked", rollout=rollout.name, reason=error.reason, message=error.message
                )

    async def tick(self, rollout: Rollout) -> None:
        """Evidence, verdict, effect."""
        comparison = await self._monitor.compare(rollout)
        verdict = tick(comparison, rollout.policy, rollout.progress)
        if verdict.decision is Decision.HOLD:
            async with self._store.reading() as records:
                await self._rollouts.decide(records, rollout, verdict, comparison, ACTOR)
            return
        async with self._store.transaction() as records:
            moved = await self._rollouts.decide(records, rollout, verdict, comparison, ACTOR)
        if moved is not None:
            log.info("rollout moved", rollout=rollout.name, decision=verdict.decision, state=moved.progress.state,
                     percent=moved.progress.challenger_percent, reason=verdict.reason)  # fmt: skip
