"""A client of Ray's Jobs HTTP API, which needs only an address and a token, not the ray package."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from flywheel_common.deadline import in_time
from flywheel_common.ray.errors import EngineUnavailable

CALL_SECONDS = 30.0
OPEN = frozenset({"PENDING", "RUNNING"})
"""States of a job that has not ended; the others are SUCCEEDED, FAILED and STOPPED."""


@dataclass(frozen=True, slots=True)
class RayJob:
    """The state of a job, and a message for humans."""

    state: str
    message: str = ""


class RayJobs:
    """Jobs by submission id. The caller chooses the id, so that it finds its jobs again after a restart.

    Every method raises EngineUnavailable when Ray refuses or does not answer, before the deadline of the
    running call if it has one. A job may then have been submitted or stopped.
    """

    def __init__(self, session: aiohttp.ClientSession, address: str, token: str) -> None:
        """`address` is http(s)://host:port of the dashboard; `token` is empty for a cluster without
        tokens."""
        self._session = session
        self._jobs = f"{address.rstrip('/')}/api/jobs/"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def submit(
        self,
        submission_id: str,
        entrypoint: str,
        environment: Mapping[str, str],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Starts the shell command `entrypoint`. Does nothing if the id exists."""
        body = {
            "entrypoint": entrypoint,
            "submission_id": submission_id,
            "entrypoint_num_cpus": 0,
            "runtime_env": {"env_vars": dict(environment)},
            "metadata": dict(metadata or {}),
        }
        status, answer = await self._call("POST", "", body)
        if status >= 400 and "already exists" not in str(answer):
            raise EngineUnavailable(f"Ray refused the job: {_short(answer)}")

    async def job(self, submission_id: str) -> RayJob | None:
        """The job, or None if Ray does not know it: it was never submitted, or Ray lost its state."""
        answer = await self._known("GET", submission_id)
        return None if answer is None else RayJob(answer["status"], str(answer.get("message") or ""))

    async def stop(self, submission_id: str) -> None:
        """Requests a stop: the job is STOPPED when all its processes have ended. Does nothing if it has
        ended."""
        await self._known("POST", f"{submission_id}/stop")

    async def log(self, submission_id: str) -> str:
        """The log so far; empty if Ray does not know the job."""
        answer = await self._known("GET", f"{submission_id}/logs")
        return "" if answer is None else str(answer.get("logs") or "")

    async def _known(self, method: str, path: str) -> Any:
        status, answer = await self._call(method, path)
        if status == 404:
            return None
        if status >= 400:
            raise EngineUnavailable(f"Ray answered {status}: {_short(answer)}")
        return answer

    async def _call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        try:
            async with (
                in_time(lambda: self._unavailable("timeout")),
                self._session.request(
                    method,
                    self._jobs + path,
                    json=body,
                    headers=self._headers,
                    timeout=aiohttp.ClientTimeout(total=CALL_SECONDS),
                ) as response,
            ):
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


def _short(answer: Any) -> str:
    return str(answer)[-500:]
