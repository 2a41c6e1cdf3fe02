"""The kinds `select` and `approval`, which need no other service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_trainer.pipelines.errors import ApprovalRejected, MissingOutput
from flywheel_trainer.pipelines.field_paths import value_at
from flywheel_trainer.pipelines.step_kind import Begun, Result


class SelectStep:
    """`StepKind` that chooses one instance of a fan-out; its outputs are those of the instance."""

    required = ("step", "output")
    outputs = ()
    cacheable = False

    def check(self, spec: Mapping[str, Any], project: str, later: Sequence[str]) -> None:
        """Accepts every specification: the references were checked with the graph."""

    async def run(self, step: Begun) -> Result:
        output: str = step.spec["output"]
        values = {}
        for name, outputs in step.instances.items():
            value = value_at(outputs, output, name)
            if not isinstance(value, int | float):
                raise MissingOutput(f"{output} of step {name!r} is {value!r}, which is no number.")
            values[name] = value
        if not values:
            raise MissingOutput("There is no instance to select from: the list of the fan-out is empty.")
        choose = min if step.spec.get("smallest") else max
        best = choose(values, key=lambda name: values[name])
        return Result(best, f"{best}: {output} {values[best]:.6g} of {len(values)}", step.instances[best])


class ApprovalStep:
    """`StepKind` that waits for the decision of a person."""

    required = ()
    outputs = ("approved_by", "reason")
    cacheable = False

    def check(self, spec: Mapping[str, Any], project: str, later: Sequence[str]) -> None:
        """Accepts every specification."""

    async def run(self, step: Begun) -> Result:
        while (found := await step.approval()) is None:
            await step.pause()
        if not found.approved:
            raise ApprovalRejected(f"{found.by} rejected it: {found.reason or 'without a reason'}")
        message = f"approved by {found.by}" + (f": {found.reason}" if found.reason else "")
        return Result("", message, {"approved_by": found.by, "reason": found.reason})
