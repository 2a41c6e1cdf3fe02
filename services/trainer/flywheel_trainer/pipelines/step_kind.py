"""What the engine needs to know of each kind of step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flywheel_trainer.pipelines.pipeline_run import Approval, PipelineRun


@dataclass(frozen=True)
class Result:
    """The result of a step: the name of the resource that it made, one line for people, and its outputs."""

    output: str
    message: str
    outputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Begun:
    """A step that runs: the run, its resolved specification, and the request id of its effects.

    `pause` waits for the interval of polls; it raises CancelledOnRequest, StepStopped or StepTimeout if the
    step is to end. `set_fields` sets fields of the run while the step runs. `approval` reads the decision
    of a person.
    """

    run: PipelineRun
    id: str
    spec: Mapping[str, Any]
    request_id: str
    pause: Callable[[], Awaitable[None]]
    set_fields: Callable[[Mapping[str, Any]], Awaitable[None]]
    approval: Callable[[], Awaitable[Approval | None]]
    instances: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Outputs of the instances that a `select` chooses from, by id."""


class StepKind(Protocol):
    """One kind of step.

    - `check` validates a specification. The paths in `later` have no value yet: only the run knows it.
    - `run` does the work. It can be repeated after a crash: its requests to other services carry
      `request_id`, so that a repeated request has no second effect. It raises domain errors.
    """

    @property
    def required(self) -> tuple[str, ...]:
        """Paths of fields that need a value."""

    @property
    def outputs(self) -> tuple[str, ...]: ...

    @property
    def cacheable(self) -> bool: ...

    def check(self, spec: Mapping[str, Any], project: str, later: Sequence[str]) -> None: ...

    async def run(self, step: Begun) -> Result: ...


StepKinds = Mapping[str, StepKind]
"""By the name of the kind."""
