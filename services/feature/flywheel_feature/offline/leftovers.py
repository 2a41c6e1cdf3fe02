"""Removes what ended training set jobs left behind: working files, parts of a set, and running Ray jobs.

A job leaves them when its process died, when it was cancelled while it waited for a process, or when a store
was down at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.jobs.model import Job
from flywheel_feature.jobs.ports import JobStore
from flywheel_feature.jobs.runner import LEASE_SECONDS
from flywheel_feature.offline.ports import PartitionEngine, TrainingSets
from flywheel_feature.offline.unfinished import finish_in_thread, work_name, work_uri
from flywheel_feature.tables.ports import Tables

log = get_logger(__name__)

SWEEP_SECONDS = 60.0
LOOK_BACK = timedelta(days=7)
"""A process that starts cleans up after the jobs that ended within this time."""
OVERLAP = timedelta(minutes=10)
"""The largest difference between the clocks that record the ends of jobs."""
SETTLED = timedelta(seconds=4 * LEASE_SECONDS)
"""After this time the process that ran the job has noticed that it ended."""


class Leftovers:
    """Sweeps up after ended jobs. Every process does so, as each has working files on its own disk."""

    def __init__(
        self,
        jobs: JobStore,
        kind: str,
        training_sets: TrainingSets,
        tables: Tables,
        engines: Sequence[PartitionEngine],
        clock: Clock,
    ) -> None:
        """`kind`: the kind of the jobs that build training sets."""
        self._jobs = jobs
        self._kind = kind
        self._training_sets = training_sets
        self._tables = tables
        self._engines = engines
        self._clock = clock
        self._since = clock.now() - LOOK_BACK
        self._cleared: set[str] = set()

    async def run(self) -> None:
        """Sweep every SWEEP_SECONDS until cancelled; the next sweep retries what could not be removed."""
        while True:
            try:
                await self.sweep()
            except FlywheelError as error:
                log.warning("cannot remove what ended jobs left behind", reason=error.reason)
            await self._clock.sleep(SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Clean up after all jobs that ended since the last sweep; raises the first error at the end."""
        now = self._clock.now()
        ended = await self._jobs.ended_since(self._kind, self._since)
        failure: FlywheelError | None = None
        for job in ended:
            assert job.ended_at is not None
            if job.name in self._cleared or job.ended_at > now - SETTLED:
                continue
            try:
                await self._clear(job)
                self._cleared.add(job.name)
            except FlywheelError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        self._cleared &= {job.name for job in ended}
        self._since = max(self._since, now - OVERLAP)

    async def _clear(self, job: Job) -> None:
        name = work_name(job.project, job.id)
        for engine in self._engines:
            await engine.discard(name)
        training_set_id = job.training_set.rpartition("/")[2]
        if training_set_id:
            # The job may have been lost after it registered its set.
            registered = await self._training_sets.get(job.project, training_set_id)
            uri = work_uri(self._tables, job.project, training_set_id, name)
            keep = registered.uri if registered else ""
            await finish_in_thread(lambda: self._tables.remove(uri, keep=keep))
