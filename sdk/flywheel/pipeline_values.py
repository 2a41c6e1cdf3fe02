"""Values that only a run of a pipeline knows, conditions on them, and options of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypedDict

from flywheel.errors import PipelineError
from flywheel_protos.trainer.v1 import pipeline_graph_pb2 as pb


@dataclass(frozen=True)
class Output:
    """An output of a step, as a value for a later step or in a condition."""

    step: str
    output: str

    def equals(self, value: Any) -> Condition:
        return Condition(self, "==", value)

    def differs(self, value: Any) -> Condition:
        return Condition(self, "!=", value)

    def __lt__(self, value: float) -> Condition:
        return Condition(self, "<", value)

    def __le__(self, value: float) -> Condition:
        return Condition(self, "<=", value)

    def __gt__(self, value: float) -> Condition:
        return Condition(self, ">", value)

    def __ge__(self, value: float) -> Condition:
        return Condition(self, ">=", value)


@dataclass(frozen=True)
class Condition:
    """A comparison of an output with a value; the step that has it runs only if it holds."""

    left: Output
    operator: str
    right: Any

    def __bool__(self) -> bool:
        raise PipelineError("A condition has no value before the run: pass it as `when`.")


@dataclass(frozen=True)
class Param:
    """A parameter of the run."""

    name: str


@dataclass(frozen=True)
class Item:
    """The value of an instance of a fan-out, or a field of it."""

    field: str = ""


@dataclass(frozen=True)
class Step:
    """A step of the graph; `step["metrics.auc"]` is an output."""

    id: str
    run_output: str = "run"
    """The output with the run whose model can be registered."""
    release_output: str = "release"
    """The output with the release that can be scored with."""

    def __getitem__(self, output: str) -> Output:
        return Output(self.id, output)


LATER = "later"
"""Stands for a name that only the run knows."""
Given = str | Output | Param | Item
"""A text now, or a value that the run sets."""


class Options(TypedDict, total=False):
    """What every step can have."""

    after: Sequence[Step]
    """Steps that must have succeeded, beside those whose outputs are used."""
    when: Sequence[Condition]
    """The step runs if all hold."""
    for_each: Sequence[Any] | Param | Output
    """One instance of the step for each value, which is read with `p.item()`."""
    at_most: int
    """Largest number of values of an output in `for_each`, up to 100; default 20."""
    retries: int
    retry_delay: timedelta
    timeout: timedelta
    cache: bool
    """Use the outputs of an earlier step of the same content."""
    values: Mapping[str, Output | Param | Item]
    """Values by the path of a field of the step's message, such as `train.tabular.epochs`."""


def source_of(value: Any) -> pb.ValueSource:
    """The message of an output, parameter or item. Raises PipelineError."""
    match value:
        case Output():
            return pb.ValueSource(step=pb.StepOutput(step=value.step, output=value.output))
        case Param():
            return pb.ValueSource(param=value.name)
        case Item():
            return pb.ValueSource(item=pb.FanOutItem(field=value.field))
        case _:
            raise PipelineError(f"{value!r} is no output, parameter or item.")
