"""Ray through its Jobs HTTP API: the service needs no Ray process of its own, only an address and a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp

from flywheel_common.errors import Unavailable
from flywheel_trainer.engine import EngineJob, EngineState

CALL_SECONDS = 30.0


class RayJobs:
    """The Engine of the product. Ray's submission id is the job's id, so a restarted coordinator finds its jobs."""

    def __init__(self, session: aiohttp.ClientSession, address: str, token: str) -> None:
        self._session = session
        self._jobs = f"{address.rstrip('/')}/api/jobs/"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def submit(self, job_id: str, command: str, environment: Mapping[str, str]) -> None:
        body = {
            "entrypoint": command,
            "submission_id": job_id,
            "entrypoint_num_cpus": 0,
            "runtime_env": {"env_vars": dict(environment)},
            "metadata": {"flywheel_job": job_id},
        }
        status, answer = await self._call("POST", "", body)
        if status >= 400 and "already exists" not in str(answer):
            raise Unavailable(f"Ray refused the job: {_short(answer)}", reason="ENGINE_UNAVAILABLE")

    async def state(self, job_id: str) -> EngineJob:
        status, answer = await self._call("GET", job_id)
        if status == 404:
            return EngineJob(EngineState.UNKNOWN)
        if status >= 400:
            raise Unavailable(f"Ray answered {status}: {_short(answer)}", reason="ENGINE_UNAVAILABLE")
        return EngineJob(EngineState(answer["status"]), str(answer.get("message") or ""))

    async def stop(self, job_id: str) -> None:
        status, answer = await self._call("POST", f"{job_id}/stop")
        if status >= 400 and status != 404:
            raise Unavailable(f"Ray answered {status}: {_short(answer)}", reason="ENGINE_UNAVAILABLE")

    async def log(self, job_id: str) -> bytes:
        status, answer = await self._call("GET", f"{job_id}/logs")
        return str(answer.get("logs") or "").encode() if status == 200 else b""

    async def _call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        try:
            async with self._session.request(
                method,
                self._jobs + path,
                json=body,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=CALL_SECONDS),
            ) as response:
                if response.content_type == "application/json":
                    return response.status, await response.json()
                return response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(
                f"Ray does not answer at {self._jobs}: {type(error).__name__}.", reason="ENGINE_UNAVAILABLE"
            ) from error


def _short(answer: Any) -> str:
    return str(answer)[-500:]
