"""One law for pipeline runs, in memory, in PostgreSQL and through gRPC."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flywheel_common.errors import FailedPrecondition, InvalidArgument, NotFound
from flywheel_protos.events.v1.lifecycle_pb2 import TrainingCompleted
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.pipelines.pipeline_run import STEPS, PipelineRun, PipelineRunName, PipelineSpec, Step
from flywheel_trainer.recipes.tabular.spec import Hyperparameters

AT = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
SPEC = PipelineSpec(
    model="projects/p/models/late",
    feature_set="projects/p/featureSets/late/versions/1",
    spine={"source": {"source": "projects/p/sources/landed", "label": "late"}},
    train=TrainSpec("late", "", Hyperparameters(hidden_sizes=(8, 4), epochs=3), workers=2),
    threshold=0.25,
    segment_keys=("origin", "carrier"),
    start_rollout=True,
)
NOW_QUEUED = tuple(Step(step) for step in STEPS)


async def started(stores: Any, run: str = "pipe-1", project: str = "p", **fields: Any) -> PipelineRun:
    spec = replace(
        SPEC, model=f"projects/{project}/models/late", feature_set=f"projects/{project}/featureSets/late"
    )
    wanted = PipelineRun(PipelineRunName(project, run), replace(spec, **fields), event_time=AT)
    return await stores.pipelines.create(wanted, "", b"", AT)


async def test_a_run_reads_back_as_it_was_asked_for_with_all_its_steps_to_do(stores: Any) -> None:
    wanted = PipelineRun(PipelineRunName("p", "pipe-1"), SPEC, event_time=AT)
    stored = replace(wanted, created_at=AT)
    assert stored == await stores.pipelines.create(wanted, "", b"", AT)
    found = await stores.pipelines.get(wanted.name)
    assert stored == found
    assert (JobState.QUEUED, NOW_QUEUED, False) == (found.state, found.steps, found.cancel_requested)
    assert await stores.pipelines.get(PipelineRunName("q", "pipe-1")) is None
    assert await stores.pipelines.get(PipelineRunName("p", "pipe-2")) is None


async def test_runs_are_listed_newest_first_page_by_page_within_their_project(stores: Any) -> None:
    for run in ("pipe-2", "pipe-4", "pipe-1", "pipe-3"):
        await started(stores, run)
    await started(stores, "pipe-9", "q")
    first = await stores.pipelines.list("p", 3, "")
    rest = await stores.pipelines.list("p", 3, first.next_page_token)
    assert ["pipe-4", "pipe-3", "pipe-2"] == [r.name.run for r in first.items]
    assert (["pipe-1"], "") == ([r.name.run for r in rest.items], rest.next_page_token)
    assert await stores.pipelines.get(PipelineRunName("p", "pipe-1")) == rest.items[0]
    with pytest.raises(InvalidArgument) as foreign:
        await stores.pipelines.list("q", 3, first.next_page_token)
    assert "INVALID_PAGE_TOKEN" == foreign.value.reason


async def test_equal_request_ids_start_one_run_and_another_body_is_refused(stores: Any) -> None:
    def create(run: str, spec: PipelineSpec = SPEC, body: bytes = b"body") -> Any:
        wanted = PipelineRun(PipelineRunName("p", run), spec, event_time=AT)
        return stores.pipelines.create(wanted, "once", body, AT)

    runs = await asyncio.gather(*(create(f"pipe-{i}") for i in range(10)))
    assert [runs[0]] * 10 == runs
    await stores.pipelines.begin_step(runs[0].name, "training_set", AT)
    running = await stores.pipelines.get(runs[0].name)
    assert running == await create("pipe-x"), "who asks again is told how it is now"
    with pytest.raises(InvalidArgument) as reused:
        await create("pipe-y", replace(SPEC, threshold=0.5), b"other")
    assert "REQUEST_ID_REUSED" == reused.value.reason
    assert [running] == list((await stores.pipelines.list("p", 9, "")).items)


async def test_cancelling_is_a_wish_until_the_run_has_ended(stores: Any) -> None:
    first, second = await started(stores, "pipe-1"), await started(stores, "pipe-2")
    asked = await stores.pipelines.request_cancel(first.name)
    assert replace(first, cancel_requested=True) == asked == await stores.pipelines.get(first.name)
    assert asked == await stores.pipelines.request_cancel(first.name)
    heard = await stores.pipelines.request_cancel(second.name, "once", b"body")
    with pytest.raises(InvalidArgument) as reused:
        await stores.pipelines.request_cancel(first.name, "once", b"another")
    assert "REQUEST_ID_REUSED" == reused.value.reason
    assert heard == await stores.pipelines.request_cancel(second.name, "once", b"body")
    for run in (first, second):
        await stores.pipelines.finish(run.name, JobState.CANCELLED, "CANCELLED", "as asked", AT)
    with pytest.raises(FailedPrecondition) as over:
        await stores.pipelines.request_cancel(first.name)
    assert "PIPELINE_RUN_ENDED" == over.value.reason
    # Who asks again because no answer came is told how it ended.
    again = await stores.pipelines.request_cancel(second.name, "once", b"body")
    assert JobState.CANCELLED == again.state
    for absent in (PipelineRunName("p", "none"), PipelineRunName("q", "pipe-1")):
        with pytest.raises(NotFound) as unknown:
            await stores.pipelines.request_cancel(absent)
        assert "UNKNOWN_PIPELINE_RUN" == unknown.value.reason


async def test_steps_begin_and_end_and_set_the_facts_of_the_run_and_repeats_write_the_same(
    stores: Any,
) -> None:
    name = (await started(stores)).name
    made = {"training_set": "projects/p/trainingSets/t"}
    for again in range(2):
        await stores.pipelines.begin_step(name, "training_set", AT + (1 + 10 * again) * SECOND)
    begun = await stores.pipelines.get(name)
    assert JobState.RUNNING == begun.state
    assert Step("training_set", JobState.RUNNING, AT + SECOND) == begun.steps[0]
    assert NOW_QUEUED[1:] == begun.steps[1:]
    for again in range(2):
        await stores.pipelines.end_step(
            name, "training_set", made["training_set"], "7 rows", made, AT + (2 + 10 * again) * SECOND
        )
    await stores.pipelines.begin_step(name, "training_set", AT + 99 * SECOND)
    first = Step(
        "training_set", JobState.SUCCEEDED, AT + SECOND, AT + 2 * SECOND, made["training_set"], "7 rows"
    )
    await stores.pipelines.begin_step(name, "train", AT + 3 * SECOND)
    await stores.pipelines.note(name, {"run": "projects/p/runs/run-1"})
    found = await stores.pipelines.get(name)
    assert (first, Step("train", JobState.RUNNING, AT + 3 * SECOND)) == found.steps[:2]
    assert (made["training_set"], "projects/p/runs/run-1") == (found.training_set, found.run)
    facts = {"model_version": "v", "release": "r", "rollout": "o", "gate_passed": True}
    await stores.pipelines.end_step(name, "train", "", "", facts, AT + 4 * SECOND)
    found = await stores.pipelines.get(name)
    assert ("v", "r", "o", True) == (found.model_version, found.release, found.rollout, found.gate_passed)
    assert (made["training_set"], JobState.RUNNING) == (found.training_set, found.state)


async def test_a_run_ends_once_closes_its_open_steps_and_says_so_once(stores: Any) -> None:
    name = (await started(stores)).name
    for step in ("training_set", "train"):
        await stores.pipelines.begin_step(name, step, AT + SECOND)
    await stores.pipelines.end_step(name, "training_set", "t", "built", {}, AT + 2 * SECOND)
    ends = [(JobState.FAILED, "OUT_OF_MEMORY", "too large"), (JobState.SUCCEEDED, "", "well")]
    for state, reason, message in ends:
        await stores.pipelines.finish(name, state, reason, message, AT + 9 * SECOND)
    found = await stores.pipelines.get(name)
    assert (JobState.FAILED, "OUT_OF_MEMORY", "too large", AT + 9 * SECOND) == (
        found.state, found.error_reason, found.error_message, found.ended_at,
    )  # fmt: skip
    assert (
        Step("training_set", JobState.SUCCEEDED, AT + SECOND, AT + 2 * SECOND, "t", "built"),
        Step("train", JobState.FAILED, AT + SECOND, AT + 9 * SECOND, "", "too large"),
        *(Step(step, JobState.CANCELLED, message="not run") for step in STEPS[2:]),
    ) == found.steps
    told = TrainingCompleted(pipeline_run=str(name), model=SPEC.model, message="too large")
    assert [told] == await stores.completed()
    with pytest.raises(FailedPrecondition):
        await stores.pipelines.request_cancel(name)


async def test_a_run_that_ends_well_has_no_error_and_names_its_version(stores: Any) -> None:
    name = (await started(stores)).name
    version = "projects/p/models/late/versions/3"
    await stores.pipelines.note(name, {"model_version": version})
    await stores.pipelines.finish(name, JobState.SUCCEEDED, "", "offline gate refused", AT + SECOND)
    found = await stores.pipelines.get(name)
    assert (JobState.SUCCEEDED, "", "") == (found.state, found.error_reason, found.error_message)
    told = TrainingCompleted(
        pipeline_run=str(name), model=SPEC.model, model_version=version, succeeded=True, message="offline gate refused"
    )  # fmt: skip
    assert [told] == await stores.completed()


@pytest.mark.without_grpc("only the workflow engine asks for the runs to drive")
async def test_unfinished_runs_are_those_of_all_projects_that_have_not_ended(stores: Any) -> None:
    assert [] == list(await stores.pipelines.unfinished())
    names = [(await started(stores, f"pipe-{i}", "pq"[i % 2])).name for i in range(4)]
    await stores.pipelines.begin_step(names[1], "training_set", AT)
    await stores.pipelines.request_cancel(names[2])
    await stores.pipelines.finish(names[3], JobState.SUCCEEDED, "", "", AT)
    assert names[:3] == list(await stores.pipelines.unfinished())
