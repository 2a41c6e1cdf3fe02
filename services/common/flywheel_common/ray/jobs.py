"""A client of Ray's Jobs HTTP API, which needs only an address and a token, not the ray package."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from flywheel_common.deadline import in_time
from flywheel_common.ray.errors import EngineRefused, EngineUnavailable

CALL_SECONDS = 30.0
OPEN = frozenset({"PENDING", "RUNNING"})
"""States of a job that has not ended; the others are SUCCEEDED, FAILED and STOPPED."""


LOST_BY_RAY = frozenset(
    {
        "JOB_SUPERVISOR_ACTOR_DIED",
        "JOB_SUPERVISOR_ACTOR_START_FAILURE",
        "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
        "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE",
        "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE",
    }
)
"""`error_type` of jobs whose process Ray lost or could not start, for no fault of the command."""
REFUSALS = frozenset({400, 413, 422})
"""Answers to a submission that a repetition would get again. 401, 403 and 404 are faults of the set-up."""
MAX_LOG_ANSWER_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RayJob:
    """The state of a job, and a message for humans."""

    state: str
    message: str = ""
    exit_code: int | None = None
    error_type: str = ""


@dataclass(frozen=True, slots=True)
class ListedRayJob:
    """A job in the list of all jobs; `end_time_ms` is in milliseconds since the epoch."""

    submission_id: str
    state: str
    metadata: Mapping[str, str]
    end_time_ms: int | None


@dataclass(frozen=True, slots=True)
class RayNode:
    """The resources of a machine that is alive."""

    cpus: float
    gpus: float
    memory_bytes: float
    accelerators: frozenset[str]
    """Models of its GPUs, such as `H200`."""


class RayJobs:
    """Jobs by submission id. The caller chooses the id, so that it finds its jobs again after a restart.

    Every method raises EngineUnavailable when Ray does not answer, before the deadline of the
    running call if it has one. A job may then have been submitted or stopped.
    """

    def __init__(self, session: aiohttp.ClientSession, address: str, token: str) -> None:
        """`address` is http(s)://host:port of the dashboard; `token` is empty for a cluster without
        tokens."""
        self._session = session
        self._jobs = f"{address.rstrip('/')}/api/jobs/"
        self._nodes = f"{address.rstrip('/')}/api/v0/nodes?limit=10000&detail=1"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def submit(
        self,
        submission_id: str,
        entrypoint: str,
        environment: Mapping[str, str],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Starts the shell command `entrypoint`. Does nothing if the id exists. Raises EngineRefused if Ray
        will refuse the job again."""
        body = {
            "entrypoint": entrypoint,
            "submission_id": submission_id,
            "entrypoint_num_cpus": 0,
            "runtime_env": {"env_vars": dict(environment)},
            "metadata": dict(metadata or {}),
        }
        status, answer = await self._call("POST", self._jobs, body)
        if status < 400 or "already exists" in str(answer):
            return
        if status in REFUSALS:
            raise EngineRefused(f"Ray refused the job: {_short(answer)}")
        raise EngineUnavailable(f"Ray did not accept the job ({status}): {_short(answer)}")

    async def job(self, submission_id: str) -> RayJob | None:
        """The job, or None if Ray does not know it: it was never submitted, or Ray lost its state."""
        answer = await self._known("GET", submission_id)
        if answer is None:
            return None
        return RayJob(
            answer["status"],
            str(answer.get("message") or ""),
            answer.get("driver_exit_code"),
            str(answer.get("error_type") or ""),
        )

    async def jobs(self) -> list[ListedRayJob]:
        """All jobs that were submitted and not deleted, by whomever."""
        return [
            ListedRayJob(
                job["submission_id"], job["status"], dict(job.get("metadata") or {}), job.get("end_time")
            )
            for job in await self._known("GET", "") or ()
            if job.get("submission_id")
        ]

    async def delete(self, submission_id: str) -> None:
        """Removes the record of a job that has ended. Does nothing if Ray does not know the job."""
        await self._known("DELETE", submission_id)

    async def nodes(self) -> list[RayNode]:
        """The machines that are alive; empty while Ray starts."""
        status, answer = await self._call("GET", self._nodes)
        if status >= 400:
            raise EngineUnavailable(f"Ray answered {status}: {_short(answer)}")
        rows = ((answer.get("data") or {}).get("result") or {}).get("result") or ()
        resources = [row.get("resources_total") or {} for row in rows if row.get("state") == "ALIVE"]
        return [_node(one) for one in resources]

    async def stop(self, submission_id: str) -> None:
        """Requests a stop: the job is STOPPED when all its processes have ended. Does nothing if it has
        ended."""
        await self._known("POST", f"{submission_id}/stop")

    async def log(self, submission_id: str) -> str:
        """The log so far; empty if Ray does not know the job. Raises EngineUnavailable for a log that is no
        UTF-8, which Ray cannot read, and for one above MAX_LOG_ANSWER_BYTES."""
        answer = await self._known("GET", f"{submission_id}/logs")
        return "" if answer is None else str(answer.get("logs") or "")

    async def _known(self, method: str, path: str) -> Any:
        status, answer = await self._call(method, self._jobs + path)
        if status == 404:
            return None
        if status >= 400:
            raise EngineUnavailable(f"Ray answered {status}: {_short(answer)}")
        return answer

    async def _call(self, method: str, url: str, body: Any = None) -> tuple[int, Any]:
        try:
            async with (
                in_time(lambda: self._unavailable("timeout")),
                self._session.request(
                    method,
                    url,
                    json=body,
                    headers=self._headers,
                    timeout=aiohttp.ClientTimeout(total=CALL_SECONDS),
                ) as response,
            ):
                length = response.content_length
                if length is not None and length > MAX_LOG_ANSWER_BYTES:
                    raise self._unavailable(f"an answer of {length:,} bytes")
                if response.content_type == "application/json":
                    return response.status, await response.json()
                return response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unavailable(type(error).__name__) from error

    def _unavailable(self, why: str) -> EngineUnavailable:
        return EngineUnavailable(f"Ray does not answer at {self._jobs}: {why}.")


@asynccontextmanager
async def ray_jobs(address: str, token: str) -> AsyncIterator[RayJobs]:
    """The jobs of a cluster; connections are closed at the end."""
    async with aiohttp.ClientSession() as session:
        yield RayJobs(session, address, token)


def _node(resources: Mapping[str, float]) -> RayNode:
    names = (name.partition(":") for name in resources)
    types = frozenset(model for kind, _, model in names if kind == "accelerator_type")
    memory = resources.get("memory", 0.0)
    return RayNode(resources.get("CPU", 0.0), resources.get("GPU", 0.0), memory, types)


def _short(answer: Any) -> str:
    return str(answer)[-500:]
