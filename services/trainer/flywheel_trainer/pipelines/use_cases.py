"""Pipeline runs as people see them: what was asked for, how far it is, what came out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from flywheel_common.clock import Clock
from flywheel_common.ids import Ids
from flywheel_common.paging import Page
from flywheel_trainer.jobs.job import ENDED
from flywheel_trainer.pipelines.errors import unknown_pipeline_run
from flywheel_trainer.pipelines.pipeline_run import (
    PipelineRun,
    PipelineRunName,
    PipelineSpec,
    check_pipeline,
)
from flywheel_trainer.pipelines.ports import PipelineStore


class Pipelines:
    """Use cases of pipeline runs; the work itself is `pipeline`'s."""

    def __init__(self, store: PipelineStore, ids: Ids, clock: Clock) -> None:
        self._store, self._ids, self._clock = store, ids, clock

    async def start(self, project: str, spec: PipelineSpec, request_id: str, body: bytes) -> PipelineRun:
        """Accept a run; it is driven from here on whatever happens to this process. InvalidArgument INVALID_SPEC."""
        check_pipeline(spec, project)
        now = self._clock.now()
        run = PipelineRun(PipelineRunName(project, f"pipe-{self._ids.new()}"), spec, event_time=now)
        return await self._store.create(run, request_id, body, now)

    async def get(self, name: PipelineRunName) -> PipelineRun:
        """Raises NotFound UNKNOWN_PIPELINE_RUN."""
        run = await self._store.get(name)
        if run is None:
            raise unknown_pipeline_run(name)
        return run

    async def list(self, project: str, size: int, token: str) -> Page[PipelineRun]:
        return await self._store.list(project, size, token)

    async def cancel(self, name: PipelineRunName, request_id: str = "", body: bytes = b"") -> PipelineRun:
        """Ask for the end after the step in progress; a training job in progress is stopped. FailedPrecondition
        PIPELINE_RUN_ENDED. A repeat of a request that was heard answers the run as it is now, ended or not."""
        return await self._store.request_cancel(name, request_id, body)

    async def watch(self, name: PipelineRunName, poll_seconds: float) -> AsyncIterator[PipelineRun]:
        """The run now and at every change, until it has ended."""
        last: PipelineRun | None = None
        while True:
            run = await self.get(name)
            if run != last:
                yield run
            if run.state in ENDED:
                return
            last = run
            await asyncio.sleep(poll_seconds)
