"""Ray's Jobs HTTP API: all that a service needs of a cluster is its address and a token, no Ray of its own."""

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
    """What Ray says about a job; `message` is for people."""

    state: str
    message: str = ""


class RayJobs:
    """Jobs by submission id, which the caller chooses: a process that starts again finds what it submitted.

    Every method raises Unavailable ENGINE_UNAVAILABLE when Ray does not answer, or refuses: before the running call's deadline
    if it has one, and then a job may have been submitted or stopped.
    """

    def __init__(self, session: aiohttp.ClientSession, address: str, token: str) -> None:
        """`address`: http(s)://host:port of the dashboard; `token` empty: the cluster asks for none."""
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
        """`entrypoint` is a shell's command line. An id that Ray knows changes nothing."""
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
        """None: Ray does not know it. It was never submitted, or Ray lost its state."""
        answer = await self._known("GET", submission_id)
        return None if answer is None else RayJob(answer["status"], str(answer.get("message") or ""))

    async def stop(self, submission_id: str) -> None:
        """Ask for the end of every process of the job: it is STOPPED when they are gone. One that ended stays as it is."""
        await self._known("POST", f"{submission_id}/stop")

    async def log(self, submission_id: str) -> str:
        """The whole text so far; empty where Ray knows no such job (any more)."""
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
                in_time(lambda: self._unavailable("not in time")),
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
    """The jobs of a cluster, over connections that are closed at the end."""
    async with aiohttp.ClientSession() as session:
        yield RayJobs(session, address, token)


def _short(answer: Any) -> str:
    return str(answer)[-500:]
