"""Joins in partitions on a Ray cluster, through its Jobs HTTP API (port: offline.ports.PartitionEngine)."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import pyarrow.fs as fs

from flywheel_common.errors import FlywheelError, Unavailable
from flywheel_common.ray.jobs import OPEN, RayJobs
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.jobs.progress import JobProgress
from flywheel_feature.offline.partitioned.spec import ERROR, PROGRESS, RESULT
from flywheel_feature.offline.ports import Workspace
from flywheel_feature.store.s3.deletion import S3Deletion
from flywheel_feature.store.s3.workspaces import FileWorkspace

log = get_logger(__name__)

POLL_SECONDS = 1.0
STOP_SECONDS = 60.0
"""How long the processes of a job that is told to stop may take to end."""
LOG_CHARACTERS = 2000


def _progress(workspace: Workspace) -> Any:
    """What the driver told last; None where it is written again while it is read, and a part of it came."""
    try:
        return workspace.read_json(PROGRESS)
    except ValueError:
        return None


class PartitionRay:
    """The n-th try at a piece of work has the submission id `{name}-{n}`, so that a service that starts again finds it.

    A service that stops leaves the work to itself.
    """

    name = "ray"

    def __init__(
        self, ray: RayJobs, *, python: str, files: fs.FileSystem, deletion: S3Deletion, root: str, environment: Mapping[str, str],
    ) -> None:  # fmt: skip
        """`root` is `bucket/prefix`; `python` the interpreter on the cluster that has this service's code and Ray."""
        self._ray = ray
        self._python = python
        self._files = files
        self._deletion = deletion
        self._folder = root.strip("/")
        self._environment = dict(environment)

    def workspace(self, name: str) -> Workspace:
        return FileWorkspace(self._files, f"{self._folder}/{name}", self._deletion)

    async def run(self, name: str, job: JobProgress) -> None:
        workspace = self.workspace(name)
        submission = await self._begun(name)
        await self._follow(workspace, submission, job)
        answered = [await asyncio.to_thread(workspace.read_bytes, key) for key in (RESULT, ERROR)]
        if not any(answered):
            output = (await self._ray.log(submission))[-LOG_CHARACTERS:]
            log.error("a join on Ray died", submission=submission, output=output)
            raise Unavailable(
                f"The Ray job {submission} ended without a result.", reason="ENGINE_UNAVAILABLE"
            )

    async def discard(self, name: str) -> None:
        async for submission, state in self._tries(name):
            if state in OPEN:
                await self._stop(submission)
        await asyncio.to_thread(self.workspace(name).delete)

    async def _tries(self, name: str) -> AsyncIterator[tuple[str, str | None]]:
        """Submission id and state of each try, and at last the id that the next one would have, with None."""
        attempt = 0
        state: str | None = ""
        while state is not None:
            submission = f"{name}-{attempt}"
            state = await self._state(submission)
            yield submission, state
            attempt += 1

    async def _begun(self, name: str) -> str:
        """The open try at this work, or a new one."""
        submission = ""
        async for submission, state in self._tries(name):
            if state in OPEN:
                return submission
        root = shlex.quote(f"s3://{self._folder}/{name}")
        command = f"{shlex.quote(self._python)} -m flywheel_feature.join_worker --ray {root}"
        submitting = asyncio.ensure_future(self._ray.submit(submission, command, self._environment))
        try:
            await asyncio.shield(submitting)
        except asyncio.CancelledError:
            # It reaches Ray all the same, and whoever stops this work must find it there.
            with suppress(FlywheelError):
                await submitting
            raise
        return submission

    async def _follow(self, workspace: Workspace, submission: str, job: JobProgress) -> None:
        while await self._state(submission) in OPEN:
            job.check_cancelled()
            told = await asyncio.to_thread(_progress, workspace)
            if told is not None:
                job.progress(told["done"], told["total"], "tasks", f"{told['message']} on Ray")
            await asyncio.sleep(POLL_SECONDS)

    async def _stop(self, submission: str) -> None:
        """Return when the job's processes are gone: what they wrote later would be left over."""
        await self._ray.stop(submission)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                while await self._state(submission) in OPEN:
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            raise Unavailable(
                f"The Ray job {submission} does not stop.", reason="ENGINE_UNAVAILABLE"
            ) from error

    async def _state(self, submission: str) -> str | None:
        found = await self._ray.job(submission)
        return None if found is None else found.state
