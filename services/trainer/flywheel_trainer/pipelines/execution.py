"""Executes the steps of pipeline runs: inputs, conditions, cache, retries, timeouts, records.

A step can be repeated after a crash: what it has recorded is not done again, and its requests to other
services carry a request id made of the pipeline run's id, the step's id and the number of the try, so that
a repeated request has no second effect.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_trainer.jobs.errors import CancelledOnRequest
from flywheel_trainer.jobs.job import ENDED, JobState
from flywheel_trainer.pipelines.cache import StepCache, cache_key
from flywheel_trainer.pipelines.elements import NO_VALUE, element_of, has_element
from flywheel_trainer.pipelines.errors import (
    StepStopped,
    StepTimeout,
    UnknownPipelineRun,
    UnknownStep,
    WorkflowFailed,
)
from flywheel_trainer.pipelines.field_paths import value_at, with_values
from flywheel_trainer.pipelines.graph import Condition, GraphStep, Source
from flywheel_trainer.pipelines.pipeline_run import Approval, PipelineRun, PipelineRunName
from flywheel_trainer.pipelines.ports import Ended, PipelineStore
from flywheel_trainer.pipelines.step_kind import Begun, Result, StepKinds

_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 1.0, 30.0
"""Pauses between the calls of a step during an outage of a service; each is 1.5 times the one before."""
MAX_OUTAGE_CALLS = 1500
"""Calls of a step that outages may refuse, about half a day of pauses, before the step fails."""


class Execution:
    """Runs steps whose needs have ended, and ends runs."""

    def __init__(
        self, store: PipelineStore, kinds: StepKinds, cache: StepCache, clock: Clock, poll_seconds: float
    ) -> None:
        self._store, self._kinds, self._cache = store, kinds, cache
        self._clock, self._poll_seconds = clock, poll_seconds

    async def plan(self, workflow: str) -> list[tuple[str, list[str]]]:
        """(id, needs) of every step, in order."""
        run = await self._get(workflow)
        return [(step.id, list(step.needs)) for step in run.graph.steps]

    async def execute(self, workflow: str, step_id: str) -> str:
        """Run a step whose needs have ended, and return its state.

        A step waits for the end of an outage of another service. Raises errors of the store, which another
        call can cure, and CancelledOnRequest once cancellation was requested; all others are recorded.
        """
        run = await self._get(workflow)
        state = run.step(step_id)
        if state is None:
            raise UnknownStep.of(workflow, step_id)
        if state.state in ENDED:
            return state.state
        if run.cancel_requested:
            raise _cancelled()
        step = run.graph.step(step_id)
        refused = _not_run(run, step)
        if refused is not None:
            return await self._end(run, step, Ended(JobState.CANCELLED, message=refused))
        await self._store.begin_step(run.name, step_id, self._clock.now())
        if not has_element(run, step):
            return await self._end(run, step, Ended(JobState.SUCCEEDED, message=NO_VALUE))
        try:
            return await self._tries(workflow, step)
        except (StepStopped, StepTimeout) as error:
            stopped = isinstance(error, StepStopped)
            ended = JobState.CANCELLED if stopped else JobState.FAILED
            return await self._end(run, step, Ended(ended, message=error.message, reason=error.reason))

    async def fail(self, workflow: str, step_id: str, reason: str, message: str) -> str:
        """Record the failure of a step."""
        run = await self._get(workflow)
        ended = Ended(JobState.FAILED, message=message, reason=reason)
        return await self._end(run, run.graph.step(step_id), ended)

    async def finish(self, workflow: str) -> tuple[str, str]:
        """End the run by the states of its steps, and publish `training.completed`.

        Returns (state, message).
        """
        run = await self._get(workflow)
        state, reason, message = _ending(run)
        await self._store.finish(run.name, state, reason, message, self._clock.now())
        return state, message

    async def abandon(self, workflow: str, reason: str, message: str) -> None:
        """Fail a run whose workflow has ended before its last step."""
        name = PipelineRunName.parse(workflow)
        await self._store.finish(name, JobState.FAILED, reason, message, self._clock.now())

    async def _tries(self, workflow: str, step: GraphStep) -> str:
        refused, pause = 0, FIRST_PAUSE_SECONDS
        while True:
            run = await self._get(workflow)
            state = run.step(step.id)
            assert state is not None
            attempt = max(state.attempt, 1)
            spec, contents = _resolved(run, step)
            key = cache_key(step.kind, contents) if step.cache else ""
            hit = await self._cache.find(run.name.project, key) if key else None
            if hit is not None:
                message = f"{hit.message} (reused from {hit.run})"
                ended = Ended(JobState.SUCCEEDED, hit.output, message, hit.outputs, reused_from=hit.run)
                return await self._end(run, step, ended)
            kind = self._kinds[step.kind]
            kind.check(spec, run.name.project, ())
            try:
                result = await kind.run(self._begun(run, step, spec, attempt))
            except FlywheelError as error:
                if isinstance(error, StepStopped | StepTimeout | CancelledOnRequest):
                    raise
                if error.retryable and refused < MAX_OUTAGE_CALLS:
                    message = f"repeated after: {error.message}"
                    await self._store.begin_attempt(run.name, step.id, attempt, message)
                    await self._delay(workflow, step, pause)
                    refused, pause = refused + 1, min(1.5 * pause, LAST_PAUSE_SECONDS)
                    continue
                if error.retryable:
                    return await self.fail(workflow, step.id, error.reason, error.message)
                if attempt > step.retries:
                    raise
                await self._store.begin_attempt(run.name, step.id, attempt + 1, error.message)
                await self._delay(workflow, step, step.retry_delay_seconds)
                continue
            return await self._end(run, step, _succeeded(result), key)

    def _begun(self, run: PipelineRun, step: GraphStep, spec: Mapping[str, Any], attempt: int) -> Begun:
        workflow = str(run.name)
        request_id = f"{run.name.run}:{step.id}" + (f":{attempt}" if attempt > 1 else "")

        async def approval() -> Approval | None:
            found = (await self._get(workflow)).step(step.id)
            return found.approval if found is not None else None

        instances = {}
        if step.kind == "select":
            chosen = [name for name in step.spec["step"] if has_element(run, run.graph.step(name))]
            instances = {name: _outputs(run, name) for name in chosen}
        return Begun(
            run=run,
            id=step.id,
            spec=spec,
            request_id=request_id,
            pause=lambda: self._pause(workflow, step),
            set_fields=lambda fields: self._store.set_fields(run.name, fields),
            approval=approval,
            instances=instances,
        )

    async def _delay(self, workflow: str, step: GraphStep, seconds: float) -> None:
        """Wait before another call; raises what `_pause` does."""
        end = self._clock.now() + timedelta(seconds=seconds)
        while self._clock.now() < end:
            await self._pause(workflow, step)

    async def _pause(self, workflow: str, step: GraphStep) -> None:
        """Raises CancelledOnRequest, StepStopped, StepTimeout if the step is to end."""
        await asyncio.sleep(self._poll_seconds)
        run = await self._get(workflow)
        if run.cancel_requested:
            raise _cancelled()
        failed = next((one.step for one in run.steps if one.state is JobState.FAILED), None)
        if failed is not None:
            raise StepStopped(f"stopped, because step {failed} failed")
        state = run.step(step.id)
        if state is not None and state.started_at is not None and self._is_late(step, state.started_at):
            raise StepTimeout(f"The step took longer than {step.timeout_seconds:g} s.")

    def _is_late(self, step: GraphStep, started_at: datetime) -> bool:
        taken = (self._clock.now() - started_at).total_seconds()
        return 0 < step.timeout_seconds <= taken

    async def _end(self, run: PipelineRun, step: GraphStep, ended: Ended, key: str = "") -> str:
        await self._store.end_step(run.name, step.id, ended, self._clock.now(), key)
        return ended.state

    async def _get(self, workflow: str) -> PipelineRun:
        name = PipelineRunName.parse(workflow)
        run = await self._store.get(name)
        if run is None:
            raise UnknownPipelineRun.of(name)
        return run


def is_retryable(error: BaseException) -> bool:
    """Whether a step is repeated after this error: an outage of a dependency passes, a refusal does not."""
    return error.retryable if isinstance(error, FlywheelError) else isinstance(error, (OSError, TimeoutError))


def _not_run(run: PipelineRun, step: GraphStep) -> str | None:
    """Why the step does not run; None: it does."""
    for needed in step.needs:
        state = run.step(needed)
        if state is None or state.state is not JobState.SUCCEEDED:
            return "not run"
    for condition in step.conditions:
        left = value_at(_outputs(run, condition.step), condition.output, condition.step)
        if not _holds(condition, left):
            found = run.step(condition.step)
            message = f": {found.message}" if found is not None and found.message else ""
            return f"not run, because {condition} does not hold{message}"
    return None


def _holds(condition: Condition, left: Any) -> bool:
    try:
        return _OPERATORS[condition.operator](left, condition.right)
    except TypeError:
        return False


def _outputs(run: PipelineRun, step: str) -> Mapping[str, Any]:
    found = run.step(step)
    return found.outputs if found is not None else {}


def _value_of(source: Source, outputs: Mapping[str, Any]) -> Any:
    value = value_at(outputs, source.output, source.step)
    return value if source.index < 0 else element_of(value, source)


def _resolved(run: PipelineRun, step: GraphStep) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(the specification with the outputs of earlier steps; the same values with the content of training
    sets in place of their names)."""
    values, contents = {}, {}
    for path, source in step.inputs.items():
        outputs = _outputs(run, source.step)
        values[path] = contents[path] = _value_of(source, outputs)
        if source.output == "training_set" and outputs.get("content_hash"):
            contents[path] = outputs["content_hash"]
    return with_values(step.spec, values), with_values(step.spec, contents)


