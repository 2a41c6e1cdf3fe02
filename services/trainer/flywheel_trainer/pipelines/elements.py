"""Elements of an output that is a list: what the instances of a fan-out over it are for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flywheel_trainer.pipelines.errors import MissingOutput
from flywheel_trainer.pipelines.field_paths import value_at
from flywheel_trainer.pipelines.graph import GraphStep, Source
from flywheel_trainer.pipelines.pipeline_run import PipelineRun

NO_VALUE = "no value"
"""Message of an instance beyond the end of the list."""


def has_element(run: PipelineRun, step: GraphStep) -> bool:
    """Whether an instance has an element; true for steps that need none.

    Raises MissingOutput if the output is no list, or has more elements than the run has instances.
    """
    if step.element is None:
        return True
    found = run.step(step.element.step)
    outputs = found.outputs if found is not None else {}
    values = value_at(outputs, step.element.output, step.element.step)
    where = f"{step.element.output} of step {step.element.step!r}"
    if not isinstance(values, list | tuple):
        raise MissingOutput(f"{where} is {values!r:.100}, which is no list.")
    first = f"{step.id.partition('[')[0]}["
    instances = sum(one.id.startswith(first) for one in run.graph.steps)
    if len(values) > instances:
        raise MissingOutput(f"{where} has {len(values)} elements; at_most is {instances}.")
    return step.element.index < len(values)


def element_of(values: Any, source: Source) -> Any:
    """The element, or its field. Raises MissingOutput."""
    element = values[source.index]
    if not source.field:
        return element
    if not isinstance(element, Mapping) or source.field not in element:
        raise MissingOutput(f"An element of {source.output} of step {source.step!r} has no {source.field!r}.")
    return element[source.field]
