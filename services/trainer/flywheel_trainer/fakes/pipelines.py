"""`PipelineStore` in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from flywheel_common.paging import Page, cut, decode_token
from flywheel_trainer.fakes.requests import MemoryRequests
from flywheel_trainer.fakes.text_terms import has_text
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.jobs.job import ENDED, JobState
from flywheel_trainer.pipelines.cache import CachedStep
from flywheel_trainer.pipelines.errors import (
    PipelineRunEnded,
    StepNotWaiting,
    UnknownPipelineRun,
    UnknownStep,
)
from flywheel_trainer.pipelines.pipeline_run import Approval, PipelineRun, PipelineRunName, Step, fields_in
from flywheel_trainer.pipelines.ports import Ended
from flywheel_trainer.runs.filter_terms import Term


class MemoryPipelines:
    """`PipelineStore` and `StepCache`; `completed` are the ended runs, each with the message of its event."""

    def __init__(self, tracking: MemoryTracking | None = None) -> None:
        """`tracking` has the jobs that the runs submit."""
        self._tracking = tracking or MemoryTracking()
        self._requests = MemoryRequests()
        self._runs: dict[PipelineRunName, PipelineRun] = {}
        self._cache: dict[tuple[str, str], CachedStep] = {}
        self.completed: list[tuple[PipelineRun, str]] = []

    async def create(self, run: PipelineRun, request_id: str, body: bytes, now: datetime) -> PipelineRun:
        first = self._requests.replay("StartPipelineRun", request_id, body)
        if first is None:
            first = self._requests.store("StartPipelineRun", request_id, body, run.name)
            self.add(run, now)
        return self._runs[first]

    def add(self, run: PipelineRun, now: datetime) -> None:
        """Add a run that a request or a retraining decision starts."""
        self._runs[run.name] = replace(run, created_at=now)

    def has_active_run(self, model: str) -> bool:
        """Whether a run of this model has not ended."""
        return any(r.model == model and r.state not in ENDED for r in self._runs.values())

    def find_run(self, run: str) -> PipelineRun | None:
        """The run with this name."""
        return next((r for r in self._runs.values() if str(r.name) == run), None)

    def reruns_of(self, run: str) -> Sequence[PipelineRun]:
        """The reruns of the run with this name, and their reruns."""
        found = [r for r in self._runs.values() if r.rerun_of == run]
        return [again for r in found for again in (r, *self.reruns_of(str(r.name)))]

    async def get(self, name: PipelineRunName) -> PipelineRun | None:
        return self._runs.get(name)

    async def list(self, project: str, terms: Sequence[Term], size: int, token: str) -> Page[PipelineRun]:
        query = repr((project, terms))
        (after,) = decode_token(token, query=query) or [""]
        found = [r for r in self._runs.values() if r.name.project == project]
        found = [r for r in found if all(has_text(t, _field(r, t.field)) for t in terms)]
        found = [r for r in found if not after or r.name.run < str(after)]
        rows = sorted(found, key=lambda r: r.name.run, reverse=True)
        return cut(rows[: size + 1], size, lambda r: (r.name.run,), query=query)

    async def unfinished(self) -> Sequence[PipelineRunName]:
        names = [r.name for r in self._runs.values() if r.state not in ENDED]
        return sorted(names, key=lambda name: name.run)

    async def request_cancel(
        self, name: PipelineRunName, request_id: str = "", body: bytes = b""
    ) -> PipelineRun:
        if self._requests.replay("CancelPipelineRun", request_id, body) is not None:
            return self._runs[name]
        run = self._runs.get(name)
        if run is None:
            raise UnknownPipelineRun.of(name)
        if run.state in ENDED:
            raise PipelineRunEnded.of(name, run.state)
        self._requests.store("CancelPipelineRun", request_id, body, name)
        self._tracking.close_pipeline_run(str(name))
        return self._change(name, cancel_requested=True)

    async def begin_step(self, name: PipelineRunName, step: str, now: datetime) -> None:
        run = self._runs[name]
        if run.state is JobState.QUEUED:
            self._change(name, state=JobState.RUNNING)
        (found,) = (s for s in run.steps if s.step == step)
        if found.state not in ENDED:
            begun = {
                "state": JobState.RUNNING,
                "started_at": found.started_at or now,
                "attempt": max(found.attempt, 1),
            }
            self._change(name, steps=self._steps(name, step, begun))

    async def set_fields(self, name: PipelineRunName, fields: Mapping[str, Any]) -> None:
        self._change(name, **fields)

    async def begin_attempt(self, name: PipelineRunName, step: str, attempt: int, message: str) -> None:
        found = self._runs[name].step(step)
        if found is not None and found.state is JobState.RUNNING and found.attempt <= attempt:
            changes = {"attempt": attempt, "message": message}
            self._change(name, steps=self._steps(name, step, changes))

    async def end_step(
        self, name: PipelineRunName, step: str, ended: Ended, now: datetime, cache_key: str = ""
    ) -> None:
        found = self._runs[name].step(step)
        if found is None or found.state in ENDED:
            return
        changes = {
            "state": ended.state,
            "output": ended.output,
            "message": ended.message,
            "outputs": ended.outputs,
            "error_reason": ended.reason,
            "reused_from": ended.reused_from,
            "ended_at": now,
        }
        fields = fields_in(ended.outputs) if ended.state is JobState.SUCCEEDED else {}
        self._change(name, steps=self._steps(name, step, changes), **fields)
        if cache_key and ended.state is JobState.SUCCEEDED:
            cached = CachedStep(str(name), ended.output, ended.message, ended.outputs)
            self._cache[name.project, cache_key] = cached

    async def find(self, project: str, key: str) -> CachedStep | None:
        """`StepCache.find`."""
        return self._cache.get((project, key))

    async def decide(
        self, name: PipelineRunName, step: str, approval: Approval, request_id: str, body: bytes
    ) -> PipelineRun:
        if self._requests.replay("ApprovePipelineStep", request_id, body) is not None:
            return self._runs[name]
        run = self._runs.get(name)
        if run is None:
            raise UnknownPipelineRun.of(name)
        found = run.step(step)
        if found is None:
            raise UnknownStep.of(name, step)
        decided = found.approval is not None and found.approval.approved is not approval.approved
        if found.state is not JobState.RUNNING or run.graph.step(step).kind != "approval" or decided:
            raise StepNotWaiting.of(name, step)
        self._requests.store("ApprovePipelineStep", request_id, body, name)
        return self._change(name, steps=self._steps(name, step, {"approval": approval}))

    async def finish(
        self, name: PipelineRunName, state: JobState, reason: str, message: str, now: datetime
    ) -> None:
        assert state in ENDED
        run = self._runs[name]
        if run.state in ENDED:
            return
        changes: Mapping[JobState, Mapping[str, Any]] = {
            JobState.RUNNING: {"state": state, "message": message, "ended_at": now},
            JobState.QUEUED: {"state": JobState.CANCELLED, "message": "not run"},
        }
        failed = state is not JobState.SUCCEEDED
        ended = self._change(
            name,
            state=state,
            error_reason=reason if failed else "",
            error_message=message if failed else "",
            ended_at=now,
            steps=tuple(replace(s, **changes.get(s.state, {})) for s in run.steps),
        )
        self._tracking.close_pipeline_run(str(name))
        if ended.model:
            self.completed.append((ended, message))

    def _change(self, name: PipelineRunName, **changes: Any) -> PipelineRun:
        self._runs[name] = replace(self._runs[name], **changes)
        return self._runs[name]

    def _steps(self, name: PipelineRunName, step: str, changes: Mapping[str, Any]) -> tuple[Step, ...]:
        return tuple(replace(s, **changes) if s.step == step else s for s in self._runs[name].steps)


def _field(run: PipelineRun, field: str) -> str:
    return str(getattr(run, field))
