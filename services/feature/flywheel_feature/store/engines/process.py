"""Joins in partitions on this machine: a process of their own, spilling to a folder (port: offline.ports.PartitionEngine).

A process, because what the join allocates goes back to the system when it ends, and because one that dies takes nobody with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from pathlib import Path

import pyarrow.fs as fs

from flywheel_common.errors import Unavailable
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.jobs.progress import JobProgress
from flywheel_feature.offline.partitioned.spec import ERROR, PROGRESS, RESULT
from flywheel_feature.offline.ports import Workspace
from flywheel_feature.store.s3.workspaces import FileWorkspace

log = get_logger(__name__)

POLL_SECONDS = 0.3
ERROR_BYTES = 2000


class PartitionProcess:
    name = "local"

    def __init__(self, directory: str, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._environment = {**os.environ, **environment}

    def workspace(self, name: str) -> Workspace:
        return FileWorkspace(fs.LocalFileSystem(), self._root(name))

    def _root(self, name: str) -> str:
        return str(Path(self._directory) / name)

    async def discard(self, name: str) -> None:
        # A process ends with the service that began it: it is only files that can be left.
        await asyncio.to_thread(self.workspace(name).delete)

    async def run(self, name: str, job: JobProgress) -> None:
        workspace = self.workspace(name)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "flywheel_feature.join_worker", self._root(name),
            stdin=PIPE, stdout=DEVNULL, stderr=PIPE, env=self._environment,
        )  # fmt: skip
        assert process.stderr is not None
        told = asyncio.create_task(process.stderr.read())
        try:
            await self._follow(workspace, process, job)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
            if process.stdin is not None:
                process.stdin.close()
            text = (await told)[-ERROR_BYTES:].decode(errors="replace")
        answered = [await asyncio.to_thread(workspace.read_bytes, key) for key in (RESULT, ERROR)]
        if not any(answered):
            log.error("a join in partitions died", status=process.returncode, output=text)
            raise Unavailable(
                f"The process of the join ended with status {process.returncode}.",
                reason="ENGINE_UNAVAILABLE",
            )

    async def _follow(self, workspace: Workspace, process: Process, job: JobProgress) -> None:
        ended = asyncio.ensure_future(process.wait())
        while not ended.done():
            job.check_cancelled()
            told = await asyncio.to_thread(workspace.read_json, PROGRESS)
            if told is not None:
                job.progress(told["done"], told["total"], "tasks", told["message"])
            await asyncio.wait([ended], timeout=POLL_SECONDS)
