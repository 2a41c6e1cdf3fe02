"""Logs of jobs: from the object store after a job has ended, from the engine before."""

from __future__ import annotations

from flywheel_common.deadline import budget, left_seconds
from flywheel_common.errors import FlywheelError
from flywheel_common.storage.objects import ObjectStore
from flywheel_trainer.jobs.engine import Engine
from flywheel_trainer.jobs.files import LOG, file_key
from flywheel_trainer.jobs.job import JobName

LOG_SECONDS = 5.0
"""Timeout of each source of the log, so that WatchJob sends the state of a job while a source hangs."""


class StoredOrLiveLogs:
    """`JobLogs`: the log that was stored at the end of the job, or else the log that the engine has now."""

    def __init__(self, objects: ObjectStore, engine: Engine) -> None:
        self._objects, self._engine = objects, engine

    async def read(self, job: JobName) -> bytes:
        left = left_seconds()
        try:
            with budget(LOG_SECONDS if left is None else min(LOG_SECONDS, left / 2)):
                return await self._objects.get(file_key(job, LOG))
        except FlywheelError:
            pass
        try:
            with budget(LOG_SECONDS):
                return await self._engine.log(job.job)
        except FlywheelError:
            return b""
