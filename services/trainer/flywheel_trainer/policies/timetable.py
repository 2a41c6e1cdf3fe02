"""Starts the runs of schedules and of continuous training when their time has come."""

from __future__ import annotations

import asyncio

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_common.telemetry.logs import get_logger
from flywheel_trainer.policies.decision import Trigger
from flywheel_trainer.policies.ports import PolicyStore, TimedPolicy
from flywheel_trainer.policies.schedule import Due, due, due_window

log = get_logger(__name__)


class Timetable:
    """Every replica looks at the policies; the store decides each time once."""

    def __init__(self, store: PolicyStore, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def run(self, poll_seconds: float) -> None:
        """Decide what is due, forever."""
        while True:
            try:
                await self.decide_due()
            except FlywheelError as error:
                log.warning("schedules not decided", reason=error.reason, error=error.message)
            await asyncio.sleep(poll_seconds)

    async def decide_due(self) -> None:
        """Decide every time that has come; an error of one policy does not stop the others.

        Raises errors of the store that another call can cure.
        """
        for timed in await self._store.timed():
            try:
                await self._decide(timed)
            except Exception as error:
                if isinstance(error, FlywheelError) and error.retryable:
                    raise
                log.error("schedule not decided", policy=str(timed.policy.name), exc_info=error)

    async def _decide(self, timed: TimedPolicy) -> None:
        for trigger, found in self._due(timed):
            decision = await self._store.decide_time(timed.policy.name, trigger, found, self._clock.now())
            if decision is not None:
                log.info(
                    "retraining decided",
                    model=decision.model,
                    trigger=trigger,
                    time=found.time.isoformat(),
                    reason=decision.reason,
                    message=decision.message,
                )

    def _due(self, timed: TimedPolicy) -> list[tuple[Trigger, Due]]:
        policy, now = timed.policy, self._clock.now()
        found = []
        if policy.schedule is not None:
            after = timed.after(Trigger.SCHEDULE)
            found.append((Trigger.SCHEDULE, due(policy.schedule, after, now, str(policy.name))))
        if policy.continuous is not None:
            after = timed.after(Trigger.CONTINUOUS)
            found.append((Trigger.CONTINUOUS, due_window(policy.continuous, after, now)))
        return [(trigger, one) for trigger, one in found if one is not None]
