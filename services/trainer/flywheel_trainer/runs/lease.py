"""When a run becomes LOST: it is RUNNING and had no heartbeat for longer than its lease.

LogMetrics and UpdateRun count as heartbeats. For a run that belongs to a job, each check that finds the job
running counts too; such a run also becomes LOST when its job does (`jobs.supervision`).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_common.telemetry.logs import get_logger
from flywheel_trainer.runs.ports import RunStore

log = get_logger(__name__)

LOST_MESSAGE = "no heartbeat within its lease"
"""`error_message` of a run whose lease has expired."""


def has_expired(heartbeat: datetime, lease_seconds: float, now: datetime, not_before: datetime) -> bool:
    """Whether the lease of a run has expired at `now`.

    It is counted from the last heartbeat or `not_before`, whichever is later. The statement in
    `store.postgres.runs` computes the same.
    """
    return max(heartbeat, not_before) + timedelta(seconds=lease_seconds) < now


class LeaseExpiry:
    """Ends runs whose lease has expired as LOST.

    Leases count from the creation of this object at the earliest: before that, this process could not receive
    heartbeats.
    """

    def __init__(self, store: RunStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._since = clock.now()

    async def expire(self) -> list[str]:
        """End expired runs and return their names."""
        return await self._store.expire(self._clock.now(), self._since)

    async def run(self, every_seconds: float) -> None:
        """Expire runs forever; while the store is unavailable, try again."""
        while True:
            try:
                for name in await self.expire():
                    log.warning("run lost", run=name)
            except FlywheelError as error:
                log.warning("run leases not checked", reason=error.reason)
            await self._clock.sleep(every_seconds)
