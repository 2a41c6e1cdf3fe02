"""From a graph and the values of its parameters to a run whose steps run once each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flywheel_trainer.pipelines.errors import InvalidPipeline, MissingInput
from flywheel_trainer.pipelines.field_paths import with_values
from flywheel_trainer.pipelines.graph import Graph, GraphStep, Source
from flywheel_trainer.pipelines.graph_check import MAX_INSTANCES, MAX_STEPS
from flywheel_trainer.pipelines.pipeline_run import PipelineRun, Step


def expand(graph: Graph, params: Mapping[str, Any]) -> tuple[Graph, Mapping[str, Any]]:
    """(the graph without parameters and fan-outs, the values of all parameters).

    Raises InvalidPipeline for an unknown parameter, and MissingInput for one without a value.
    """
    unknown = sorted(set(params) - set(graph.params))
    if unknown:
        known = ", ".join(graph.params) or "none"
        raise InvalidPipeline(
            f"The pipeline has no parameter {unknown[0]!r}; it has: {known}.", field=unknown[0]
        )
    values = {**graph.params, **params}
    missing = next((name for name, value in values.items() if value is None), None)
    if missing is not None:
        raise MissingInput(f"The parameter {missing!r} has no default: give it a value.", field=missing)
    instances: dict[str, list[str]] = {}
    steps: list[GraphStep] = []
    for step in graph.steps:
        made = _instances(step, values)
        instances[step.id] = [one.id for one in made]
        steps += [_with_instances(one, instances) for one in made]
    if len(steps) > MAX_STEPS:
        raise InvalidPipeline(f"The run has {len(steps)} steps; at most {MAX_STEPS} are allowed.")
    return Graph(tuple(steps)), values


def queued(run: PipelineRun) -> PipelineRun:
    """The run with all steps of its graph queued, and the model that it registers."""
    registers = next((one for one in run.graph.steps if one.kind == "register"), None)
    model = run.model or str(registers.spec.get("model", "") if registers is not None else "")
    return replace(run, model=model, steps=tuple(Step(step.id) for step in run.graph.steps))


def _instances(step: GraphStep, params: Mapping[str, Any]) -> list[GraphStep]:
    if step.for_each is None:
        return [_resolved(step, step.id, params, None)]
    if step.for_each.step:
        return [_for_element(step, params, i) for i in range(step.for_each.at_most)]
    values: Any = step.for_each.values or params[step.for_each.param]
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= MAX_INSTANCES:
        raise InvalidPipeline(
            f"Step {step.id!r} runs for each value of a list of 1 to {MAX_INSTANCES}, "
            f"not for {values!r:.100}.",
            field=step.id,
        )
    return [_resolved(step, f"{step.id}[{i}]", params, value) for i, value in enumerate(values)]


def _resolved(step: GraphStep, step_id: str, params: Mapping[str, Any], item: Any) -> GraphStep:
    given = {
        path: params[source.param] if source.param else _item(step, source, item)
        for path, source in step.inputs.items()
        if not source.step
    }
    later = {path: source for path, source in step.inputs.items() if source.step}
    return replace(step, id=step_id, spec=with_values(step.spec, given), inputs=later, for_each=None)


def _for_element(step: GraphStep, params: Mapping[str, Any], index: int) -> GraphStep:
    """The instance for an element of an output, which only the run knows."""
    assert step.for_each is not None
    element = Source(step.for_each.step, step.for_each.output, index=index)
    inputs = {
        path: replace(element, field=source.field) if source.item else source
        for path, source in step.inputs.items()
    }
    made = replace(step, inputs=inputs, element=element)
    return _resolved(made, f"{step.id}[{index}]", params, None)


def _item(step: GraphStep, source: Source, item: Any) -> Any:
    if not source.field:
        return item
    if not isinstance(item, Mapping) or source.field not in item:
        raise MissingInput(f"A value of step {step.id!r} has no field {source.field!r}.", field=step.id)
    return item[source.field]


def _with_instances(step: GraphStep, instances: Mapping[str, list[str]]) -> GraphStep:
    """The step with the instances of a fan-out in place of its id, where it needs them all."""
    after = tuple(one for name in step.after for one in instances[name])
    if step.kind != "select":
        return replace(step, after=after)
    return replace(step, after=after, spec={**step.spec, "step": instances[step.spec["step"]]})
