"""One law for runs and jobs, in memory, in PostgreSQL and through gRPC."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flywheel_common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from flywheel_trainer.jobs.job import Job, JobName, JobState
from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.recipes.outcome import MetricPoint, Outcome, Artifact
from flywheel_trainer.recipes.tabular.spec import Hyperparameters
from flywheel_trainer.runs.run import Experiment, ExperimentName, Run, RunName, RunState, RunUpdate
from flywheel_trainer.runs.search import parse_filter, parse_order

AT = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
EPOCH = {"done": 1, "total": 3, "unit": "epoch"}
LATE = Experiment(ExperimentName("p", "late"), "why", {"a": "b"})
FILE = Artifact("model.onnx", 10, "ab" * 32, "s3://b/k")
SPEC = TrainSpec(
    "late", "projects/p/trainingSets/t", Hyperparameters(hidden_sizes=(8, 4), epochs=3), workers=2
)


@pytest.fixture
async def stores(stores: Any) -> Any:
    """With an experiment."""
    await stores.runs.create_experiment(LATE, "", b"", AT)
    return stores


async def a_run(stores: Any, run: str = "run-1", **fields: Any) -> Run:
    wanted = Run(RunName(fields.pop("project", "p"), run), "late", **fields)
    return await stores.runs.create_run(wanted, "", b"", AT)


async def a_job(
    stores: Any, number: str = "1", request_id: str = "", body: bytes = b"b", **fields: Any
) -> Job:
    job = Job(JobName("p", f"job-{number}"), SPEC, RunName("p", f"run-{number}"), **fields)
    details = {"uri": f"s3://b/{number}"}
    return await stores.jobs.create(job, details, request_id, body, fields.get("created_at", AT))


def point(key: str, step: int, value: float) -> MetricPoint:
    return MetricPoint(key, step, value, step * 1000)


async def test_an_experiment_exists_once_and_a_different_one_is_refused(stores: Any) -> None:
    stored = replace(LATE, created_at=AT)
    assert stored == await stores.runs.create_experiment(LATE, "", b"", AT + SECOND)
    for other in (replace(LATE, description="x"), replace(LATE, tags={})):
        with pytest.raises(AlreadyExists) as exists:
            await stores.runs.create_experiment(other, "", b"", AT)
        assert "EXPERIMENT_EXISTS" == exists.value.reason
    for name in ("c", "a", "b"):
        await stores.runs.create_experiment(replace(LATE, name=ExperimentName("q", name)), "", b"", AT)
    first = await stores.runs.list_experiments("q", 2, "")
    assert ["a", "b"] == [e.name.experiment for e in first.items]
    second = await stores.runs.list_experiments("q", 2, first.next_page_token)
    assert (["c"], "") == ([e.name.experiment for e in second.items], second.next_page_token)
    with pytest.raises(InvalidArgument):
        await stores.runs.list_experiments("p", 2, first.next_page_token)


async def test_runs_read_back_in_their_project_and_need_their_experiment(stores: Any) -> None:
    run = Run(
        RunName("p", "run-1"), "late", params={"lr": "0.1"}, tags={"t": "ü"}, artifacts=(FILE,), code_version="c0ffee",
        environment={"python": "3.11"}, training_set="projects/p/trainingSets/t", job="j", lease_seconds=5.0,
    )  # fmt: skip
    assert replace(run, started_at=AT) == await stores.runs.create_run(run, "", b"", AT)
    assert replace(run, started_at=AT) == await stores.runs.get_run(run.name)
    assert await stores.runs.get_run(RunName("q", "run-1")) is None
    with pytest.raises(NotFound) as unknown:
        await stores.runs.create_run(replace(run, name=RunName("p", "run-2"), experiment="none"), "", b"", AT)
    assert "UNKNOWN_EXPERIMENT" == unknown.value.reason
    assert await stores.runs.get_run(RunName("p", "run-2")) is None


async def test_equal_request_ids_make_one_run_or_job_and_another_body_is_refused(stores: Any) -> None:
    runs = await asyncio.gather(
        *(
            stores.runs.create_run(Run(RunName("p", f"run-a{i}"), "late"), "once", b"body", AT)
            for i in range(10)
        )
    )
    assert 1 == len({r.name for r in runs})
    jobs = await asyncio.gather(*(a_job(stores, f"b{i}", "once") for i in range(10)))
    assert 1 == len({j.name for j in jobs})
    before = [await stores.runs.get_run(runs[0].name), await stores.jobs.get(jobs[0].name)]
    assert [runs[0], jobs[0]] == before
    for reuse in (
        stores.runs.create_run(Run(RunName("p", "run-x"), "late", tags={"a": "other"}), "once", b"other", AT),
        a_job(stores, "x", "once", b"other", priority=9),
    ):
        with pytest.raises(InvalidArgument) as reused:
            await reuse
        assert "REQUEST_ID_REUSED" == reused.value.reason
    listed = await stores.runs.list_runs("p", (), None, 99, "")
    assert 2 == len(listed.items)
    assert before == [await stores.runs.get_run(runs[0].name), await stores.jobs.get(jobs[0].name)]


@pytest.mark.without_grpc("only the use case asks whether a request was heard before")
async def test_a_job_is_found_by_the_request_that_made_it(stores: Any) -> None:
    job = await a_job(stores, "1", "once")
    assert job == await stores.jobs.by_request("once", b"b")
    assert await stores.jobs.by_request("never", b"b") is None
    assert await stores.jobs.by_request("", b"b") is None
    with pytest.raises(InvalidArgument) as reused:
        await stores.jobs.by_request("once", b"other")
    assert "REQUEST_ID_REUSED" == reused.value.reason


async def test_the_first_value_of_a_step_stays_and_the_last_step_is_the_runs_metric(stores: Any) -> None:
    name = (await a_run(stores)).name
    assert 3 == await stores.runs.log(
        name, [point("loss", 1, 0.5), point("loss", 3, 0.25), point("auc", 1, 0.75)], AT
    )
    assert 1 == await stores.runs.log(name, [point("loss", 3, 99.0), point("loss", 2, 0.125)], AT)
    assert 0 == await stores.runs.log(name, [], AT)
    run = await stores.runs.get_run(name)
    assert run is not None and {"loss": 0.25, "auc": 0.75} == run.metrics
    everything = [
        point("auc", 1, 0.75),
        point("loss", 1, 0.5),
        point("loss", 2, 0.125),
        point("loss", 3, 0.25),
    ]
    first = await stores.runs.points(name, "", 3, "")
    rest = await stores.runs.points(name, "", 3, first.next_page_token)
    assert everything == [*first.items, *rest.items]
    assert everything[1:] == list((await stores.runs.points(name, "loss", 9, "")).items)
    with pytest.raises(NotFound) as unknown:
        await stores.runs.log(RunName("q", "run-1"), [point("loss", 1, 0.5)], AT)
    assert "UNKNOWN_RUN" == unknown.value.reason


async def test_an_update_adds_and_a_run_that_has_ended_stays_as_it_is(stores: Any) -> None:
    name = (await a_run(stores, params={"lr": "0.1"}, tags={"a": "1"})).name
    run = await stores.runs.update(
        name, RunUpdate({"lr": "9", "seed": "7"}, {"a": "2", "b": "3"}, (FILE,)), AT + SECOND
    )
    assert ({"lr": "0.1", "seed": "7"}, {"a": "2", "b": "3"}) == (run.params, run.tags)
    assert ((FILE,), RunState.RUNNING, None) == (run.artifacts, run.state, run.ended_at)
    failed = RunUpdate(state=RunState.FAILED, error_message="out of memory")
    ended = await stores.runs.update(name, failed, AT + 2 * SECOND)
    assert (RunState.FAILED, "out of memory", AT + 2 * SECOND) == (
        ended.state, ended.error_message, ended.ended_at,
    )  # fmt: skip
    for late in (
        stores.runs.update(name, RunUpdate(tags={"late": "1"}), AT),
        stores.runs.log(name, [point("loss", 1, 1.0)], AT),
    ):
        with pytest.raises(FailedPrecondition) as over:
            await late
        assert "RUN_ENDED" == over.value.reason
    assert ended == await stores.runs.get_run(name)
    with pytest.raises(NotFound):
        await stores.runs.update(RunName("p", "none"), RunUpdate(), AT)


async def test_a_run_without_a_heartbeat_within_its_lease_is_lost(stores: Any) -> None:
    for number, lease in (("1", 10.0), ("2", 10.0), ("3", 100.0)):
        await a_run(stores, f"run-{number}", lease_seconds=lease)
    await stores.runs.update(RunName("p", "run-2"), RunUpdate(), AT + 5 * SECOND)
    assert [] == await stores.runs.expire(AT + 10 * SECOND, AT)
    # A process that was away until second 20 could hear nobody before.
    assert [] == await stores.runs.expire(AT + 25 * SECOND, AT + 20 * SECOND)
    assert ["projects/p/runs/run-1"] == await stores.runs.expire(AT + 11 * SECOND, AT)
    lost = await stores.runs.get_run(RunName("p", "run-1"))
    assert lost is not None and (RunState.LOST, AT + 11 * SECOND) == (lost.state, lost.ended_at)
    assert [] == await stores.runs.expire(AT + 12 * SECOND, AT)
    await stores.runs.log(RunName("p", "run-2"), [point("loss", 1, 1.0)], AT + 14 * SECOND)
    assert [] == await stores.runs.expire(AT + 24 * SECOND, AT)


async def test_runs_are_found_by_what_they_are_and_ordered_by_a_metric(stores: Any) -> None:
    for i, auc in enumerate([0.5, 0.75, None, 0.75, math.nan]):
        name = (await a_run(stores, f"run-{i}", params={"lr": str(i % 2)}, tags={"n": str(i)})).name
        if auc is not None:
            await stores.runs.log(name, [point("auc", 1, auc)], AT)
    await stores.runs.update(RunName("p", "run-0"), RunUpdate(state=RunState.SUCCEEDED), AT)

    async def found(filter_: str = "", order: str = "", size: int = 99) -> list[str]:
        names, token = [], ""
        while True:
            page = await stores.runs.list_runs("p", parse_filter(filter_), parse_order(order), size, token)
            names += [r.name.run.removeprefix("run-") for r in page.items]
            token = page.next_page_token
            if not token:
                return names

    for size in (1, 3, 99):
        assert ["4", "3", "2", "1", "0"] == await found(size=size)
        assert ["0", "1", "3", "2", "4"] == await found(order="metrics.auc", size=size)
        assert ["3", "1", "0", "4", "2"] == await found(order="-metrics.auc", size=size)
    assert ["3", "1"] == await found("params.lr=1 AND metrics.auc>0.6")
    assert ["3", "1", "0"] == await found("metrics.auc>0"), "what is not a number is above nothing"
    assert ["4", "3", "2", "1"] == await found("state=RUNNING")
    assert ["4", "2", "1", "0"] == await found("tags.n!=3")
    assert ["0"] == await found("metrics.auc!=0.75")
    assert ["4", "3", "2", "1", "0"] == await found("experiment=late AND params.none!=x")
    assert [] == await found("experiment=other")


async def test_a_job_is_made_with_its_run_or_not_at_all(stores: Any) -> None:
    job = await a_job(stores, priority=3)
    assert (JobState.QUEUED, AT, SPEC, {}) == (job.state, job.created_at, job.spec, job.progress)
    assert job == await stores.jobs.get(job.name)
    run = await stores.runs.get_run(job.run)
    assert run is not None
    assert ("late", str(job.name), SPEC.training_set) == (run.experiment, run.job, run.training_set)
    orphan = Job(JobName("p", "job-x"), replace(SPEC, experiment="none"), RunName("p", "run-x"))
    with pytest.raises(NotFound) as unknown:
        await stores.jobs.create(orphan, {}, "", b"", AT)
    assert "UNKNOWN_EXPERIMENT" == unknown.value.reason
    assert (None, None) == (await stores.jobs.get(orphan.name), await stores.runs.get_run(orphan.run))
    assert await stores.jobs.get(JobName("q", "job-1")) is None


@pytest.mark.without_grpc("only the supervisor asks for the jobs that have not ended")
async def test_active_jobs_come_by_priority_then_age_with_their_details(stores: Any) -> None:
    for number, priority, age in (("1", 0, 0), ("2", 5, 1), ("3", 5, 2), ("4", 0, 3)):
        await a_job(stores, number, priority=priority, created_at=AT - age * SECOND)
    await stores.jobs.end(JobName("p", "job-1"), JobState.CANCELLED, Outcome(False), AT)
    active = await stores.jobs.active()
    assert ["job-3", "job-2", "job-4"] == [j.name.job for j, _ in active]
    assert {"uri": "s3://b/3"} == active[0][1]


async def test_jobs_are_listed_newest_first_page_by_page(stores: Any) -> None:
    for number in ("2", "1", "4", "3"):
        await a_job(stores, number)
    first = await stores.jobs.list("p", 3, "")
    rest = await stores.jobs.list("p", 3, first.next_page_token)
    assert ["job-4", "job-3", "job-2", "job-1"] == [j.name.job for j in (*first.items, *rest.items)]


async def test_a_job_runs_reports_and_ends_once_together_with_its_run(stores: Any) -> None:
    job = await a_job(stores)
    await stores.jobs.waits(job.name, "waiting for a free slot")
    await stores.jobs.alive(job.name, EPOCH, AT)
    queued = await stores.jobs.get(job.name)
    assert queued is not None and {"message": "waiting for a free slot"} == queued.progress
    await stores.jobs.started(job.name, AT + SECOND)
    await stores.jobs.started(job.name, AT + 9 * SECOND)
    await stores.jobs.alive(job.name, EPOCH, AT + 50 * SECOND)
    running = await stores.jobs.get(job.name)
    assert running is not None
    assert (JobState.RUNNING, AT + SECOND, EPOCH) == (
        running.state,
        running.started_at,
        running.progress,
    )
    assert [] == await stores.runs.expire(AT + 100 * SECOND, AT), "a living job keeps its run alive"
    await stores.runs.log(job.run, [point("train_loss", 2, 0.5)], AT + 50 * SECOND)
    assert 2 == await stores.jobs.progress(job.run)
    outcome = Outcome(
        True, artifacts=(FILE,), points=(point("train_loss", 2, 9.0), point("train_loss", 3, 0.25)),
        params={"lr": "0.1"}, code_version="c0ffee", environment={"torch": "2"},
    )  # fmt: skip
    ends = await asyncio.gather(
        *(stores.jobs.end(job.name, JobState.SUCCEEDED, outcome, AT + 60 * SECOND) for _ in range(5)),
        stores.jobs.end(job.name, JobState.SUCCEEDED, outcome, AT + 60 * SECOND),
    )
    assert 1 == sum(ends)
    assert not await stores.jobs.end(job.name, JobState.FAILED, Outcome(False, "X", "late"), AT)
    run, ended = await stores.runs.get_run(job.run), await stores.jobs.get(job.name)
    assert run is not None and ended is not None
    assert (JobState.SUCCEEDED, RunState.SUCCEEDED, "") == (ended.state, run.state, ended.error_reason)
    assert AT + 60 * SECOND == ended.ended_at == run.ended_at
    assert ({"train_loss": 0.25}, (FILE,), {"lr": "0.1"}) == (run.metrics, run.artifacts, run.params)
    assert ("c0ffee", {"torch": "2"}) == (run.code_version, run.environment)
    kept = (await stores.runs.points(job.run, "", 9, "")).items
    assert [point("train_loss", 2, 0.5), point("train_loss", 3, 0.25)] == list(kept)


async def test_cancelling_is_a_wish_until_the_job_has_ended(stores: Any) -> None:
    job = await a_job(stores)
    asked = await stores.jobs.request_cancel(job.name)
    assert (True, JobState.QUEUED) == (asked.cancel_requested, asked.state)
    assert asked == await stores.jobs.request_cancel(job.name)
    await stores.jobs.end(job.name, JobState.CANCELLED, Outcome(False, "CANCELLED", "asked"), AT)
    with pytest.raises(FailedPrecondition) as over:
        await stores.jobs.request_cancel(job.name)
    assert "JOB_ENDED" == over.value.reason
    other = await a_job(stores, "2")
    heard = await stores.jobs.request_cancel(other.name, "once", b"body")
    with pytest.raises(InvalidArgument) as reused:
        await stores.jobs.request_cancel(job.name, "once", b"another")
    assert "REQUEST_ID_REUSED" == reused.value.reason
    assert heard == await stores.jobs.request_cancel(other.name, "once", b"body")
    await stores.jobs.end(other.name, JobState.CANCELLED, Outcome(False, "CANCELLED", "asked"), AT)
    # Who asks again because no answer came is told how it ended.
    again = await stores.jobs.request_cancel(other.name, "once", b"body")
    assert JobState.CANCELLED == again.state
    with pytest.raises(NotFound) as unknown:
        await stores.jobs.request_cancel(JobName("p", "none"))
    assert "UNKNOWN_JOB" == unknown.value.reason
    run = await stores.runs.get_run(job.run)
    assert run is not None and (RunState.CANCELLED, "asked") == (run.state, run.error_message)
