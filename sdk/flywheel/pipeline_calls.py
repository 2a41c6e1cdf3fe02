"""Calls about pipelines as code: apply, run, rerun, approve, backfill."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from flywheel.connection import request_id
from flywheel.errors import PipelineError
from flywheel.model_calls import ModelCalls
from flywheel.pipeline_builder import Pipeline, compile_pipeline
from flywheel_protos.trainer.v1 import origin_pb2, pipeline_graph_pb2, trainer_pb2
from flywheel_protos.types.v1 import job_pb2

MAX_BACKFILL_RUNS, MAX_BACKFILL_ATTEMPTS = 1000, 100
UNSUCCESSFUL = (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED, job_pb2.JOB_STATE_LOST)


class PipelineCalls(ModelCalls):
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

    async def explain_version(self, model: str, version: int) -> origin_pb2.OriginNode:
        """Where a model version comes from: policy, event, pipeline, run, training set, views and sources."""
        name = f"{self.path('models', model)}/versions/{version}"
        request = origin_pb2.ExplainModelVersionRequest(name=name)
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
        backfill with JobFailedError. A repeated backfill of the same version waits for the runs of the
        earlier one, starts a new run for an interval whose run has failed, and continues.
        """
        name = self.path("pipelines", pipeline)
        found = await self.trainer.GetPipeline(pipeline_graph_pb2.GetPipelineRequest(name=name))
        version = found.pipeline.name
        ended = []
        for begin, until in intervals(start, end, every):
            given = {**(params or {}), "start": _text(begin), "end": _text(until)}
            key = f"backfill/{version}/{_text(begin)}/{_text(until)}"
            for attempt in range(1, MAX_BACKFILL_ATTEMPTS + 1):
                run = await self.run_pipeline(version, given, once=f"{key}/{attempt}")
                if run.state not in UNSUCCESSFUL:
                    break
            ended.append(await self.wait_pipeline(run.name, progress))
        return ended


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


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
