"""`Engine` on a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from flywheel_common.ray.errors import EngineUnavailable
from flywheel_common.ray.jobs import LOST_BY_RAY, RayJobs
from flywheel_common.telemetry.logs import get_logger
from flywheel_trainer.jobs.engine import EngineJob, EngineState, ListedJob
from flywheel_trainer.jobs.resources import Node

log = get_logger(__name__)

OWNER = "flywheel_trainer"
"""Key of the metadata that names the installation, because several can share a cluster."""


class RayEngine:
    """`Engine` over Ray's Jobs API.

    The submission id is the attempt's engine id, so a restarted supervisor finds its attempts.
    """

    def __init__(self, ray: RayJobs, owner: str) -> None:
        """`owner` identifies this installation of the trainer."""
        self._ray, self._owner = ray, owner

    async def submit(self, job_id: str, command: str, environment: Mapping[str, str]) -> None:
        await self._ray.submit(job_id, command, environment, {OWNER: self._owner})

    async def state(self, job_id: str) -> EngineJob:
        found = await self._ray.job(job_id)
        if found is None:
            return EngineJob(EngineState.UNKNOWN)
        state = _state(found.state)
        message = found.message if state is not EngineState.UNRECOGNIZED else f"{found.state} {found.message}"
        return EngineJob(state, message, found.exit_code, machine_lost=found.error_type in LOST_BY_RAY)

    async def stop(self, job_id: str) -> None:
        await self._ray.stop(job_id)

    async def log_tail(self, job_id: str, max_bytes: int) -> bytes:
        try:
            return (await self._ray.log(job_id)).encode()[-max_bytes:]
        except EngineUnavailable as error:
            if not await self._ray.nodes():
                raise
            log.warning("Ray cannot read the log of a job", engine_id=job_id, error=error.message)
            return b""

    async def jobs(self) -> Sequence[ListedJob]:
        return [
            ListedJob(job.submission_id, _state(job.state), _time(job.end_time_ms))
            for job in await self._ray.jobs()
            if job.metadata.get(OWNER) == self._owner
        ]

    async def forget(self, job_id: str) -> None:
        await self._ray.delete(job_id)

    async def nodes(self) -> Sequence[Node]:
        return [
            Node(node.cpus, node.gpus, node.memory_bytes, node.accelerators)
            for node in await self._ray.nodes()
        ]


def _state(state: str) -> EngineState:
    try:
        return EngineState(state)
    except ValueError:
        return EngineState.UNRECOGNIZED


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
