"""A pipeline as data: typed steps, where their inputs come from, and when they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Source:
    """Where the value of an input comes from: an output, a parameter, or the value of an instance."""

    step: str = ""
    output: str = ""
    param: str = ""
    item: bool = False
    field: str = ""
    """Field of the instance's value, if that is an object."""
    index: int = -1
    """Position in the output, if that is the list of a fan-out."""


@dataclass(frozen=True)
class Condition:
    """A comparison of an output with a value."""

    step: str
    output: str
    operator: str
    right: Any

    def __str__(self) -> str:
        return f"{self.step}.{self.output} {self.operator} {self.right!r}"


@dataclass(frozen=True)
class FanOut:
    """The values of the instances: a list, or a parameter or an output that is one."""

    values: tuple[Any, ...] = ()
    param: str = ""
    step: str = ""
    output: str = ""
    at_most: int = 0
    """Number of instances for an output."""


@dataclass(frozen=True)
class GraphStep:
    """One step; `spec` is the kind's message as JSON."""

    id: str
    kind: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Source] = field(default_factory=dict)
    """By the path of a field of `spec`."""
    after: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    for_each: FanOut | None = None
    retries: int = 0
    retry_delay_seconds: float = 0.0
    timeout_seconds: float = 0.0
    """0: no limit."""
    cache: bool = False
    element: Source | None = None
    """Of an instance of a fan-out over an output, which does nothing beyond the end of the list."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Steps that must have succeeded, each once, in the order in which they are named."""
        named = [source.step for source in self.inputs.values() if source.step]
        named += [condition.step for condition in self.conditions]
        named += [one.step for one in (self.for_each, self.element) if one is not None and one.step]
        if self.kind == "select":
            of = self.spec.get("step", "")
            named += of if isinstance(of, list) else [of]
        return tuple(dict.fromkeys((*named, *self.after)))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `asdict` followed by a round trip through JSON."""
        fan_out, element = fields["for_each"], fields.get("element")
        return cls(
            **{
                **fields,
                "inputs": {path: Source(**source) for path, source in fields["inputs"].items()},
                "after": tuple(fields["after"]),
                "conditions": tuple(Condition(**one) for one in fields["conditions"]),
                "for_each": fan_out and FanOut(**{**fan_out, "values": tuple(fan_out["values"])}),
                "element": element and Source(**element),
            }
        )


@dataclass(frozen=True)
class Graph:
    """Steps in an order in which each one follows those that it needs, and the defaults of the parameters.

    The order is that of `graph_check.check_graph`.
    """

    steps: tuple[GraphStep, ...]
    params: Mapping[str, Any] = field(default_factory=dict)

    def step(self, step: str) -> GraphStep:
        return next(one for one in self.steps if one.id == step)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        return cls(tuple(GraphStep.from_json(step) for step in fields["steps"]), fields["params"])


def in_order(steps: Sequence[GraphStep]) -> tuple[tuple[GraphStep, ...], tuple[str, ...]]:
    """(the steps that can be ordered, each after those that it needs; ids of the steps on or behind a cycle).

    Among steps without an order between them, the given order is kept. Needs that are no steps are ignored.
    """
    known = {step.id for step in steps}
    done: dict[str, GraphStep] = {}
    rest = list(steps)
    while rest:
        ready = next((s for s in rest if all(n in done for n in s.needs if n in known)), None)
        if ready is None:
            break
        done[ready.id] = ready
        rest.remove(ready)
    return tuple(done.values()), tuple(step.id for step in rest)


def descendants(steps: Sequence[GraphStep], start: str) -> frozenset[str]:
    """The step and all that need it, directly or not; `steps` are in order."""
    found = {start}
    for step in steps:
        if found & set(step.needs):
            found.add(step.id)
    return frozenset(found)
