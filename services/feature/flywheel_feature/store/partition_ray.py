"""Joins in partitions on a Ray cluster, through its Jobs HTTP API (port: offline.ports.PartitionEngine)."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from typing import Any

import aiohttp
import pyarrow.fs as fs

from flywheel_common.errors import Unavailable
from flywheel_common.logs import get_logger
from flywheel_feature.offline.partition_spec import ERROR, PROGRESS, RESULT
from flywheel_feature.offline.ports import JobProgress, Workspace, is_cancelled
from flywheel_feature.store.workspaces import FileWorkspace

log = get_logger(__name__)

CALL_SECONDS = 30.0
POLL_SECONDS = 1.0
OPEN = frozenset({"PENDING", "RUNNING"})


class PartitionRay:
    """The n-th try at a piece of work has the submission id `{name}-{n}`, so that a service that starts again finds it."""

    name = "ray"

    def __init__(
        self, session: aiohttp.ClientSession, *, address: str, token: str, python: str, files: fs.FileSystem,
        root: str, environment: Mapping[str, str],
    ) -> None:  # fmt: skip
        """`root` is `bucket/prefix`; `python` the interpreter on the cluster that has this service's code and Ray."""
        self._session = session
        self._jobs = f"{address.rstrip('/')}/api/jobs/"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._python = python
        self._files = files
        self._folder = root.strip("/")
        self._environment = dict(environment)

    def workspace(self, name: str) -> Workspace:
        return FileWorkspace(self._files, f"{self._folder}/{name}")

    async def run(self, name: str, job: JobProgress) -> None:
        workspace = self.workspace(name)
        submission = await self._begun(name)
        try:
            await self._follow(workspace, submission, job)
        except BaseException:
            # A service that stops leaves the work to itself; a job that is cancelled takes it along.
            if is_cancelled(job):
                await asyncio.shield(self._call("POST", f"{submission}/stop"))
            raise
        answered = [await asyncio.to_thread(workspace.read_bytes, key) for key in (RESULT, ERROR)]
        if not any(answered):
            status, answer = await self._call("GET", f"{submission}/logs")
            log.error("a join on Ray died", submission=submission, status=status, output=_short(answer))
            raise Unavailable(
                f"The Ray job {submission} ended without a result.", reason="ENGINE_UNAVAILABLE"
            )

    async def _begun(self, name: str) -> str:
        """The open try at this work, or a new one."""
        attempt = 0
        while True:
            submission = f"{name}-{attempt}"
            state = await self._state(submission)
            if state in OPEN:
                return submission
            if state is None:
                break
            attempt += 1
        root = f"s3://{self._folder}/{name}"
        body = {
            "entrypoint": f"{shlex.quote(self._python)} -m flywheel_feature.offline.partition_task --ray {shlex.quote(root)}",
            "submission_id": submission,
            "entrypoint_num_cpus": 0,
            "runtime_env": {"env_vars": self._environment},
        }
        status, answer = await self._call("POST", "", body)
        if status >= 400 and "already exists" not in str(answer):
            raise Unavailable(f"Ray refused the join: {_short(answer)}", reason="ENGINE_UNAVAILABLE")
        return submission

    async def _follow(self, workspace: Workspace, submission: str, job: JobProgress) -> None:
        while await self._state(submission) in OPEN:
            job.check_cancelled()
            told = await asyncio.to_thread(workspace.read_json, PROGRESS)
            if told is not None:
                job.progress(told["done"], told["total"], "tasks", f"{told['message']} on Ray")
            await asyncio.sleep(POLL_SECONDS)

    async def _state(self, submission: str) -> str | None:
        status, answer = await self._call("GET", submission)
        if status == 404:
            return None
        if status >= 400:
            raise Unavailable(f"Ray answered {status}: {_short(answer)}", reason="ENGINE_UNAVAILABLE")
        return str(answer["status"])

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
