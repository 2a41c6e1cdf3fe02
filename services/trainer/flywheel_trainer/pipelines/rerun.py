"""A new run that reuses steps of an ended one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.pipelines.errors import UnknownStep
from flywheel_trainer.pipelines.graph import descendants
from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName, Step, fields_in


def rerun(run: PipelineRun, name: PipelineRunName, from_step: str) -> PipelineRun:
    """A queued run with the graph of `run`.

    Steps that succeeded keep their outputs, except `from_step` and the steps that need it. A step runs
    again if one that it needs runs again. An instance `train[0]`, or all of them as `train`, can be named.
    Raises UnknownStep.
    """
    ids = [step.id for step in run.graph.steps]
    starts = [one for one in ids if one == from_step or one.startswith(f"{from_step}[")] if from_step else []
    if from_step and not starts:
        raise UnknownStep.of(run.name, from_step)
    again = {one for one in ids if (found := run.step(one)) and found.state is not JobState.SUCCEEDED}
    for start in (*starts, *again):
        again |= descendants(run.graph.steps, start)
    steps: list[Step] = []
    fields: dict[str, Any] = {}
    for one in ids:
        found = run.step(one)
        if found is None or one in again:
            steps.append(Step(one))
            continue
        steps.append(replace(found, reused_from=found.reused_from or str(run.name)))
        fields |= fields_in(found.outputs)
    return PipelineRun(
        name=name,
        event_time=run.event_time,
        graph=run.graph,
        spec=run.spec,
        model=run.model,
        pipeline=run.pipeline,
        params=run.params,
        rerun_of=str(run.name),
        policy=run.policy,
        cause_alert=run.cause_alert,
        steps=tuple(steps),
        **fields,
    )
