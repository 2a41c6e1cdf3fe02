"""How steps run: needs, conditions, fan-out, retries, timeouts, cache, approval, cancel, rerun."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from flywheel_common.errors import Unavailable
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.pipelines import execution
from flywheel_trainer.pipelines.definition import PipelineName
from flywheel_trainer.pipelines.errors import (
    PipelineRunActive,
    StepNotWaiting,
    TrainingSetFailed,
    UnknownPipeline,
    UnknownStep,
)
from flywheel_trainer.pipelines.execution import LAST_PAUSE_SECONDS
from flywheel_trainer.pipelines.graph import Condition, FanOut, Graph, GraphStep, Source
from tests.support.eventually import eventually
from tests.support.memory_pipelines import Machine, states


@pytest.fixture
def machine() -> Machine:
    return Machine()


def step(step: str, *needs: str, value: Any = 1, kind: str = "work", **fields: Any) -> GraphStep:
    inputs = {f"from_{need}": Source(need, "value") for need in needs}
    return GraphStep(step, kind, **{"spec": {"value": value}, "inputs": inputs, **fields})


async def test_outputs_become_inputs_of_later_steps(machine: Machine) -> None:
    run = await machine.run(step("a", value=7), step("b", "a"), step("c", "a", "b"))
    assert JobState.SUCCEEDED == run.state
    specs = {name: spec for name, spec, _ in machine.work.calls}
    assert {"value": 1, "from_a": 7, "from_b": 1} == specs["c"]
    assert ["pipe-1:a", "pipe-1:b", "pipe-1:c"] == [request for _, _, request in machine.work.calls]


async def test_a_condition_that_does_not_hold_leaves_its_branch_out(machine: Machine) -> None:
    run = await machine.run(
        step("a", value=0.6),
        step("b", conditions=(Condition("a", "value", ">", 0.7),)),
        step("c", "b"),
        step("d", conditions=(Condition("a", "value", "<=", 0.7),)),
    )
    assert {"a": "S", "b": "C", "c": "C", "d": "S"} == states(run)
    assert JobState.SUCCEEDED == run.state
    ((_, message),) = machine.store.completed
    assert "b not run, because a.value > 0.7 does not hold: done" == message


async def test_a_text_is_neither_above_nor_below_a_number(machine: Machine) -> None:
    run = await machine.run(step("a", value="x"), step("b", conditions=(Condition("a", "value", ">", 0),)))
    assert {"a": "S", "b": "C"} == states(run)


async def test_the_best_instance_of_a_fan_out_is_selected(machine: Machine) -> None:
    run = await machine.run(
        GraphStep("a", "work", {}, {"value": Source(item=True)}, for_each=FanOut((3, 1, 2))),
        GraphStep("low", "select", {"step": "a", "output": "value", "smallest": True}),
        GraphStep("high", "select", {"step": "a", "output": "value"}),
        step("b", "low", "high"),
    )
    assert {"value": 1, "from_low": 1, "from_high": 3} == machine.work.calls[-1][1]
    assert ("a[1]", "a[0]") == (run.steps[3].output, run.steps[4].output)


def fan_out(at_most: int, **fields: Any) -> tuple[GraphStep, ...]:
    """A step for each element of the value of `a`, the largest of them, and a step after all of them."""
    each = FanOut(step="a", output="value", at_most=at_most)
    inputs = {"value": Source(item=True, **fields)}
    return (
        GraphStep("b", "work", {"x": 1}, inputs, for_each=each),
        GraphStep("best", "select", {"step": "b", "output": "value"}),
        step("end", "best", after=("b",)),
    )


async def test_a_step_runs_for_each_element_of_an_output(machine: Machine) -> None:
    run = await machine.run(step("a", value=[3, 5, 4]), *fan_out(4))
    specs = {name: spec for name, spec, _ in machine.work.calls}
    assert {"b[0]": 3, "b[1]": 5, "b[2]": 4} == {n: s["value"] for n, s in specs.items() if n[0] == "b"}
    assert {"value": 1, "from_best": 5} == specs["end"]
    assert set(states(run).values()) == {"S"}
    assert "no value" == next(one for one in run.steps if one.step == "b[3]").message
    # A new run with the same graph has the instances of its own list.
    machine.work.act = lambda begun: {"value": [9] if begun.id == "a" else begun.spec.get("value")}
    again = await machine.run(step("a"), *fan_out(4))
    assert ["b[1]", "b[2]", "b[3]"] == [one.step for one in again.steps if one.message == "no value"]
    assert {"value": 1, "from_best": 9} == machine.work.calls[-1][1]


async def test_fields_of_elements_are_values_of_the_instances(machine: Machine) -> None:
    run = await machine.run(step("a", value=[{"c": 1}, {"c": 2}]), *fan_out(2, field="c"))
    assert JobState.SUCCEEDED == run.state
    assert 2 == machine.work.calls[-1][1]["from_best"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, 2, 3], "has 3 elements; at_most is 2"),
        ("abc", "'abc', which is no list"),
        ([], "the list of the fan-out is empty"),
    ],
)
async def test_a_list_that_does_not_fit_fails_the_run(machine: Machine, value: Any, words: str) -> None:
    run = await machine.run(step("a", value=value), *fan_out(2))
    assert (JobState.FAILED, "MISSING_OUTPUT") == (run.state, run.error_reason)
    assert words in run.error_message
    assert ["a"] == [name for name, _, _ in machine.work.calls]


async def test_a_failed_step_is_tried_again_with_another_request_id(machine: Machine) -> None:
    def fail_once(begun: Any) -> dict[str, Any]:
        if len(machine.work.calls) < 3:
            raise TrainingSetFailed("no rows")
        return {}

    machine.work.act = fail_once
    run = await machine.run(step("a", retries=2))
    assert (JobState.SUCCEEDED, 3) == (run.steps[0].state, run.steps[0].attempt)
    assert ["pipe-1:a", "pipe-1:a:2", "pipe-1:a:3"] == [request for _, _, request in machine.work.calls]


async def test_a_step_fails_the_run_after_its_last_try(machine: Machine) -> None:
    def fail(begun: Any) -> dict[str, Any]:
        raise TrainingSetFailed("no rows")

    machine.work.act = fail
    run = await machine.run(step("a", retries=1), step("b", "a"))
    assert ({"a": "F", "b": "C"}, 2) == (states(run), len(machine.work.calls))
    assert (JobState.FAILED, "TRAINING_SET_FAILED", "no rows") == (
        run.state,
        run.error_reason,
        run.error_message,
    )


async def test_an_outage_is_no_failed_try(machine: Machine) -> None:
    def away(begun: Any) -> dict[str, Any]:
        raise Unavailable("away")

    machine.work.act = away
    run = await machine.start(step("a", retries=3), step("b", "a"))
    task = asyncio.create_task(machine.finish(run))

    async def waits() -> bool:
        machine.clock.advance(1.0)
        found = (await machine.pipelines.get(run.name)).steps[0]
        assert (JobState.RUNNING, 1) == (found.state, found.attempt)
        return found.message == "repeated after: away" and len(machine.work.calls) > 3

    await eventually(waits)
    machine.work.act = lambda begun: {"value": 7}
    machine.clock.advance(LAST_PAUSE_SECONDS)
    ended = await task
    assert ({"a": "S", "b": "S"}, "done", 1) == (
        states(ended),
        ended.steps[0].message,
        ended.steps[0].attempt,
    )
    assert {"pipe-1:a", "pipe-1:b"} == {request for _, _, request in machine.work.calls}


@pytest.mark.parametrize("end", ["cancel", "timeout", "failure beside it", "no end of the outage"])
async def test_a_step_that_waits_for_the_end_of_an_outage_can_end(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    def act(begun: Any) -> dict[str, Any]:
        if begun.id == "a":
            raise Unavailable("away")
        if end == "failure beside it":
            raise TrainingSetFailed("no rows")
        return {}

    machine.work.act, machine.work.pauses = act, 2
    if end == "no end of the outage":
        monkeypatch.setattr(execution, "MAX_OUTAGE_CALLS", 3)
    run = await machine.start(step("a", timeout_seconds=600.0 if end == "timeout" else 0.0), step("beside"))
    task = asyncio.create_task(machine.finish(run))

    async def ends() -> bool:
        machine.clock.advance(10.0)
        return task.done()

    if end == "cancel":
        await eventually(lambda: len(machine.work.calls) == 2)
        await machine.pipelines.cancel(run.name)
    await eventually(ends)
    ended = await task
    expected = {
        "cancel": (JobState.CANCELLED, "CANCELLED"),
        "timeout": (JobState.FAILED, "STEP_TIMEOUT"),
        "failure beside it": (JobState.FAILED, "TRAINING_SET_FAILED"),
        "no end of the outage": (JobState.FAILED, "UNAVAILABLE"),
    }
    assert expected[end] == (ended.state, ended.error_reason)


async def test_a_failure_stops_the_steps_beside_it(machine: Machine) -> None:
    def fail(begun: Any) -> dict[str, Any]:
        if begun.id == "bad":
            raise TrainingSetFailed("no rows")
        return {}

    machine.work.act = fail
    run = await machine.run(step("bad"), GraphStep("wait", "approval"))
    assert {"bad": "F", "wait": "C"} == states(run)
    assert (JobState.FAILED, "TRAINING_SET_FAILED") == (run.state, run.error_reason)


async def test_a_step_ends_at_its_timeout(machine: Machine) -> None:
    run = await machine.start(GraphStep("wait", "approval", timeout_seconds=60), step("b", after=("wait",)))
    task = asyncio.create_task(machine.finish(run))
    await _running(machine, run, "wait")
    machine.clock.advance(timedelta(seconds=61).total_seconds())
    ended = await task
    assert ({"wait": "F", "b": "C"}, "STEP_TIMEOUT") == (states(ended), ended.error_reason)


@pytest.mark.parametrize("approved", [True, False])
async def test_an_approval_waits_for_a_person(machine: Machine, approved: bool) -> None:
    run = await machine.start(GraphStep("ok", "approval"), step("b", after=("ok",)))
    with pytest.raises(StepNotWaiting):
        await machine.pipelines.decide(run.name, "ok", True, "", request_id="", body=b"")
    task = asyncio.create_task(machine.finish(run))
    await _running(machine, run, "ok")
    for wrong, error in (("b", StepNotWaiting), ("nothing", UnknownStep)):
        with pytest.raises(error):
            await machine.pipelines.decide(run.name, wrong, True, "", request_id="", body=b"")
    for _ in range(2):  # a repeated decision changes nothing
        await machine.pipelines.decide(run.name, "ok", approved, "because", request_id="", body=b"")
    ended = await task
    assert ({"ok": "S", "b": "S"} if approved else {"ok": "F", "b": "C"}) == states(ended)
    assert ("" if approved else "APPROVAL_REJECTED") == ended.error_reason
    assert "because" in ended.steps[0].message


async def test_the_opposite_decision_is_refused(machine: Machine) -> None:
    run = await machine.start(GraphStep("ok", "approval"))
    await machine.store.begin_step(run.name, "ok", machine.clock.now())
    await machine.pipelines.decide(run.name, "ok", True, "", request_id="", body=b"")
    with pytest.raises(StepNotWaiting):
        await machine.pipelines.decide(run.name, "ok", False, "", request_id="", body=b"")


async def test_equal_work_is_reused_by_its_content(machine: Machine) -> None:
    contents = iter(["rows-1", "rows-1", "rows-2"])

    def act(begun: Any) -> dict[str, Any]:
        if begun.id == "data":
            return {"training_set": f"set-of-{begun.run.name.run}", "content_hash": next(contents)}
        return {"value": begun.spec["training_set"]}

    machine.work.act = act
    data = step("data")
    train = GraphStep("train", "work", {}, {"training_set": Source("data", "training_set")}, cache=True)
    runs = [await machine.run(data, train) for _ in range(3)]
    trained = [name for name, _, _ in machine.work.calls if name == "train"]
    assert 2 == len(trained), "the second run has the same rows under another name"
    assert ["", str(runs[0].name), ""] == [run.steps[1].reused_from for run in runs]
    assert "set-of-pipe-1" == runs[1].steps[1].outputs["value"]
    changed = replace(train, spec={"rate": 2})
    contents = iter(["rows-2"])
    await machine.run(data, changed)
    assert 3 == len([name for name, _, _ in machine.work.calls if name == "train"])


async def test_a_specification_is_checked_again_with_the_values_of_the_run(machine: Machine) -> None:
    run = await machine.start(step("a", value=7), step("b", "a"))
    machine.work.refused = 7
    ended = await machine.finish(run)
    assert {"a": "F", "b": "C"} == states(ended)
    assert ("INVALID_SPEC", []) == (ended.error_reason, machine.work.calls)


async def test_a_repeated_step_does_not_run_again(machine: Machine) -> None:
    run = await machine.start(step("a"))
    for _ in range(2):
        assert JobState.SUCCEEDED == await machine.execution.execute(str(run.name), "a")
    assert 1 == len(machine.work.calls)


async def test_a_cancelled_run_ends_its_waiting_steps(machine: Machine) -> None:
    run = await machine.start(GraphStep("wait", "approval"), step("b", after=("wait",)))
    task = asyncio.create_task(machine.finish(run))
    await _running(machine, run, "wait")
    await machine.pipelines.cancel(run.name)
    ended = await task
    assert (JobState.CANCELLED, {"wait": "C", "b": "C"}) == (ended.state, states(ended))


async def test_a_rerun_keeps_the_steps_before_the_named_one(machine: Machine) -> None:
    steps = (step("a"), step("b", "a"), step("c", "b"), step("d", "a"))
    run = await machine.run(*steps)
    machine.work.calls.clear()
    again = await machine.finish(await machine.pipelines.rerun(run.name, "b", "", b""))
    assert ["b", "c"] == [name for name, _, _ in machine.work.calls]
    assert dict.fromkeys("abcd", "S") == states(again)
    assert [str(run.name), "", "", str(run.name)] == [one.reused_from for one in again.steps]
    assert str(run.name) == again.rerun_of
    with pytest.raises(UnknownStep):
        await machine.pipelines.rerun(run.name, "x", "", b"")


async def test_a_rerun_of_a_failed_run_begins_where_it_failed(machine: Machine) -> None:
    def fail(begun: Any) -> dict[str, Any]:
        if begun.id == "b":
            raise TrainingSetFailed("no rows")
        return {"value": 1}

    machine.work.act = fail
    run = await machine.start(step("a"), step("b", "a"), step("c", "b"))
    with pytest.raises(PipelineRunActive):
        await machine.pipelines.rerun(run.name, "", "", b"")
    await machine.finish(run)
    machine.work.act = lambda begun: {"value": 2}
    machine.work.calls.clear()
    again = await machine.finish(await machine.pipelines.rerun(run.name, "", "", b""))
    assert ["b", "c"] == [name for name, _, _ in machine.work.calls]
    assert JobState.SUCCEEDED == again.state


async def test_only_a_changed_graph_makes_a_new_version(machine: Machine) -> None:
    name = "projects/p/pipelines/weekly"
    parsed = PipelineName.parse(name)
    first, created = await machine.pipelines.apply(parsed, Graph((step("a"),)), "", b"")
    same, again = await machine.pipelines.apply(parsed, Graph((step("a"),)), "", b"")
    second, changed = await machine.pipelines.apply(parsed, Graph((step("a", value=2),)), "", b"")
    assert (f"{name}/versions/1", True, False) == (str(first.name), created, again)
    assert (first, f"{name}/versions/2", True) == (same, str(second.name), changed)
    run = await machine.pipelines.start_pipeline("p", name, {}, "", b"")
    old = await machine.pipelines.start_pipeline("p", f"{name}/versions/1", {}, "", b"")
    assert (f"{name}/versions/2", f"{name}/versions/1") == (run.pipeline, old.pipeline)
    with pytest.raises(UnknownPipeline):
        await machine.pipelines.start_pipeline("p", f"{name}/versions/3", {}, "", b"")


async def test_a_run_with_an_open_step_has_not_succeeded(machine: Machine) -> None:
    run = await machine.start(step("a"), step("b", "a"))
    await machine.execution.execute(str(run.name), "a")
    await machine.execution.finish(str(run.name))
    ended = await machine.pipelines.get(run.name)
    assert (JobState.FAILED, "WORKFLOW_FAILED") == (ended.state, ended.error_reason)


async def _running(machine: Machine, run: Any, name: str) -> None:
    async def running() -> bool:
        found = (await machine.pipelines.get(run.name)).step(name)
        return found is not None and found.state is JobState.RUNNING

    await eventually(running, within=5, every=0.005)