def _succeeded(result: Result) -> Ended:
    return Ended(JobState.SUCCEEDED, result.output, result.message, result.outputs)


def _ending(run: PipelineRun) -> tuple[JobState, str, str]:
    """(state, error reason, message) of a run whose steps have ended."""
    cancelled = CancelledOnRequest.reason
    failed = next((step for step in run.steps if step.state is JobState.FAILED), None)
    if run.cancel_requested and (failed is None or failed.error_reason == cancelled):
        return JobState.CANCELLED, cancelled, "cancelled on request"
    if failed is not None:
        return JobState.FAILED, failed.error_reason, failed.message
    unfinished = next((step.step for step in run.steps if step.state not in ENDED), None)
    if unfinished is not None:
        return JobState.FAILED, WorkflowFailed.reason, f"The workflow ended before its step {unfinished}."
    skipped = [step for step in run.steps if step.state is JobState.CANCELLED and step.message != "not run"]
    if skipped:
        return JobState.SUCCEEDED, "", "; ".join(f"{step.step} {step.message}" for step in skipped)
    needed = {name for step in run.graph.steps for name in step.needs}
    last = [step for step in run.steps if step.step not in needed]
    return JobState.SUCCEEDED, "", "; ".join(f"{step.step}: {step.message}" for step in last)


def _cancelled() -> CancelledOnRequest:
    return CancelledOnRequest("cancelled on request")
