"""Contract tests for stores of pipeline runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from flywheel_common.errors import InvalidPageToken
from flywheel_common.postgres.errors import RequestIdReused
from flywheel_protos.events.v1.lifecycle_pb2 import TrainingCompleted
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.pipelines.cache import CachedStep
from flywheel_trainer.pipelines.definition import Pipeline, PipelineName, PipelineVersionName
from flywheel_trainer.pipelines.errors import (
    PipelineRunEnded,
    StepNotWaiting,
    UnknownPipelineRun,
    UnknownStep,
)
from flywheel_trainer.pipelines.expansion import queued
from flywheel_trainer.pipelines.graph import Graph, GraphStep
from flywheel_trainer.pipelines.pipeline_run import (
    FILTER_FIELDS,
    STEPS,
    Approval,
    PipelineRun,
    PipelineRunName,
    Step,
)
from flywheel_trainer.pipelines.ports import Ended
from flywheel_trainer.runs.filter_terms import parse_terms
from tests.support.builders import trainer as build
from tests.support.builders.trainer import AT, SECOND

ALL_QUEUED = tuple(Step(step) for step in STEPS)
MODEL = "projects/p/models/late"


async def start(stores: Any, run: str = "pipe-1", project: str = "p") -> PipelineRun:
    return await stores.pipelines.create(build.pipeline_run(run, project), "", b"", AT)


async def test_a_run_reads_back_with_its_specification_and_steps(stores: Any) -> None:
    run = build.pipeline_run()
    stored = replace(run, created_at=AT)
    assert stored == await stores.pipelines.create(run, "", b"", AT)
    found = await stores.pipelines.get(run.name)
    assert stored == found
    assert (JobState.QUEUED, ALL_QUEUED, False) == (found.state, found.steps, found.cancel_requested)
    assert await stores.pipelines.get(PipelineRunName("q", "pipe-1")) is None
    assert await stores.pipelines.get(PipelineRunName("p", "pipe-2")) is None


async def test_runs_of_a_project_are_listed_newest_first(stores: Any) -> None:
    for run in ("pipe-2", "pipe-4", "pipe-1", "pipe-3"):
        await start(stores, run)
    await start(stores, "pipe-9", "q")
    first = await stores.pipelines.list("p", (), 3, "")
    rest = await stores.pipelines.list("p", (), 3, first.next_page_token)
    assert ["pipe-4", "pipe-3", "pipe-2"] == [r.name.run for r in first.items]
    assert (["pipe-1"], "") == ([r.name.run for r in rest.items], rest.next_page_token)
    assert await stores.pipelines.get(PipelineRunName("p", "pipe-1")) == rest.items[0]
    with pytest.raises(InvalidPageToken):
        await stores.pipelines.list("q", (), 3, first.next_page_token)


async def test_runs_are_listed_by_state_model_alert_and_pipeline(stores: Any) -> None:
    other = "projects/p/models/other"
    for run in (
        build.pipeline_run("pipe-1"),
        build.pipeline_run("pipe-2", model=other),
        replace(
            build.pipeline_run("pipe-3", model=other),
            cause_alert="projects/p/alerts/a",
            pipeline="projects/p/pipelines/weekly/versions/2",
        ),
    ):
        await stores.pipelines.create(run, "", b"", AT)
    await stores.pipelines.begin_step(PipelineRunName("p", "pipe-2"), "train", AT)
    for text, expected in (
        ("", "321"),
        ("state=QUEUED", "31"),
        (f"model={other}", "32"),
        (f'model!="{other}"', "1"),
        (f"model={other} AND state=JOB_STATE_RUNNING", "2"),
        ("cause_alert=projects/p/alerts/a", "3"),
        ("pipeline=projects/p/pipelines/weekly/versions/2", "3"),
        ("pipeline!=projects/p/pipelines/weekly/versions/2", "21"),
    ):
        page = await stores.pipelines.list("p", parse_terms(text, FILTER_FIELDS), 9, "")
        assert expected == "".join(r.name.run.removeprefix("pipe-") for r in page.items), text


async def test_equal_requests_start_one_run(stores: Any) -> None:
    def create(run: str, body: bytes = b"body", **fields: Any) -> Any:
        return stores.pipelines.create(build.pipeline_run(run, **fields), "once", body, AT)

    runs = await asyncio.gather(*(create(f"pipe-{i}") for i in range(10)))
    assert [runs[0]] * 10 == runs
    await stores.pipelines.begin_step(runs[0].name, "training_set", AT)
    running = await stores.pipelines.get(runs[0].name)
    assert running == await create("pipe-x"), "a repeated request returns the run as it is now"
    with pytest.raises(RequestIdReused):
        await create("pipe-y", b"other", threshold=0.5)
    assert [running] == list((await stores.pipelines.list("p", (), 9, "")).items)


async def test_a_cancel_request_is_stored_until_the_run_has_ended(stores: Any) -> None:
    run = await start(stores)
    requested = await stores.pipelines.request_cancel(run.name)
    assert replace(run, cancel_requested=True) == requested == await stores.pipelines.get(run.name)
    assert requested == await stores.pipelines.request_cancel(run.name)
    await stores.pipelines.finish(run.name, JobState.CANCELLED, "CANCELLED", "as requested", AT)
    with pytest.raises(PipelineRunEnded):
        await stores.pipelines.request_cancel(run.name)
    for absent in (PipelineRunName("p", "none"), PipelineRunName("q", "pipe-1")):
        with pytest.raises(UnknownPipelineRun):
            await stores.pipelines.request_cancel(absent)


async def test_a_repeated_cancel_request_returns_the_run_as_it_is_now(stores: Any) -> None:
    run, other = await start(stores, "pipe-1"), await start(stores, "pipe-2")
    requested = await stores.pipelines.request_cancel(run.name, "once", b"body")
    with pytest.raises(RequestIdReused):
        await stores.pipelines.request_cancel(other.name, "once", b"another")
    assert requested == await stores.pipelines.request_cancel(run.name, "once", b"body")
    await stores.pipelines.finish(run.name, JobState.CANCELLED, "CANCELLED", "as requested", AT)
    again = await stores.pipelines.request_cancel(run.name, "once", b"body")
    assert JobState.CANCELLED == again.state


async def test_repeated_steps_write_the_same_state(stores: Any) -> None:
    name = (await start(stores)).name
    fields = {"training_set": "projects/p/trainingSets/t"}
    for again in range(2):
        await stores.pipelines.begin_step(name, "training_set", AT + (1 + 10 * again) * SECOND)
    begun = await stores.pipelines.get(name)
    assert JobState.RUNNING == begun.state
    assert Step("training_set", JobState.RUNNING, AT + SECOND, attempt=1) == begun.steps[0]
    assert ALL_QUEUED[1:] == begun.steps[1:]
    for again in range(2):
        done = Ended(JobState.SUCCEEDED, fields["training_set"], "7 rows", fields)
        await stores.pipelines.end_step(name, "training_set", done, AT + (2 + 10 * again) * SECOND)
    await stores.pipelines.begin_step(name, "training_set", AT + 99 * SECOND)
    ended = await stores.pipelines.get(name)
    assert fields["training_set"] == ended.training_set
    assert ended.steps[0] == Step(
        "training_set",
        JobState.SUCCEEDED,
        started_at=AT + SECOND,
        ended_at=AT + 2 * SECOND,
        output=fields["training_set"],
        message="7 rows",
        outputs=fields,
        attempt=1,
    )


async def test_steps_set_fields_of_the_run_and_keep_the_others(stores: Any) -> None:
    name = (await start(stores)).name
    await stores.pipelines.begin_step(name, "train", AT + 3 * SECOND)
    await stores.pipelines.set_fields(name, {"training_set": "t", "run": "projects/p/runs/run-1"})
    found = await stores.pipelines.get(name)
    assert Step("train", JobState.RUNNING, AT + 3 * SECOND, attempt=1) == found.steps[1]
    assert ("t", "projects/p/runs/run-1") == (found.training_set, found.run)
    outputs = {"model_version": "v", "release": "r", "rollout": "o", "passed": True}
    await stores.pipelines.end_step(
        name, "train", Ended(JobState.SUCCEEDED, outputs=outputs), AT + 4 * SECOND
    )
    found = await stores.pipelines.get(name)
    assert ("v", "r", "o", True) == (found.model_version, found.release, found.rollout, found.gate_passed)
    assert ("t", JobState.RUNNING) == (found.training_set, found.state)


async def test_a_run_ends_once_and_closes_its_open_steps(stores: Any) -> None:
    name = (await start(stores)).name
    for step in ("training_set", "train"):
        await stores.pipelines.begin_step(name, step, AT + SECOND)
    built = Ended(JobState.SUCCEEDED, "t", "built")
    await stores.pipelines.end_step(name, "training_set", built, AT + 2 * SECOND)
    end = AT + 9 * SECOND
    await stores.pipelines.finish(name, JobState.FAILED, "OUT_OF_MEMORY", "too large", end)
    await stores.pipelines.finish(name, JobState.SUCCEEDED, "", "well", end)
    found = await stores.pipelines.get(name)
    assert (JobState.FAILED, "OUT_OF_MEMORY") == (found.state, found.error_reason)
    assert ("too large", end) == (found.error_message, found.ended_at)
    assert (
        Step("training_set", JobState.SUCCEEDED, AT + SECOND, AT + 2 * SECOND, "t", "built", attempt=1),
        Step("train", JobState.FAILED, AT + SECOND, end, "", "too large", attempt=1),
        *(Step(step, JobState.CANCELLED, message="not run") for step in STEPS[2:]),
    ) == found.steps
    event = TrainingCompleted(pipeline_run=str(name), model=MODEL, message="too large")
    assert [event] == await stores.completed()
    with pytest.raises(PipelineRunEnded):
        await stores.pipelines.request_cancel(name)


async def test_a_successful_run_has_no_error_and_its_event_the_version(stores: Any) -> None:
    name = (await start(stores)).name
    version = f"{MODEL}/versions/3"
    await stores.pipelines.set_fields(name, {"model_version": version})
    await stores.pipelines.finish(name, JobState.SUCCEEDED, "", "offline gate refused", AT + SECOND)
    found = await stores.pipelines.get(name)
    assert (JobState.SUCCEEDED, "", "") == (found.state, found.error_reason, found.error_message)
    event = TrainingCompleted(
        pipeline_run=str(name),
        model=MODEL,
        model_version=version,
        succeeded=True,
        message="offline gate refused",
    )
    assert [event] == await stores.completed()


async def test_unfinished_runs_of_all_projects_are_returned(stores: Any) -> None:
    assert [] == list(await stores.pipelines.unfinished())
    names = [(await start(stores, f"pipe-{i}", "pq"[i % 2])).name for i in range(4)]
    await stores.pipelines.begin_step(names[1], "training_set", AT)
    await stores.pipelines.request_cancel(names[2])
    await stores.pipelines.finish(names[3], JobState.SUCCEEDED, "", "", AT)
    assert names[:3] == list(await stores.pipelines.unfinished())


GRAPH = Graph((GraphStep("ok", "approval"), GraphStep("end", "approval", after=("ok",))), {"p": [1, None]})


async def test_versions_of_a_pipeline_are_numbered_and_kept(stores: Any) -> None:
    name, other = PipelineName("p", "weekly"), PipelineName("p", "daily")
    results = await asyncio.gather(*(stores.definitions.apply(name, GRAPH, "me", AT) for _ in range(8)))
    assert 1 == sum(created for _, created in results)
    first = results[0][0]
    assert Pipeline(PipelineVersionName("p", "weekly", 1), GRAPH, "me", AT) == first
    changed = replace(GRAPH, params={})
    second, created = await stores.definitions.apply(name, changed, "you", AT)
    assert (2, True, changed) == (second.name.version, created, second.graph)
    back, created = await stores.definitions.apply(name, GRAPH, "me", AT)
    assert (3, True) == (back.name.version, created), "an older graph is a new version again"
    assert first == await stores.definitions.get(name, 1)
    assert back == await stores.definitions.get(name)
    for absent in ((name, 4), (name, 10**17), (other, None), (PipelineName("q", "weekly"), None)):
        assert await stores.definitions.get(*absent) is None
    daily, _ = await stores.definitions.apply(other, GRAPH, "me", AT)
    await stores.definitions.apply(PipelineName("q", "x"), GRAPH, "me", AT)
    page = await stores.definitions.list("p", 1, "")
    rest = await stores.definitions.list("p", 1, page.next_page_token)
    assert ([daily], [back], "") == (list(page.items), list(rest.items), rest.next_page_token)


async def test_a_repeated_request_makes_no_version_after_a_newer_one(stores: Any) -> None:
    name, apply = PipelineName("p", "weekly"), stores.definitions.apply
    first = await apply(name, GRAPH, "me", AT, "once", b"body")
    await apply(name, replace(GRAPH, params={}), "me", AT)
    assert first == await apply(name, GRAPH, "me", AT, "once", b"body")
    assert 2 == (await stores.definitions.get(name)).name.version
    with pytest.raises(RequestIdReused):
        await apply(name, GRAPH, "me", AT, "once", b"other")


async def approving(stores: Any) -> PipelineRunName:
    run = queued(PipelineRun(PipelineRunName("p", "pipe-1"), AT, replace(GRAPH, params={})))
    return (await stores.pipelines.create(run, "", b"", AT)).name


async def test_a_run_of_a_graph_reads_back(stores: Any) -> None:
    run = queued(
        PipelineRun(
            PipelineRunName("p", "pipe-1"),
            AT,
            replace(GRAPH, params={}),
            pipeline="projects/p/pipelines/weekly/versions/1",
            params={"p": [1, None]},
            rerun_of="projects/p/pipelineRuns/pipe-0",
            policy="projects/p/retrainingPolicies/late",
            training_set="t",
        )
    )
    reused = Step("ok", JobState.SUCCEEDED, AT, AT, "o", "m", {"a": [1.5]}, 2, reused_from="x")
    run = replace(run, steps=(reused, run.steps[1]), created_at=AT)
    assert run == await stores.pipelines.create(run, "", b"", AT)
    assert run == await stores.pipelines.get(run.name)


async def test_a_decision_is_stored_once_on_a_waiting_step(stores: Any) -> None:
    name, yes = await approving(stores), Approval(True, "me", "fine")

    def decide(step: str, approval: Approval = yes, request: str = "", body: bytes = b"") -> Any:
        return stores.pipelines.decide(name, step, approval, request, body)

    with pytest.raises(StepNotWaiting):
        await decide("ok")
    await stores.pipelines.begin_step(name, "ok", AT)
    for step, error in (("end", StepNotWaiting), ("none", UnknownStep)):
        with pytest.raises(error):
            await decide(step)
    with pytest.raises(UnknownPipelineRun):
        await stores.pipelines.decide(PipelineRunName("p", "none"), "ok", yes, "", b"")
    first = await decide("ok", request="once", body=b"body")
    assert yes == first.steps[0].approval
    assert first == await decide("ok", request="once", body=b"body")
    with pytest.raises(RequestIdReused):
        await decide("ok", request="once", body=b"other")
    with pytest.raises(StepNotWaiting):
        await decide("ok", Approval(False, "you", ""))
    await stores.pipelines.end_step(name, "ok", Ended(JobState.SUCCEEDED), AT)
    with pytest.raises(StepNotWaiting):
        await decide("ok")


async def test_a_further_try_is_recorded_once(stores: Any) -> None:
    name = await approving(stores)
    await stores.pipelines.begin_step(name, "ok", AT)
    for attempt in (2, 2, 1):
        await stores.pipelines.begin_attempt(name, "ok", attempt, "no rows")
    await stores.pipelines.begin_step(name, "ok", AT + SECOND)
    (step, _) = (await stores.pipelines.get(name)).steps
    assert Step("ok", JobState.RUNNING, AT, None, "", "no rows", attempt=2) == step


async def test_a_step_ends_once_and_its_success_is_found_by_its_key(stores: Any) -> None:
    name = await approving(stores)
    assert await stores.cache.find("p", "key") is None
    failed = Ended(JobState.FAILED, message="no", reason="X")
    await stores.pipelines.begin_step(name, "ok", AT)
    await stores.pipelines.end_step(name, "ok", failed, AT, "key")
    await stores.pipelines.end_step(name, "ok", Ended(JobState.SUCCEEDED), AT + SECOND, "key")
    assert await stores.cache.find("p", "key") is None
    step = (await stores.pipelines.get(name)).steps[0]
    assert (JobState.FAILED, "X", AT) == (step.state, step.error_reason, step.ended_at)
    await stores.pipelines.end_step(name, "end", Ended(JobState.SUCCEEDED, "o", "m", {"a": 1}), AT, "key")
    assert CachedStep(str(name), "o", "m", {"a": 1}) == await stores.cache.find("p", "key")
    assert await stores.cache.find("q", "key") is None


async def test_the_end_of_a_run_without_a_model_is_no_event(stores: Any) -> None:
    name = await approving(stores)
    await stores.pipelines.finish(name, JobState.SUCCEEDED, "", "done", AT)
    assert JobState.SUCCEEDED == (await stores.pipelines.get(name)).state
    assert [] == await stores.completed()
