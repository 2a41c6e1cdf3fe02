"""Validation of a graph: everything that can be wrong before a step runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flywheel_trainer.pipelines.errors import InvalidPipeline, MissingInput, PipelineCycle, UnknownStepKind
from flywheel_trainer.pipelines.field_paths import has_value, with_values
from flywheel_trainer.pipelines.graph import Condition, Graph, GraphStep, in_order
from flywheel_trainer.pipelines.step_kind import StepKinds

MAX_STEPS, MAX_INSTANCES, MAX_PARAMS, MAX_RETRIES = 200, 100, 64, 10
MAX_GRAPH_BYTES = 1024 * 1024
MAX_DELAY_SECONDS = 86_400.0
OPERATORS = ("==", "!=", "<", "<=", ">", ">=")
_ID = re.compile(r"[a-z][a-z0-9_]{0,62}")


def check_graph(graph: Graph, kinds: StepKinds, project: str) -> Graph:
    """The graph with its steps in order.

    Raises InvalidPipeline, UnknownStepKind, MissingInput, PipelineCycle, and the errors of the kinds.
    """
    _check_sizes(graph)
    steps = {step.id: step for step in graph.steps}
    for step in graph.steps:
        _check_step(step, kinds)
        _check_references(step, steps, graph.params, kinds)
    ordered, circle = in_order(graph.steps)
    if circle:
        raise PipelineCycle(f"These steps need each other in a circle: {', '.join(circle)}.")
    for step in ordered:
        known = _known_values(step, graph)
        later = tuple(path for path in step.inputs if path not in known)
        spec = with_values(step.spec, known)
        for path in kinds[step.kind].required:
            if path not in later and not has_value(spec, path):
                raise MissingInput(f"Step {step.id!r} has no value for {path}.", field=f"{step.id}.{path}")
        kinds[step.kind].check(spec, project, later)
    return replace(graph, steps=ordered)


def _check_sizes(graph: Graph) -> None:
    if not 1 <= len(graph.steps) <= MAX_STEPS:
        raise InvalidPipeline(f"A pipeline has 1 to {MAX_STEPS} steps, not {len(graph.steps)}.")
    if len(graph.params) > MAX_PARAMS:
        raise InvalidPipeline(f"A pipeline has at most {MAX_PARAMS} parameters, not {len(graph.params)}.")
    size = len(json.dumps(graph.to_json()))
    if size > MAX_GRAPH_BYTES:
        raise InvalidPipeline(f"The graph has {size} bytes; at most {MAX_GRAPH_BYTES} are allowed.")
    ids = [step.id for step in graph.steps]
    twice = next((one for one in ids if ids.count(one) > 1), None)
    if twice is not None:
        raise InvalidPipeline(f"Two steps have the id {twice!r}.", field=twice)


def _check_step(step: GraphStep, kinds: StepKinds) -> None:
    if _ID.fullmatch(step.id) is None:
        raise InvalidPipeline(f"The id {step.id[:100]!r} is not of the form {_ID.pattern}.", field="id")
    if step.kind not in kinds:
        known = ", ".join(kinds)
        raise UnknownStepKind(f"Step {step.id!r} has the kind {step.kind!r}; known are: {known}.")
    fan_out = step.for_each
    values, at_most = (fan_out.values, fan_out.at_most) if fan_out is not None else ((), 0)
    given = [values, fan_out.param, fan_out.step] if fan_out is not None else [True]
    problems = [
        (not 0 <= step.retries <= MAX_RETRIES, f"retries must be at most {MAX_RETRIES}"),
        (not 0 <= step.retry_delay_seconds <= MAX_DELAY_SECONDS, "retry_delay must be at most 1 day"),
        (step.timeout_seconds != 0 and step.timeout_seconds < 1, "timeout must be at least 1 s"),
        (step.cache and not kinds[step.kind].cacheable, "cache is for training_set and job"),
        (sum(map(bool, given)) != 1, "for_each needs either values or param or output"),
        (max(len(values), at_most) > MAX_INSTANCES, f"for_each has over {MAX_INSTANCES} values"),
    ]
    for wrong, rule in problems:
        if wrong:
            raise InvalidPipeline(f"Step {step.id!r}: {rule}.", field=step.id)
    for condition in step.conditions:
        _check_condition(step, condition)


def _check_condition(step: GraphStep, condition: Condition) -> None:
    if condition.operator not in OPERATORS:
        known = ", ".join(OPERATORS)
        raise InvalidPipeline(
            f"Step {step.id!r} has the operator {condition.operator!r}; known are: {known}.", field=step.id
        )
    number = isinstance(condition.right, int | float) and not isinstance(condition.right, bool)
    if condition.operator not in OPERATORS[:2] and not number:
        raise InvalidPipeline(
            f"Step {step.id!r} compares {condition.operator} with {condition.right!r}: that is no number.",
            field=step.id,
        )


def _check_references(
    step: GraphStep, steps: Mapping[str, GraphStep], params: Mapping[str, Any], kinds: StepKinds
) -> None:
    where = f"Step {step.id!r}"
    for needed in step.needs:
        if needed not in steps:
            raise MissingInput(f"{where} needs step {needed!r}, which does not exist.", field=step.id)
    for path, source in step.inputs.items():
        if not (source.step or source.param or source.item):
            raise MissingInput(f"{where} has no source for {path}.", field=step.id)
    outputs = _outputs_read(step)
    if step.kind == "select":
        of, output = step.spec.get("step", ""), step.spec.get("output", "")
        if of in steps and steps[of].for_each is None:
            raise InvalidPipeline(f"{where} selects from {of!r}, which has no for_each.", field=step.id)
        outputs.append((of, output))
    for name, output in outputs:
        found = steps[name]
        if found.kind == "select" and found.spec.get("step") in steps:
            found = steps[found.spec["step"]]
        known = kinds[found.kind].outputs if found.kind in kinds else ()
        if output.split(".")[0] not in known:
            raise MissingInput(
                f"{where} reads {name}.{output}, but a step of the kind {found.kind!r} has the outputs "
                f"{', '.join(known)}.",
                field=step.id,
            )
        if steps[name].for_each is not None and step.kind != "select":
            raise InvalidPipeline(
                f"{where} reads {name}.{output}, but {name!r} has several instances: select one.",
                field=step.id,
            )
    named = [source.param for source in step.inputs.values() if source.param]
    named += [step.for_each.param] if step.for_each is not None and step.for_each.param else []
    for name in named:
        if name not in params:
            raise MissingInput(f"{where} reads the parameter {name!r}, which does not exist.", field=step.id)
    if step.for_each is None and any(source.item for source in step.inputs.values()):
        raise MissingInput(f"{where} reads the value of an instance, but has no for_each.", field=step.id)


def _outputs_read(step: GraphStep) -> list[tuple[str, str]]:
    """(step, output) of inputs, conditions and the fan-out."""
    outputs = [(source.step, source.output) for source in step.inputs.values() if source.step]
    outputs += [(condition.step, condition.output) for condition in step.conditions]
    if step.for_each is not None and step.for_each.step:
        outputs.append((step.for_each.step, step.for_each.output))
    return outputs


def _known_values(step: GraphStep, graph: Graph) -> dict[str, Any]:
    """The values of inputs by their path that defaults of parameters and values of instances give."""
    found = {}
    first: Any = None
    if step.for_each is not None and not step.for_each.step:
        values = step.for_each.values or graph.params[step.for_each.param]
        first = values[0] if isinstance(values, list | tuple) and values else None
    for path, source in step.inputs.items():
        value = graph.params[source.param] if source.param else None
        if source.item:
            value = first.get(source.field) if source.field and isinstance(first, dict) else first
        if value is not None:
            found[path] = value
    return found
