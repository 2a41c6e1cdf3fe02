"""Validation of graphs, and their expansion into the steps of a run."""

from __future__ import annotations

from typing import Any

import pytest

from flywheel_trainer.pipelines.errors import InvalidPipeline, MissingInput, PipelineCycle, UnknownStepKind
from flywheel_trainer.pipelines.expansion import expand
from flywheel_trainer.pipelines.field_paths import with_values
from flywheel_trainer.pipelines.graph import Condition, FanOut, Graph, GraphStep, Source, descendants
from flywheel_trainer.pipelines.graph_check import check_graph
from tests.support.memory_pipelines import Work

KINDS: Any = {
    "work": Work(),
    "needy": Work(required=("model",)),
    "once": Work(cacheable=False),
    "select": Work(),
}


def step(step: str, *needs: str, kind: str = "work", **fields: Any) -> GraphStep:
    inputs = {f"from_{need}": Source(need, "value") for need in needs}
    return GraphStep(step, kind, **{"inputs": inputs, **fields})


def check(*steps: GraphStep, **params: Any) -> Graph:
    return check_graph(Graph(steps, params), KINDS, "p")


def test_steps_are_put_into_the_order_of_their_needs() -> None:
    graph = check(step("d", "b", "c"), step("c", "a"), step("b", "a"), step("a"))
    assert ["a", "c", "b", "d"] == [one.id for one in graph.steps]
    assert frozenset("bd") == descendants(graph.steps, "b")


