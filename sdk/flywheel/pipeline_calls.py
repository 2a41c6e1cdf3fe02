"""Calls about pipelines as code: apply, run, rerun, approve, backfill."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct

from flywheel.connection import request_id
from flywheel.errors import PipelineError
from flywheel.model_calls import ModelCalls
from flywheel.pipeline_builder import Pipeline, compile_pipeline
from flywheel.version_references import VersionReferences
from flywheel_protos.trainer.v1 import origin_pb2, pipeline_graph_pb2, trainer_pb2
from flywheel_protos.types.v1 import job_pb2

MAX_BACKFILL_RUNS, MAX_BACKFILL_ATTEMPTS = 1000, 100
RUNS_PER_PAGE = 100
UNSUCCESSFUL = (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED, job_pb2.JOB_STATE_LOST)


class PipelineCalls(ModelCalls, VersionReferences):
    """Calls of the trainer about stored pipelines and their runs."""

    async def apply_pipeline(self, definition: Pipeline) -> pipeline_graph_pb2.ApplyPipelineResponse:
        """Compiles a pipeline, uploads the source archives of its jobs, and stores it as a new version.

        `created` is False if the newest version is the same. Raises PipelineError, SourceError.
        """
        compiled = await asyncio.to_thread(compile_pipeline, definition, self.project)
        for archive in compiled.archives:
            await self.upload_source(archive)
        request = pipeline_graph_pb2.ApplyPipelineRequest(
            parent=self.parent, pipeline_id=compiled.name, graph=compiled.graph, request_id=request_id()
        )
        applied: pipeline_graph_pb2.ApplyPipelineResponse = await self.trainer.ApplyPipeline(request)
        return applied

    async def run_pipeline(
        self, pipeline: str, params: Mapping[str, Any] | None = None, *, once: str = ""
    ) -> trainer_pb2.PipelineRun:
        """Starts a run of a stored pipeline: the newest version, or `name/versions/3`.

        Calls with the same `once` start one run.
        """
        request = trainer_pb2.StartPipelineRunRequest(
            parent=self.parent,
            pipeline=self.path("pipelines", pipeline),
            params=ParseDict(dict(params or {}), Struct()),
            request_id=once or request_id(),
        )
        return (await self.trainer.StartPipelineRun(request)).pipeline_run

    async def rerun_pipeline(self, run: str, from_step: str = "") -> trainer_pb2.PipelineRun:
        """Starts a new run with the graph of an ended one, from a step or from those that did not succeed."""
        request = trainer_pb2.RerunPipelineRunRequest(
            name=self.path("pipelineRuns", run), from_step=from_step, request_id=request_id()
        )
        return (await self.trainer.RerunPipelineRun(request)).pipeline_run

    async def approve_step(
        self, run: str, step: str, *, approved: bool = True, reason: str = ""
    ) -> trainer_pb2.PipelineRun:
        """Approves or rejects a step that waits for it."""
        request = trainer_pb2.ApprovePipelineStepRequest(
            name=self.path("pipelineRuns", run),
            step=step,
            approved=approved,
            reason=reason,
            request_id=request_id(),
        )
        return (await self.trainer.ApprovePipelineStep(request)).pipeline_run

    async def explain_version(self, version: str) -> origin_pb2.OriginNode:
        """Where a version comes from: policy, event, pipeline, run, training set, views and sources."""
        request = origin_pb2.ExplainModelVersionRequest(name=await self.resolve_version(version))
        return (await self.trainer.ExplainModelVersion(request)).origin

    async def backfill(
        self,
        pipeline: str,
        start: datetime,
        end: datetime,
        every: timedelta,
        *,
        params: Mapping[str, Any] | None = None,
        progress: Callable[[trainer_pb2.PipelineRun], None] | None = None,
    ) -> list[trainer_pb2.PipelineRun]:
        """Runs a pipeline for each interval of a date range, one after the other; returns the ended runs.

        Its parameters `start` and `end` are set to the interval, `[start, end)`. A failed run ends the
        backfill with JobFailedError. An interval for which a run of the same version and parameters has
        succeeded is not run again, and a run that has not ended is waited for, by whichever caller they were
        started; a repeated backfill runs what is left.
        """
        name = self.path("pipelines", pipeline)
        request = pipeline_graph_pb2.GetPipelineRequest(name=name)
        found = (await self.trainer.GetPipeline(request)).pipeline
        defaults = {name: MessageToDict(value) for name, value in found.graph.params.items()}
        known = await self._runs_by_params(found.name)
        ended = []
        for begin, until in intervals(start, end, every):
            given = {**(params or {}), "start": _text(begin), "end": _text(until)}
            key = _key({**defaults, **given})
            run = known.get(key) or await self._run_interval(found.name, given, key)
            ended.append(await self.wait_pipeline(run.name, progress))
        return ended

    async def _runs_by_params(self, version: str) -> dict[str, trainer_pb2.PipelineRun]:
        """The runs of a version that have succeeded or not ended, by the key of their parameters."""
        found: dict[str, trainer_pb2.PipelineRun] = {}
        request = trainer_pb2.ListPipelineRunsRequest(
            parent=self.parent, filter=f'pipeline="{version}"', page_size=RUNS_PER_PAGE
        )
        while True:
            page = await self.trainer.ListPipelineRuns(request)
            for run in page.pipeline_runs:
                key = _key(MessageToDict(run.params))
                if run.state == job_pb2.JOB_STATE_SUCCEEDED or (
                    run.state not in UNSUCCESSFUL and key not in found
                ):
                    found[key] = run
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    async def _run_interval(
        self, version: str, params: Mapping[str, Any], key: str
    ) -> trainer_pb2.PipelineRun:
        """A new run: the number of the attempt goes behind those that have failed."""
        prefix = hashlib.sha256(f"{version}/{key}".encode()).hexdigest()[:32]
        for attempt in range(1, MAX_BACKFILL_ATTEMPTS + 1):
            run = await self.run_pipeline(version, params, once=f"backfill-{prefix}-{attempt}")
            if run.state not in UNSUCCESSFUL:
                break
        return run


def intervals(start: datetime, end: datetime, every: timedelta) -> list[tuple[datetime, datetime]]:
    """The intervals of a date range; the last one may be shorter.

    Naive times are UTC. Raises PipelineError.
    """
    begin, until = (t.replace(tzinfo=UTC) if t.tzinfo is None else t.astimezone(UTC) for t in (start, end))
    if every <= timedelta(0) or begin >= until:
        raise PipelineError("A backfill needs a start before its end, and an interval above zero.")
    if (until - begin) / every > MAX_BACKFILL_RUNS:
        raise PipelineError(f"A backfill has at most {MAX_BACKFILL_RUNS} runs: use longer intervals.")
    found = []
    while begin < until:
        found.append((begin, min(begin + every, until)))
        begin += every
    return found


def _key(params: Mapping[str, Any]) -> str:
    """Equal for equal values: numbers of protobuf are floats."""
    return json.dumps(MessageToDict(ParseDict(dict(params), Struct())), sort_keys=True)


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
