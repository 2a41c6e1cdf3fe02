"""Joins in partitions in this process, their working files in memory, for tests. Held to the contract suites of the real ones.

Ports: offline.ports.PartitionEngine and Workspace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import polars as pl

from flywheel_common.errors import FlywheelError, NotFound, Unavailable
from flywheel_feature.fakes.tables import within
from flywheel_feature.jobs.progress import JobProgress
from flywheel_feature.offline.partitioned.run import OneByOne, Workers, carry_out
from flywheel_feature.offline.partitioned.spec import PROGRESS, Task
from flywheel_feature.offline.partitioned.steps import PartitionTasks
from flywheel_feature.offline.ports import Workspace
from flywheel_feature.tables.ports import Between, Tables


class MemoryWorkspace(Workspace):
    def __init__(self) -> None:
        self._files: dict[str, bytes | pl.DataFrame] = {}

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self._files.copy() if key.startswith(prefix))

    def write(self, key: str, frame: pl.DataFrame, groups: Sequence[int]) -> None:
        assert sum(groups) == frame.height
        self._files[key] = frame

    def read(self, prefix: str, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        files = (self._files[key] for key in self.keys(prefix))
        frames = [within(f, where).select(columns) for f in files if isinstance(f, pl.DataFrame)]
        if not frames:
            raise NotFound(f"There is no working file {prefix}.", reason="UNKNOWN_TABLE")
        return pl.concat(frames)

    def write_bytes(self, key: str, content: bytes) -> None:
        self._files[key] = content

    def read_bytes(self, key: str) -> bytes | None:
        content = self._files.get(key)
        assert not isinstance(content, pl.DataFrame)
        return content

    def delete(self) -> None:
        self._files.clear()


class _Stopped(Exception):
    """Nobody waits for the work any more."""


class _Died(Exception):
    """A task ended with what is no domain error, as which a process would die."""


class MemoryPartitions:
    """Tasks run in a thread, one by one; who stops waiting stops them after the one at work."""

    def __init__(self, tables: Tables, name: str = "local") -> None:
        self.name = name
        self._tables = tables
        self._workspaces: dict[str, MemoryWorkspace] = {}

    def workspace(self, name: str) -> Workspace:
        return self._workspaces.setdefault(name, MemoryWorkspace())

    async def discard(self, name: str) -> None:
        # Work ends with whoever waits for it: it is only files that can be left.
        self.workspace(name).delete()

    async def run(self, name: str, job: JobProgress) -> None:
        workspace, stopped = self.workspace(name), asyncio.Event()

        def workers(tasks: PartitionTasks) -> Workers:
            return _Followed(tasks, job, stopped.is_set)

        work = asyncio.ensure_future(asyncio.to_thread(carry_out, workspace, self._tables, workers))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            stopped.set()
            await asyncio.gather(work, return_exceptions=True)
            raise
        except _Died as death:
            raise Unavailable("The work died.", reason="ENGINE_UNAVAILABLE") from death.__cause__


class _Followed:
    def __init__(self, tasks: PartitionTasks, job: JobProgress, stopped: Callable[[], bool]) -> None:
        self._tasks, self._job, self._stopped = tasks, job, stopped

    def carry_out(self, tasks: Sequence[Task], done: Callable[[Task], None]) -> None:
        for task in tasks:
            told = self._tasks.workspace.read_json(PROGRESS)
            self._job.progress(told["done"], told["total"], "tasks", told["message"])
            self._job.check_cancelled()
            if self._stopped():
                raise _Stopped
            try:
                OneByOne(self._tasks).carry_out([task], done)
            except FlywheelError:
                raise
            except Exception as error:
                raise _Died from error
