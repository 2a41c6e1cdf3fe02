"""Runs of pipelines in memory: the engine's rules without DBOS and without a process to kill."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flywheel_common.clock import ManualClock
from flywheel_common.ids import SequentialIds
from flywheel_trainer.encoding.specs import spec_to_json
from flywheel_trainer.fakes.pipeline_definitions import MemoryPipelineDefinitions
from flywheel_trainer.fakes.pipelines import MemoryPipelines
from flywheel_trainer.jobs.errors import CancelledOnRequest, InvalidSpec
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.pipelines.execution import Execution
from flywheel_trainer.pipelines.expansion import expand, queued
from flywheel_trainer.pipelines.graph import Graph, GraphStep
from flywheel_trainer.pipelines.graph_check import check_graph
from flywheel_trainer.pipelines.kinds.select import ApprovalStep, SelectStep
from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName
from flywheel_trainer.pipelines.step_kind import Begun, Result
from flywheel_trainer.pipelines.use_cases import Pipelines
from tests.support.builders.trainer import AT


@dataclass
class Work:
    """A step kind whose effect is `act`; `calls` has the specification and request id of each call."""

    act: Callable[[Begun], Mapping[str, Any]] = lambda step: {"value": step.spec.get("value")}
    required: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("value", "training_set", "content_hash")
    cacheable: bool = True
    pauses: int = 0
    refused: Any = None
    """A value that `check` refuses."""
    calls: list[tuple[str, Mapping[str, Any], str]] = field(default_factory=list)

    def check(self, spec: Mapping[str, Any], project: str, later: Sequence[str]) -> None:
        if self.refused is not None and spec.get("value") == self.refused:
            raise InvalidSpec("The value is refused.", field="value")

    async def run(self, step: Begun) -> Result:
        self.calls.append((step.id, step.spec, step.request_id))
        for _ in range(self.pauses):
            await step.pause()
        return Result(step.id, "done", dict(self.act(step)))


class Machine:
    """A store, one kind `work` beside `select` and `approval`, and a loop that runs all steps of a run."""

    def __init__(self) -> None:
        self.work = Work()
        self.kinds: Mapping[str, Any] = {
            "work": self.work,
            "select": SelectStep(),
            "approval": ApprovalStep(),
        }
        self.clock, self.store = ManualClock(AT), MemoryPipelines()
        self.execution = Execution(self.store, self.kinds, self.store, self.clock, 0.001)
        self.pipelines = Pipelines(
            self.store,
            MemoryPipelineDefinitions(),
            self.kinds,
            spec_to_json,
            SequentialIds("n"),
            self.clock,
        )

    async def start(
        self, *steps: GraphStep, params: Mapping[str, Any] | None = None, **given: Any
    ) -> PipelineRun:
        checked = check_graph(Graph(steps, params or {}), self.kinds, "p")
        graph, values = expand(checked, given)
        number = len((await self.store.list("p", (), 1000, "")).items) + 1
        run = PipelineRun(
            PipelineRunName("p", f"pipe-{number}"), AT, graph, model="projects/p/models/late", params=values
        )
        return await self.store.create(queued(run), "", b"", AT)

    async def finish(self, run: PipelineRun) -> PipelineRun:
        """Run all steps as the workflow does: each after those that it needs."""
        tasks: dict[str, asyncio.Task[Any]] = {}

        async def execute(step: str, earlier: list[asyncio.Task[Any]]) -> None:
            if earlier:
                await asyncio.wait(earlier)
            try:
                await self.execution.execute(str(run.name), step)
            except CancelledOnRequest:
                return
            except Exception as error:
                reason = getattr(error, "reason", type(error).__name__)
                await self.execution.fail(str(run.name), step, reason, str(error))

        for step, needs in await self.execution.plan(str(run.name)):
            tasks[step] = asyncio.create_task(execute(step, [tasks[needed] for needed in needs]))
        await asyncio.gather(*tasks.values())
        await self.execution.finish(str(run.name))
        return await self.pipelines.get(run.name)

    async def run(self, *steps: GraphStep, **given: Any) -> PipelineRun:
        return await self.finish(await self.start(*steps, **given))


def states(run: PipelineRun) -> dict[str, str]:
    """S, F or C by step."""
    letters = {JobState.SUCCEEDED: "S", JobState.FAILED: "F", JobState.CANCELLED: "C"}
    return {step.step: letters.get(step.state, step.state) for step in run.steps}
