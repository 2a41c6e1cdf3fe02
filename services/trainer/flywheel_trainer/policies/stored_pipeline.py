"""The stored pipeline that a trigger of a policy runs, and the parameters of its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flywheel_trainer.pipelines.definition import PipelineName, parse_pipeline
from flywheel_trainer.pipelines.expansion import expand
from flywheel_trainer.pipelines.graph import Graph
from flywheel_trainer.policies.errors import InvalidPolicy


@dataclass(frozen=True)
class StoredPipeline:
    """A pipeline by name, and values of its parameters."""

    pipeline: str
    """With a version, or without one for the newest when the run starts."""
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> tuple[PipelineName, int | None]:
        """(pipeline, version, or None for the newest)."""
        return parse_pipeline(self.pipeline)


def check_stored_pipeline(stored: StoredPipeline, project: str, field: str) -> None:
    """Raises InvalidPolicy or InvalidName naming the field; whether it exists is checked elsewhere."""
    name, _ = stored.version
    if name.project != project:
        raise InvalidPolicy(f"{field}.pipeline belongs to another project.", field=f"{field}.pipeline")


def expand_stored(
    stored: StoredPipeline, graph: Graph, moment: Mapping[str, str]
) -> tuple[Graph, Mapping[str, Any]]:
    """(the graph without parameters, the values of all parameters) of a run that starts at a moment.

    Raises InvalidPolicy if the policy gives a value of the moment, and the errors of `expand`.
    """
    taken = sorted(set(stored.params) & set(moment))
    if taken:
        raise InvalidPolicy(
            f"The parameter {taken[0]!r} is set by the trigger: leave it out of the policy.", field=taken[0]
        )
    declared = {name: value for name, value in moment.items() if name in graph.params}
    return expand(graph, {**stored.params, **declared})
