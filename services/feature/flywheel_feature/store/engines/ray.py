"""Runs joins in partitions on Ray, through its Jobs HTTP API (port: offline.ports.PartitionEngine).

The cluster gets no key of the object store: each attempt has a token, and the service signs its requests.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import pyarrow.fs as fs

from flywheel_common.errors import FlywheelError
from flywheel_common.granted.access import Access
from flywheel_common.granted.tokens import AttemptTokens
from flywheel_common.ray.errors import EngineUnavailable
from flywheel_common.ray.jobs import OPEN, RayJobs
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.jobs.progress import JobProgress
from flywheel_feature.offline.partitioned.access import access_of_join
from flywheel_feature.offline.partitioned.spec import ERROR, PROGRESS, RESULT, SPEC, PartitionSpec
from flywheel_feature.offline.ports import JoinAccess, Workspace
from flywheel_feature.store.s3.deletion import S3Deletion
from flywheel_feature.store.s3.workspaces import FileWorkspace

log = get_logger(__name__)

SERVICE_VARIABLE = "FLYWHEEL_JOIN_SERVICE"
"""Environment variable with the host:port of the service that signs the requests of an attempt."""
TOKEN_VARIABLE = "FLYWHEEL_JOIN_TOKEN"  # noqa: S105 - a name
"""Environment variable with the token of the attempt."""
POLL_SECONDS = 1.0
STOP_SECONDS = 60.0
"""How long the processes of a stopped job may take to end."""
LOG_CHARACTERS = 2000


def _progress(workspace: Workspace) -> Any:
    """The last progress report of the driver; None when it was incomplete, because it is being written."""
    try:
        return workspace.read_json(PROGRESS)
    except ValueError:
        return None


class PartitionRay:
    """Attempt n of a join has the submission id `{name}-{n}`, so that a restarted service finds it.

    A Ray job keeps running when the service stops.
    """

    name = "ray"

    def __init__(
        self,
        ray: RayJobs,
        *,
        python: str,
        files: fs.FileSystem,
        deletion: S3Deletion,
        root: str,
        access: JoinAccess,
        tokens: AttemptTokens,
        address: str,
        environment: Mapping[str, str],
    ) -> None:
        """`root`: `bucket/prefix`; `python`: an interpreter on the cluster that has this service and Ray;
        `address`: host:port under which the cluster reaches this service."""
        self._ray = ray
        self._python = python
        self._files = files
        self._deletion = deletion
        self._folder = root.strip("/")
        self._access = access
        self._tokens = tokens
        self._address = address
        self._environment = dict(environment)

    def workspace(self, name: str) -> Workspace:
        return FileWorkspace(self._files, f"{self._folder}/{name}", self._deletion)

    async def run(self, name: str, job: JobProgress) -> None:
        workspace = self.workspace(name)
        submission = await self._open_or_submit(name)
        await self._follow(workspace, submission, job)
        answers = [await asyncio.to_thread(workspace.read_bytes, key) for key in (RESULT, ERROR)]
        if not any(answers):
            output = (await self._ray.log(submission))[-LOG_CHARACTERS:]
            log.error("Ray job of a join died", submission=submission, output=output)
            raise EngineUnavailable(f"The Ray job {submission} ended without a result: retry.")

    async def discard(self, name: str) -> None:
        try:
            async for submission, state in self._attempts(name):
                if state in OPEN:
                    await self._stop(submission)
        finally:
            await self._access.revoke(name)
        await asyncio.to_thread(self.workspace(name).delete)

    async def _attempts(self, name: str) -> AsyncIterator[tuple[str, str | None]]:
        """(submission id, state) of each attempt; at the end (id of the next attempt, None)."""
        attempt = 0
        state: str | None = ""
        while state is not None:
            submission = f"{name}-{attempt}"
            state = await self._state(submission)
            yield submission, state
            attempt += 1

    async def _open_or_submit(self, name: str) -> str:
        """The submission id of the attempt that is open, or of a new attempt."""
        submission = ""
        async for submission, state in self._attempts(name):
            if state in OPEN:
                return submission
        root = shlex.quote(f"s3://{self._folder}/{name}")
        command = f"{shlex.quote(self._python)} -m flywheel_feature.join_worker --ray {root}"
        await self._access.grant(name, submission, await asyncio.to_thread(self._needed, name))
        environment = {
            **self._environment,
            SERVICE_VARIABLE: self._address,
            TOKEN_VARIABLE: self._tokens.issue(submission),
        }
        submitting = asyncio.ensure_future(self._ray.submit(submission, command, environment))
        try:
            await asyncio.shield(submitting)
        except asyncio.CancelledError:
            # The request may still reach Ray: wait, so that `discard` finds the job.
            with suppress(FlywheelError):
                await submitting
            raise
        return submission

    def _needed(self, name: str) -> Access:
        """What an attempt of the join needs on the object store."""
        text = self.workspace(name).read_bytes(SPEC)
        spec = None if text is None else PartitionSpec.from_json(text)
        return access_of_join(f"s3://{self._folder}/{name}", spec)

    async def _follow(self, workspace: Workspace, submission: str, job: JobProgress) -> None:
        while await self._state(submission) in OPEN:
            job.check_cancelled()
            report = await asyncio.to_thread(_progress, workspace)
            if report is not None:
                job.progress(report["done"], report["total"], "tasks", f"{report['message']} on Ray")
            await asyncio.sleep(POLL_SECONDS)

    async def _stop(self, submission: str) -> None:
        """Stop a job and wait until its processes have ended, so that they write no more files."""
        await self._ray.stop(submission)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                while await self._state(submission) in OPEN:
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            raise EngineUnavailable(
                f"The Ray job {submission} did not stop within {STOP_SECONDS:g} s: retry."
            ) from error

    async def _state(self, submission: str) -> str | None:
        found = await self._ray.job(submission)
        return None if found is None else found.state
