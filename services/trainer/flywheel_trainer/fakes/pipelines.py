"""`pipelines.PipelineStore`, `policies.PolicyStore` and `policies.Decisions` in memory, for unit tests of the use cases. Held to the same
contract suites as PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from flywheel_common.errors import FailedPrecondition
from flywheel_common.paging import Page, cut, decode_token
from flywheel_trainer.fakes.requests import MemoryRequests
from flywheel_trainer.jobs.job import ENDED, JobState
from flywheel_trainer.pipelines.errors import unknown_pipeline_run
from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName, Step


class MemoryPipelines:
    """`pipelines.PipelineStore`. `completed` holds the runs whose `training.completed` went out, as they ended, with its message."""

    def __init__(self) -> None:
        self._requests = MemoryRequests()
        self._runs: dict[PipelineRunName, PipelineRun] = {}
        self.completed: list[tuple[PipelineRun, str]] = []

    async def create(self, run: PipelineRun, request_id: str, body: bytes, now: datetime) -> PipelineRun:
        first = self._requests.replay("StartPipelineRun", request_id, body)
        if first is None:
            first = self._requests.answered("StartPipelineRun", request_id, body, run.name)
            self.add(run, now)
        return self._runs[first]

    def add(self, run: PipelineRun, now: datetime) -> None:
        """A new run, whatever starts it."""
        self._runs[run.name] = replace(run, created_at=now)

    def active(self, model: str) -> bool:
        """Whether a run of this model has not ended."""
        return any(r.spec.model == model and r.state not in ENDED for r in self._runs.values())

    async def get(self, name: PipelineRunName) -> PipelineRun | None:
        return self._runs.get(name)

    async def list(self, project: str, size: int, token: str) -> Page[PipelineRun]:
        (after,) = decode_token(token, query=project) or [""]
        mine = [r for r in self._runs.values() if r.name.project == project]
        rows = sorted((r for r in mine if not after or r.name.run < str(after)), key=lambda r: r.name.run)
        return cut(rows[::-1][: size + 1], size, lambda r: (r.name.run,), query=project)

    async def unfinished(self) -> Sequence[PipelineRunName]:
        alive = [r.name for r in self._runs.values() if r.state not in ENDED]
        return sorted(alive, key=lambda name: name.run)

    async def request_cancel(
        self, name: PipelineRunName, request_id: str = "", body: bytes = b""
    ) -> PipelineRun:
        if self._requests.replay("CancelPipelineRun", request_id, body) is not None:
            return self._runs[name]
        run = self._runs.get(name)
        if run is None:
            raise unknown_pipeline_run(name)
        if run.state in ENDED:
            raise FailedPrecondition(
                f"Pipeline run {str(name)!r} has ended as {run.state}.", reason="PIPELINE_RUN_ENDED"
            )
        self._requests.answered("CancelPipelineRun", request_id, body, name)
        return self._change(name, cancel_requested=True)

    def _change(self, name: PipelineRunName, **changes: Any) -> PipelineRun:
        self._runs[name] = replace(self._runs[name], **changes)
        return self._runs[name]

    def _steps(self, name: PipelineRunName, step: str, change: Mapping[str, Any]) -> tuple[Step, ...]:
        return tuple(replace(s, **change) if s.step == step else s for s in self._runs[name].steps)

    async def begin_step(self, name: PipelineRunName, step: str, now: datetime) -> None:
        run = self._runs[name]
        if run.state is JobState.QUEUED:
            self._change(name, state=JobState.RUNNING)
        (found,) = (s for s in run.steps if s.step == step)
        if found.state not in ENDED:
            begun = {"state": JobState.RUNNING, "started_at": found.started_at or now}
            self._change(name, steps=self._steps(name, step, begun))

    async def note(self, name: PipelineRunName, facts: Mapping[str, Any]) -> None:
        self._change(name, **facts)

    async def end_step(
        self,
        name: PipelineRunName,
        step: str,
        output: str,
        message: str,
        facts: Mapping[str, Any],
        now: datetime,
    ) -> None:
        (found,) = (s for s in self._runs[name].steps if s.step == step)
        ended = {
            "state": JobState.SUCCEEDED,
            "output": output,
            "message": message,
            "ended_at": found.ended_at or now,
        }
        self._change(name, steps=self._steps(name, step, ended), **facts)

    async def finish(
        self, name: PipelineRunName, state: JobState, reason: str, message: str, now: datetime
    ) -> None:
        assert state in ENDED
        run = self._runs[name]
        if run.state in ENDED:
            return
        closed: Mapping[JobState, Mapping[str, Any]] = {
            JobState.RUNNING: {"state": state, "message": message, "ended_at": now},
            JobState.QUEUED: {"state": JobState.CANCELLED, "message": "not run"},
        }
        failed = state is not JobState.SUCCEEDED
        ended = self._change(
            name, state=state, error_reason=reason if failed else "", error_message=message if failed else "",
            ended_at=now, steps=tuple(replace(s, **closed.get(s.state, {})) for s in run.steps),
        )  # fmt: skip
        self.completed.append((ended, message))