@pytest.mark.parametrize(
    ("steps", "error", "words"),
    [
        ([], InvalidPipeline, "1 to 200 steps"),
        ([step(f"s{i}") for i in range(201)], InvalidPipeline, "1 to 200 steps"),
        ([step("a"), step("a")], InvalidPipeline, "Two steps have the id 'a'"),
        ([step("A")], InvalidPipeline, "not of the form"),
        ([step("a", kind="magic")], UnknownStepKind, "'magic'"),
        ([step("a", kind="")], UnknownStepKind, "''"),
        ([step("a", "a")], PipelineCycle, "a"),
        ([step("a", "c"), step("b", "a"), step("c", "b"), step("d")], PipelineCycle, "a, b, c"),
        ([step("a", after=("b",)), step("b", after=("a",))], PipelineCycle, "a, b"),
        ([step("a", "b")], MissingInput, "needs step 'b'"),
        ([step("a", inputs={"x": Source()})], MissingInput, "no source"),
        ([step("a"), step("b", inputs={"x": Source("a", "nothing")})], MissingInput, "reads a.nothing"),
        ([step("a", inputs={"x": Source(param="p")})], MissingInput, "parameter 'p'"),
        ([step("a", inputs={"x": Source(item=True)})], MissingInput, "no for_each"),
        ([step("a", kind="needy")], MissingInput, "no value for model"),
        ([step("a", kind="once", cache=True)], InvalidPipeline, "cache"),
        ([step("a", retries=11)], InvalidPipeline, "retries"),
        ([step("a", timeout_seconds=0.5)], InvalidPipeline, "timeout"),
        ([step("a", retry_delay_seconds=90_000.0)], InvalidPipeline, "retry_delay"),
        ([step("a", for_each=FanOut())], InvalidPipeline, "either values or param or output"),
        ([step("a", for_each=FanOut((1,), step="b"))], InvalidPipeline, "either values or param or output"),
        ([step("a", for_each=FanOut(step="b", output="value", at_most=9))], MissingInput, "'b'"),
        ([step("b"), step("a", for_each=FanOut(step="b", output="x", at_most=9))], MissingInput, "b.x"),
        (
            [step("b"), step("a", for_each=FanOut(step="b", output="value", at_most=101))],
            InvalidPipeline,
            "100",
        ),
        (
            [
                step("a", for_each=FanOut(step="best", output="value", at_most=9)),
                step("best", kind="select", spec={"step": "a", "output": "value"}),
            ],
            PipelineCycle,
            "a, best",
        ),
        ([step("a", for_each=FanOut(tuple(range(101))))], InvalidPipeline, "over 100 values"),
        ([step("a"), step("b", conditions=(Condition("a", "value", "~", 1),))], InvalidPipeline, "operator"),
        (
            [step("a"), step("b", conditions=(Condition("a", "value", "<", "x"),))],
            InvalidPipeline,
            "no number",
        ),
        ([step("a", for_each=FanOut((1, 2))), step("b", "a")], InvalidPipeline, "several instances"),
        (
            [step("a"), step("b", kind="select", spec={"step": "a", "output": "value"})],
            InvalidPipeline,
            "for_each",
        ),
        ([step("a", spec={"x": "y" * 1_100_000})], InvalidPipeline, "bytes"),
    ],
)
def test_a_wrong_graph_is_refused_with_its_reason(steps: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        check(*steps)
    assert words in str(caught.value)


def test_parameters_and_values_of_instances_are_set_in_specifications() -> None:
    graph = check(
        step("a", for_each=FanOut(param="rates"), inputs={"train.rate": Source(item=True, field="rate")}),
        step("best", kind="select", spec={"step": "a", "output": "value"}, inputs={}),
        step("end", after=("a",), inputs={"when": Source(param="day"), "x": Source("best", "value")}),
        rates=[{"rate": 1}],
        day=None,
    )
    expanded, values = expand(graph, {"rates": [{"rate": 0.1}, {"rate": 0.2}], "day": "monday"})
    assert {"rates": [{"rate": 0.1}, {"rate": 0.2}], "day": "monday"} == values
    first, second, best, end = expanded.steps
    assert ("a[0]", {"train": {"rate": 0.1}}) == (first.id, first.spec)
    assert ("a[1]", {"train": {"rate": 0.2}}) == (second.id, second.spec)
    assert ("a[0]", "a[1]") == best.needs
    assert ({"when": "monday"}, {"x": Source("best", "value")}) == (end.spec, end.inputs)
    assert ("best", "a[0]", "a[1]") == end.needs
    assert expanded == Graph.from_json(expanded.to_json() | {"params": {}})


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({}, MissingInput, "'day' has no default"),
        ({"day": 1, "hour": 2}, InvalidPipeline, "no parameter 'hour'"),
        ({"day": 1, "rates": []}, InvalidPipeline, "a list of 1 to 100"),
        ({"day": 1, "rates": "abc"}, InvalidPipeline, "a list of 1 to 100"),
        ({"day": 1, "rates": [{"other": 1}]}, MissingInput, "no field 'rate'"),
    ],
)
def test_wrong_parameters_are_refused(params: Any, error: type[Exception], words: str) -> None:
    graph = check(
        step("a", for_each=FanOut(param="rates"), inputs={"rate": Source(item=True, field="rate")}),
        step("b", inputs={"day": Source(param="day")}),
        rates=[{"rate": 1}],
        day=None,
    )
    with pytest.raises(error) as caught:
        expand(graph, params)
    assert words in str(caught.value)


def test_a_path_continues_into_the_parameters_of_code() -> None:
    spec = {"train": {"code": {"params_json": '{"a": 1}'}}}
    found = with_values(spec, {"train.code.params_json.b": 2, "train.workers": 3})
    assert {"train": {"code": {"params_json": '{"a": 1, "b": 2}'}, "workers": 3}} == found
    assert {"train": {"code": {"params_json": '{"a": 1}'}}} == spec
    sizes = with_values({}, {"params_json.sizes": [8.0, {"x": 0.5, "y": 2.0}], "params_json.n": 3.0})
    assert {"params_json": '{"n": 3, "sizes": [8, {"x": 0.5, "y": 2}]}'} == sizes, "whole numbers"
    with pytest.raises(InvalidPipeline):
        with_values({"a": "text"}, {"a.b": 1})
