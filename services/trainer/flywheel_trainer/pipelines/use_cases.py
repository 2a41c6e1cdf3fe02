"""Use cases of pipeline runs. `pipelines.steps` does the work of the runs that are started here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from flywheel_common.clock import Clock
from flywheel_common.ids import Ids
from flywheel_common.paging import Page
from flywheel_trainer.jobs.job import ENDED
from flywheel_trainer.pipelines.errors import UnknownPipelineRun
from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName, PipelineSpec, check_pipeline
from flywheel_trainer.pipelines.ports import PipelineStore
from flywheel_trainer.runs.filter_terms import Term


class Pipelines:
    """Starts, reads, watches and cancels pipeline runs."""

    def __init__(self, store: PipelineStore, ids: Ids, clock: Clock) -> None:
        self._store, self._ids, self._clock = store, ids, clock

    async def start(self, project: str, spec: PipelineSpec, request_id: str, body: bytes) -> PipelineRun:
        """Store a run; from then on it is executed even if this process ends. Raises InvalidSpec."""
        check_pipeline(spec, project)
        now = self._clock.now()
        run = PipelineRun(PipelineRunName(project, f"pipe-{self._ids.new()}"), spec, event_time=now)
        return await self._store.create(run, request_id, body, now)

    async def get(self, name: PipelineRunName) -> PipelineRun:
        """Raises UnknownPipelineRun."""
        run = await self._store.get(name)
        if run is None:
            raise UnknownPipelineRun.of(name)
        return run

    async def list(self, project: str, terms: Sequence[Term], size: int, token: str) -> Page[PipelineRun]:
        return await self._store.list(project, terms, size, token)

    async def cancel(self, name: PipelineRunName, request_id: str = "", body: bytes = b"") -> PipelineRun:
        """Request the end of the run after the step in progress; a training job in progress is stopped.

        A repeated request returns the run as it is now. Raises UnknownPipelineRun, PipelineRunEnded.
        """
        return await self._store.request_cancel(name, request_id, body)

    async def watch(self, name: PipelineRunName, poll_seconds: float) -> AsyncIterator[PipelineRun]:
        """Yield the run now and at every change, until it has ended."""
        last: PipelineRun | None = None
        while True:
            run = await self.get(name)
            if run != last:
                yield run
            if run.state in ENDED:
                return
            last = run
            await asyncio.sleep(poll_seconds)
