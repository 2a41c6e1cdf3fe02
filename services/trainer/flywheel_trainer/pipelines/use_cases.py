"""Use cases of pipelines and their runs.

`pipelines.execution` does the work of the runs that are started here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from flywheel_common.clock import Clock
from flywheel_common.context import current_principal
from flywheel_common.ids import Ids
from flywheel_common.paging import Page
from flywheel_trainer.jobs.job import ENDED
from flywheel_trainer.pipelines.definition import Pipeline, PipelineDefinitions, PipelineName, parse_pipeline
from flywheel_trainer.pipelines.errors import (
    InvalidPipeline,
    PipelineRunActive,
    UnknownPipeline,
    UnknownPipelineRun,
)
from flywheel_trainer.pipelines.expansion import expand, queued
from flywheel_trainer.pipelines.graph import Graph
from flywheel_trainer.pipelines.graph_check import check_graph
from flywheel_trainer.pipelines.pipeline_run import (
    Approval,
    PipelineRun,
    PipelineRunName,
    PipelineSpec,
    check_pipeline,
)
from flywheel_trainer.pipelines.ports import PipelineStore
from flywheel_trainer.pipelines.rerun import rerun
from flywheel_trainer.pipelines.standard import JobJson, standard_run
from flywheel_trainer.pipelines.step_kind import StepKinds
from flywheel_trainer.runs.filter_terms import Term


class Pipelines:
    """Stores pipelines, and starts, reads, watches and cancels their runs."""

    def __init__(
        self,
        store: PipelineStore,
        definitions: PipelineDefinitions,
        kinds: StepKinds,
        job_json: JobJson,
        ids: Ids,
        clock: Clock,
    ) -> None:
        self._store, self._definitions, self._kinds, self._job_json = store, definitions, kinds, job_json
        self._ids, self._clock = ids, clock

    async def apply(
        self, name: PipelineName, graph: Graph, request_id: str, body: bytes
    ) -> tuple[Pipeline, bool]:
        """Store a graph as a new version, unless the newest is equal; returns (version, whether it is new).

        Raises InvalidPipeline, UnknownStepKind, MissingInput, PipelineCycle, InvalidSpec.
        """
        checked = check_graph(graph, self._kinds, name.project)
        by = current_principal().subject
        return await self._definitions.apply(name, checked, by, self._clock.now(), request_id, body)

    async def get_pipeline(self, name: str) -> Pipeline:
        """A version, or the newest one. Raises UnknownPipeline, InvalidName."""
        pipeline, version = parse_pipeline(name)
        found = await self._definitions.get(pipeline, version)
        if found is None:
            raise UnknownPipeline.of(name)
        return found

    async def list_pipelines(self, project: str, size: int, token: str) -> Page[Pipeline]:
        return await self._definitions.list(project, size, token)

    async def start(self, project: str, spec: PipelineSpec, request_id: str, body: bytes) -> PipelineRun:
        """Store a standard run; from then on it is executed even if this process ends. Raises InvalidSpec."""
        check_pipeline(spec, project)
        now = self._clock.now()
        run = standard_run(self._new_name(project), spec, now, self._job_json)
        return await self._store.create(run, request_id, body, now)

    async def start_pipeline(
        self, project: str, name: str, params: Mapping[str, Any], request_id: str, body: bytes
    ) -> PipelineRun:
        """Store a run of a stored pipeline. Raises UnknownPipeline, InvalidPipeline, MissingInput."""
        pipeline = await self.get_pipeline(name)
        if pipeline.name.project != project:
            raise InvalidPipeline(f"{name} belongs to another project.", field="pipeline")
        graph, values = expand(pipeline.graph, params)
        now = self._clock.now()
        run = PipelineRun(self._new_name(project), now, graph, pipeline=str(pipeline.name), params=values)
        return await self._store.create(queued(run), request_id, body, now)

    async def rerun(self, name: PipelineRunName, from_step: str, request_id: str, body: bytes) -> PipelineRun:
        """Store a run that reuses steps of an ended one.

        Raises UnknownPipelineRun, UnknownStep, PipelineRunActive.
        """
        ended = await self.get(name)
        if ended.state not in ENDED:
            raise PipelineRunActive.of(name)
        again = rerun(ended, self._new_name(name.project), from_step)
        return await self._store.create(again, request_id, body, self._clock.now())

    async def decide(
        self, name: PipelineRunName, step: str, approved: bool, reason: str, *, request_id: str, body: bytes
    ) -> PipelineRun:
        """Approve or reject a step. Raises UnknownPipelineRun, UnknownStep, StepNotWaiting."""
        approval = Approval(approved, current_principal().subject, reason)
        return await self._store.decide(name, step, approval, request_id, body)

    async def get(self, name: PipelineRunName) -> PipelineRun:
        """Raises UnknownPipelineRun."""
        run = await self._store.get(name)
        if run is None:
            raise UnknownPipelineRun.of(name)
        return run

    async def list(self, project: str, terms: Sequence[Term], size: int, token: str) -> Page[PipelineRun]:
        return await self._store.list(project, terms, size, token)

    async def cancel(self, name: PipelineRunName, request_id: str = "", body: bytes = b"") -> PipelineRun:
        """Request the end of the run after the steps in progress; jobs in progress are stopped.

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

    def _new_name(self, project: str) -> PipelineRunName:
        return PipelineRunName(project, f"pipe-{self._ids.new()}")
