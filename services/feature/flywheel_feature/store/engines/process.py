"""Runs a join in partitions in a process on this machine (port: offline.ports.PartitionEngine).

A separate process returns its memory to the system when it ends, and the service survives its crash.
Intermediate rows are written to a folder on the local disk.
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

from flywheel_common.ray.errors import EngineUnavailable
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
        # The process ends with the service that started it, so only files can be left over.
        await asyncio.to_thread(self.workspace(name).delete)

    async def run(self, name: str, job: JobProgress) -> None:
        workspace = self.workspace(name)
        command = sys.executable, "-m", "flywheel_feature.join_worker", self._root(name)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=DEVNULL, stderr=PIPE, env=self._environment
        )
        assert process.stderr is not None
        output = asyncio.create_task(process.stderr.read())
        try:
            await self._follow(workspace, process, job)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
            if process.stdin is not None:
                process.stdin.close()
            text = (await output)[-ERROR_BYTES:].decode(errors="replace")
        answers = [await asyncio.to_thread(workspace.read_bytes, key) for key in (RESULT, ERROR)]
        if not any(answers):
            log.error("join process died", status=process.returncode, output=text)
            raise EngineUnavailable(f"The process of the join ended with status {process.returncode}: retry.")

    async def _follow(self, workspace: Workspace, process: Process, job: JobProgress) -> None:
        ended = asyncio.ensure_future(process.wait())
        while not ended.done():
            job.check_cancelled()
            report = await asyncio.to_thread(workspace.read_json, PROGRESS)
            if report is not None:
                job.progress(report["done"], report["total"], "tasks", report["message"])
            await asyncio.wait([ended], timeout=POLL_SECONDS)
