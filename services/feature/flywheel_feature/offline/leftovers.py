"""What jobs of training sets left that ended where nobody could clear up after them: lost with their processes, cancelled while
they waited for the next one, or ended while a store was away. It is working files, parts of a set, and work that runs on Ray."""

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
from flywheel_feature.offline.unfinished import undisturbed, work_name, work_uri
from flywheel_feature.tables.ports import Tables

log = get_logger(__name__)

SWEEP_SECONDS = 60.0
LOOK_BACK = timedelta(days=7)
"""How long ago a job may have ended for a process that starts to clear up after it."""
OVERLAP = timedelta(minutes=10)
"""So far may the clocks differ that tell when jobs ended."""
SETTLED = timedelta(seconds=4 * LEASE_SECONDS)
"""Who held the job when it ended has noticed by then."""


class Leftovers:
    """Each process sweeps for itself, as each has working files on its own disk. What is swept twice is not there."""

    def __init__(
        self, jobs: JobStore, kind: str, training_sets: TrainingSets, tables: Tables, engines: Sequence[PartitionEngine], clock: Clock,
    ) -> None:  # fmt: skip
        """`kind`: of the jobs that build training sets."""
        self._jobs = jobs
        self._kind = kind
        self._training_sets = training_sets
        self._tables = tables
        self._engines = engines
        self._clock = clock
        self._since = clock.now() - LOOK_BACK
        self._cleared: set[str] = set()

    async def run(self) -> None:
        """Sweep for ever; what cannot be removed now waits for the next time."""
        while True:
            try:
                await self.sweep()
            except FlywheelError as error:
                log.warning("what ended jobs left stays", reason=error.reason)
            await self._clock.sleep(SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Clear up after every job that ended since the last sweep. Raises what the first job raised after which it failed."""
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
            # The job may have been lost after its set was registered.
            registered = await self._training_sets.get(job.project, training_set_id)
            uri = work_uri(self._tables, job.project, training_set_id, name)
            await undisturbed(lambda: self._tables.remove(uri, keep=registered.uri if registered else ""))
