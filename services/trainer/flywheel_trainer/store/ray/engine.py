"""`Engine` on a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping

from flywheel_common.ray.jobs import RayJobs
from flywheel_trainer.jobs.engine import EngineJob, EngineState


class RayEngine:
    """`Engine` over Ray's Jobs API.

    The submission id is the job's id, so a restarted supervisor finds its jobs.
    """

    def __init__(self, ray: RayJobs) -> None:
        self._ray = ray

    async def submit(self, job_id: str, command: str, environment: Mapping[str, str]) -> None:
        await self._ray.submit(job_id, command, environment, {"flywheel_job": job_id})

    async def state(self, job_id: str) -> EngineJob:
        found = await self._ray.job(job_id)
        if found is None:
            return EngineJob(EngineState.UNKNOWN)
        return EngineJob(EngineState(found.state), found.message)

    async def stop(self, job_id: str) -> None:
        await self._ray.stop(job_id)

    async def log(self, job_id: str) -> bytes:
        return (await self._ray.log(job_id)).encode()
