"""When a run becomes LOST: it is RUNNING and had no heartbeat for longer than its lease.

LogMetrics and UpdateRun count as heartbeats. A run of a job has no lease: it ends with its job, whatever time
the job waits in the queue (`jobs.supervision`).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_common.telemetry.logs import get_logger
from flywheel_trainer.runs.ports import RunStore

log = get_logger(__name__)

MAX_GAP = timedelta(seconds=20)
"""Time between two checks after which this process counts as having been away."""
LOST_MESSAGE = "no heartbeat within its lease"
"""`error_message` of a run whose lease has expired."""
JOB_ENDED_FIRST = "the job ended before the trial"
"""`error_message` of the run of a trial whose job has ended."""


def has_expired(heartbeat: datetime, lease_seconds: float, now: datetime, not_before: datetime) -> bool:
    """Whether the lease of a run has expired at `now`.

    It is counted from the last heartbeat or `not_before`, whichever is later. The statement in
    `store.postgres.runs` computes the same.
    """
    return max(heartbeat, not_before) + timedelta(seconds=lease_seconds) < now


class LeaseExpiry:
    """Ends runs whose lease has expired as LOST.

    Leases pause while this process cannot receive heartbeats: before it was created, while its store is away,
    and while it is stopped. After each such gap they count anew.
    """

    def __init__(self, store: RunStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._since = self._last = clock.now()
        self._failed = False

    async def expire(self) -> list[str]:
        """End expired runs and return their names."""
        now = self._clock.now()
        if self._failed or now - self._last > MAX_GAP:
            self._since = now
        self._failed = True
        expired = await self._store.expire(now, self._since)
        self._failed, self._last = False, self._clock.now()
        return expired

    async def run(self, every_seconds: float) -> None:
        """Expire runs forever; while the store is unavailable, try again."""
        while True:
            try:
                for name in await self.expire():
                    log.warning("run lost", run=name)
            except FlywheelError as error:
                log.warning("run leases not checked", reason=error.reason)
            await self._clock.sleep(every_seconds)
