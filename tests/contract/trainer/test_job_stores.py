"""Contract tests for stores of jobs, each of which is stored with its run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from flywheel_common.errors import InvalidPageToken
from flywheel_common.granted.access import Access
from flywheel_common.granted.errors import AttemptEnded
from flywheel_common.postgres.errors import LeaseLost, RequestIdReused
from flywheel_job.outcome import Outcome
from flywheel_trainer.jobs.attempt import Attempt, Watch
from flywheel_trainer.jobs.errors import CancelledOnRequest, JobEnded, UnknownJob
from flywheel_trainer.jobs.job import FILTER_FIELDS, Job, JobName, JobState
from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.runs.errors import ForeignRun, UnknownExperiment
from flywheel_trainer.runs.filter_terms import parse_terms
from flywheel_trainer.runs.metric_points import LoggedPoints
from flywheel_trainer.runs.run import ExperimentName, RunName, RunState
from tests.support.builders import trainer as build
from tests.support.builders.trainer import ARTIFACT, AT, EXPERIMENT, SECOND, TRAIN_SPEC
from tests.support.builders.trainer import metric_point as point

EPOCH = {"done": 1, "total": 3, "unit": "epoch"}


@pytest.fixture
async def stores(stores: Any) -> Any:
    """Stores with EXPERIMENT."""
    await stores.runs.create_experiment(EXPERIMENT, "", b"", AT)
    return stores


async def create_job(
    stores: Any, number: str = "1", request_id: str = "", body: bytes = b"b", **fields: Any
) -> Job:
    details = {"uri": f"s3://b/{number}"}
    created_at = fields.get("created_at", AT)
    return await stores.jobs.create(build.job(number, **fields), details, request_id, body, created_at)


async def test_a_job_is_created_with_its_run_or_not_at_all(stores: Any) -> None:
    job = await create_job(stores, priority=3)
    assert (JobState.QUEUED, AT, TRAIN_SPEC, {}) == (job.state, job.created_at, job.spec, job.progress)
    assert job == await stores.jobs.get(job.name)
    run = await stores.runs.get_run(job.run)
    assert ("late", str(job.name), TRAIN_SPEC.training_set) == (run.experiment, run.job, run.training_set)
    orphan = Job(JobName("p", "job-x"), replace(TRAIN_SPEC, experiment="none"), RunName("p", "run-x"))
    with pytest.raises(UnknownExperiment):
        await stores.jobs.create(orphan, {}, "", b"", AT)
    assert (None, None) == (await stores.jobs.get(orphan.name), await stores.runs.get_run(orphan.run))
    assert await stores.jobs.get(JobName("q", "job-1")) is None


async def test_equal_requests_create_one_job(stores: Any) -> None:
    jobs = await asyncio.gather(*(create_job(stores, f"b{i}", "once") for i in range(10)))
    assert [jobs[0]] * 10 == jobs
    with pytest.raises(RequestIdReused):
        await create_job(stores, "x", "once", b"other", priority=9)
    assert [jobs[0]] == list((await stores.jobs.list("p", (), 99, "")).items)
    assert 1 == len((await stores.runs.list_runs("p", (), None, 99, "")).items)


async def test_a_job_is_found_by_the_request_that_created_it(stores: Any) -> None:
    job = await create_job(stores, "1", "once")
    assert job == await stores.jobs.find_by_request("once", b"b")
    assert await stores.jobs.find_by_request("never", b"b") is None
    assert await stores.jobs.find_by_request("", b"b") is None
    with pytest.raises(RequestIdReused):
        await stores.jobs.find_by_request("once", b"other")


async def test_active_jobs_are_ordered_by_priority_then_age(stores: Any) -> None:
    for number, priority, age in (("1", 0, 0), ("2", 5, 1), ("3", 5, 2), ("4", 0, 3)):
        await create_job(stores, number, priority=priority, created_at=AT - age * SECOND)
    supervision = await stores.supervise()
    await supervision.end(JobName("p", "job-1"), JobState.CANCELLED, Outcome(False), AT)
    active = await supervision.active()
    assert ["job-3", "job-2", "job-4"] == [a.job.name.job for a in active]
    assert {"uri": "s3://b/3"} == active[0].details


async def test_jobs_are_listed_newest_first_page_by_page(stores: Any) -> None:
    for number in ("2", "1", "4", "3"):
        await create_job(stores, number)
    first = await stores.jobs.list("p", (), 3, "")
    rest = await stores.jobs.list("p", (), 3, first.next_page_token)
    assert ["job-4", "job-3", "job-2", "job-1"] == [j.name.job for j in (*first.items, *rest.items)]


async def test_jobs_are_listed_by_state_experiment_and_training_set(stores: Any) -> None:
    await stores.runs.create_experiment(replace(EXPERIMENT, name=ExperimentName("p", "other")), "", b"", AT)
    for number, experiment, training_set in (("1", "late", "a"), ("2", "other", "a"), ("3", "late", "b' OR")):
        spec = replace(TRAIN_SPEC, experiment=experiment, training_set=training_set)
        await stores.jobs.create(replace(build.job(number), spec=spec), {}, "", b"", AT)
    await start(await stores.supervise(), JobName("p", "job-1"))

    async def found(text: str) -> str:
        """The numbers of the jobs, read page by page."""
        numbers, token = "", ""
        while True:
            page = await stores.jobs.list("p", parse_terms(text, FILTER_FIELDS), 1, token)
            numbers += "".join(j.name.job.removeprefix("job-") for j in page.items)
            token = page.next_page_token
            if not token:
                return numbers

    assert "321" == await found("")
    assert "1" == await found("state=running")
    assert "32" == await found("state!=JOB_STATE_RUNNING")
    assert "31" == await found("experiment=late")
    assert "3" == await found("training_set=b' OR")
    assert "2" == await found("experiment!=late AND state=QUEUED AND training_set=a")
    first = await stores.jobs.list("p", parse_terms("experiment=late", FILTER_FIELDS), 1, "")
    with pytest.raises(InvalidPageToken):
        await stores.jobs.list("p", (), 1, first.next_page_token)


async def start(supervision: Any, name: JobName, now: Any = AT) -> Attempt:
    """Begin an attempt that the engine accepts."""
    attempt = await supervision.begin_attempt(name, now)
    await supervision.mark_running(name, attempt.number, now)
    return attempt


async def test_a_job_waits_starts_and_reports_progress(stores: Any) -> None:
    job = await create_job(stores)
    supervision = await stores.supervise()
    await supervision.set_waiting(job.name, "waiting for a free slot")
    queued = await stores.jobs.get(job.name)
    assert {"message": "waiting for a free slot"} == queued.progress
    first = await supervision.begin_attempt(job.name, AT)
    assert Attempt(1, "job-1-1", AT) == first
    assert first == await supervision.begin_attempt(job.name, AT + SECOND)
    assert JobState.QUEUED == (await stores.jobs.get(job.name)).state
    await supervision.mark_running(job.name, 1, AT + SECOND)
    await supervision.mark_running(job.name, 1, AT + 9 * SECOND)
    watch = Watch(3, 20.5, AT + 50 * SECOND, "JOB_STALLED")
    await supervision.observe(job.name, 1, watch, EPOCH)
    running = await stores.jobs.get(job.name)
    assert (JobState.RUNNING, AT + SECOND, EPOCH) == (running.state, running.started_at, running.progress)
    assert (replace(first, started_at=AT + SECOND),) == running.attempts
    (active,) = await supervision.active()
    assert (running, running.attempts[0], watch) == (active.job, active.attempt, active.watch)
    points = [point("train_loss", 2, 0.5), point("auc", 1, 0.5), point("system/cpu_percent/rank-0", 99, 0.5)]
    await stores.runs.log(job.run, points, AT + 50 * SECOND)
    assert {"train_loss": 2, "auc": 1} == await supervision.last_steps(job.run)


async def test_a_run_of_a_job_is_not_lost_before_its_job_has_ended(stores: Any) -> None:
    """However long the job waits in the queue, and whatever becomes of heartbeats."""
    # The id of a run need not follow from the id of its job.
    job = Job(JobName("p", "job-1"), TRAIN_SPEC, RunName("p", "run-other"))
    await stores.jobs.create(job, {}, "", b"", AT)
    assert [] == await stores.runs.expire(AT + 9999 * SECOND, AT)
    supervision = await stores.supervise()
    await start(supervision, job.name)
    assert [] == await stores.runs.expire(AT + 9999 * SECOND, AT)
    assert 1 == (await stores.runs.log(job.run, [point("train_loss", 1, 0.5)], AT + 9999 * SECOND)).stored


async def test_a_lost_attempt_is_followed_by_another_one(stores: Any) -> None:
    job = await create_job(stores)
    supervision = await stores.supervise()
    await start(supervision, job.name)
    await stores.runs.log(job.run, [point("train_loss", 1, 0.75)], AT)
    await supervision.observe(job.name, 1, Watch(2, 20.0, AT, ""), EPOCH)
    await supervision.end_attempt(job.name, 1, "JOB_LOST", "gone", AT + SECOND)
    await supervision.observe(job.name, 1, Watch(2, 30.0, AT, "JOB_STALLED"), {"done": 9})
    (active,) = await supervision.active()
    lost = Attempt(1, "job-1-1", AT, AT, AT + SECOND, "JOB_LOST", "gone")
    assert (JobState.QUEUED, (lost,), None) == (active.job.state, active.job.attempts, active.attempt)
    assert {**EPOCH, "message": "attempt 1 was lost: JOB_LOST"} == active.job.progress
    second = await start(supervision, job.name, AT + 2 * SECOND)
    assert (2, "job-1-2") == (second.number, second.engine_id)
    (active,) = await supervision.active()
    assert Watch(checked_at=AT + 2 * SECOND) == active.watch
    run = await stores.runs.get_run(job.run)
    assert RunState.RUNNING == run.state
    await supervision.end(job.name, JobState.SUCCEEDED, Outcome(True), AT + 3 * SECOND)
    ended = await stores.jobs.get(job.name)
    assert [AT + SECOND, AT + 3 * SECOND] == [attempt.ended_at for attempt in ended.attempts]
    assert await supervision.begin_attempt(job.name, AT) is None


async def test_points_of_a_later_attempt_replace_those_of_earlier_ones(stores: Any) -> None:
    """From the step on at which it began, such as that of a checkpoint."""
    job = await create_job(stores)
    supervision = await stores.supervise()
    await start(supervision, job.name)
    first = [point("loss", step, 1.0) for step in (1, 2, 3, 4, 5)] + [point("note", 9, 1.0)]
    await stores.runs.log(job.run, first, AT, "job-1-1")
    await supervision.end_attempt(job.name, 1, "JOB_LOST", "gone", AT)
    await start(supervision, job.name)
    second = [point("loss", 3, 2.0), point("loss", 3, 7.0)]
    assert LoggedPoints(stored=1, ignored=1) == await stores.runs.log(job.run, second, AT, "job-1-2")
    assert {"loss": 3, "note": 9} == await supervision.last_steps(job.run)
    assert {"loss": 2.0, "note": 1.0} == (await stores.runs.get_run(job.run)).metrics
    outcome = Outcome(True, points=(point("loss", 3, 2.0), point("loss", 4, 2.0)))
    await supervision.end(job.name, JobState.SUCCEEDED, outcome, AT)
    points = (await stores.runs.points(job.run, "", 99, "")).items
    expected = [("loss", 1, 1.0), ("loss", 2, 1.0), ("loss", 3, 2.0), ("loss", 4, 2.0), ("note", 9, 1.0)]
    assert expected == [(p.key, p.step, p.value) for p in points]
    assert {"loss": 2.0, "note": 1.0} == (await stores.runs.get_run(job.run)).metrics


async def test_only_the_active_attempt_stores_points_of_its_own_run(stores: Any) -> None:
    job, other = await create_job(stores, "1"), await create_job(stores, "2")
    supervision = await stores.supervise()
    await start(supervision, job.name)
    await start(supervision, other.name)
    points = [point("train_loss", 1, 0.5)]
    assert 1 == (await stores.runs.log(job.run, points, AT, "job-1-1")).stored
    with pytest.raises(ForeignRun):
        await stores.runs.log(other.run, points, AT, "job-1-1")
    await supervision.end_attempt(job.name, 1, "JOB_LOST", "gone", AT)
    await start(supervision, job.name)
    for attempt in ("job-1-1", "job-9-1"):
        with pytest.raises(AttemptEnded):
            await stores.runs.log(job.run, points, AT, attempt)
    assert 1 == (await stores.runs.log(job.run, points, AT, "job-1-2")).stored


async def test_a_supervisor_that_lost_its_lease_changes_nothing(stores: Any) -> None:
    job = await create_job(stores)
    before = await stores.supervise()
    await start(before, job.name)
    expected = await stores.jobs.get(job.name)
    await stores.supervise()
    for write in (
        lambda: before.begin_attempt(job.name, AT),
        lambda: before.mark_running(job.name, 1, AT),
        lambda: before.observe(job.name, 1, Watch(), EPOCH),
        lambda: before.set_waiting(job.name, "x"),
        lambda: before.end_attempt(job.name, 1, "JOB_LOST", "", AT),
        lambda: before.end(job.name, JobState.FAILED, Outcome(False), AT),
    ):
        with pytest.raises(LeaseLost):
            await write()
    assert expected == await stores.jobs.get(job.name)


async def test_a_job_is_cancelled_with_its_pipeline_run(stores: Any) -> None:
    """Also if the process that waits for the job dies: the cancellation is in the transaction of the run."""
    runs = [build.pipeline_run(f"pipe-{i}") for i in range(3)]
    jobs = []
    for number, run in enumerate(runs):
        await stores.pipelines.create(run, "", b"", AT)
        jobs.append(await create_job(stores, str(number), pipeline_run=str(run.name)))
    await stores.pipelines.request_cancel(runs[0].name, "once", b"body")
    await stores.pipelines.finish(runs[1].name, JobState.FAILED, "X", "x", AT)
    found = [await stores.jobs.get(job.name) for job in jobs]
    assert [True, True, False] == [job.cancel_requested for job in found]
    assert [str(run.name) for run in runs] == [job.pipeline_run for job in found]
    for number, run in enumerate(runs[:2]):
        with pytest.raises(CancelledOnRequest):
            await create_job(stores, f"late{number}", pipeline_run=str(run.name))


async def test_a_specification_reads_back_with_every_field(stores: Any) -> None:
    spec = replace(
        TRAIN_SPEC,
        warm_start="projects/p/models/m/versions/1",
        gpus_per_worker=1,
        cpus_per_worker=0.5,
        limits=Limits(3600.5, 60.25, 2),
    )
    spec = replace(spec, hyperparameters=replace(spec.hyperparameters, seed=2**32 - 1, weight_column="w"))
    job = replace(build.job(), spec=spec)
    assert spec == (await stores.jobs.create(job, {}, "", b"", AT)).spec


async def test_a_fraction_of_a_gpu_is_kept(stores: Any) -> None:
    job = replace(build.job(), spec=replace(TRAIN_SPEC, gpus_per_worker=0.25))
    assert 0.25 == (await stores.jobs.create(job, {}, "", b"", AT)).spec.gpus_per_worker


@pytest.mark.parametrize("spec", [build.EVALUATE_SPEC, build.EXPORT_SPEC], ids=lambda spec: spec.KIND)
async def test_jobs_that_read_models_read_back_with_every_field(stores: Any, spec: Any) -> None:
    job = replace(build.job(), spec=spec, kind=spec.KIND)
    details = {"models": {"model": {"tensors": []}}, "params": {"slices": ["origin"]}}
    created = await stores.jobs.create(job, details, "", b"", AT)
    found = await stores.jobs.get(job.name)
    assert (found, found.kind) == (created, spec.KIND)
    (active,) = await (await stores.supervise()).active()
    assert (active.job.spec, active.details) == (spec, details)
    assert (await stores.runs.get_run(job.run)).training_set == spec.training_set


async def test_the_access_of_an_attempt_lasts_until_it_ends(stores: Any) -> None:
    job = await create_job(stores)
    supervision = await stores.supervise()
    first, second = Access(("s3://b/in/",), ("s3://b/1",), "s3://b/a"), Access((), ("s3://b/2",), "s3://b/a")
    await supervision.grant(job.name, 1, first)  # there is no attempt yet
    await supervision.begin_attempt(job.name, AT)
    with pytest.raises(AttemptEnded):
        await stores.access.access_of("job-1-1")
    await supervision.grant(job.name, 1, first)
    assert first == await stores.access.access_of("job-1-1")
    await supervision.end_attempt(job.name, 1, "JOB_LOST", "", AT)
    await supervision.begin_attempt(job.name, AT)
    await supervision.grant(job.name, 1, first)
    await supervision.grant(job.name, 2, second)
    with pytest.raises(AttemptEnded):
        await stores.access.access_of("job-1-1")
    assert second == await stores.access.access_of("job-1-2")
    newer = await stores.supervise()
    with pytest.raises(LeaseLost):
        await supervision.grant(job.name, 2, first)
    await newer.end(job.name, JobState.CANCELLED, Outcome(False), AT)
    for attempt in ("job-1-1", "job-1-2", "job-9-1", ""):
        with pytest.raises(AttemptEnded):
            await stores.access.access_of(attempt)


async def test_a_job_ends_once_together_with_its_run(stores: Any) -> None:
    job = await create_job(stores)
    supervision = await stores.supervise()
    await start(supervision, job.name, AT + SECOND)
    await stores.runs.log(job.run, [point("train_loss", 2, 0.5)], AT + 50 * SECOND, "job-1-1")
    outcome = Outcome(
        True,
        artifacts=(ARTIFACT,),
        points=(point("train_loss", 2, 9.0), point("train_loss", 3, 0.25)),
        params={"lr": "0.1"},
        code_version="c0ffee",
        environment={"torch": "2"},
    )
    end = AT + 60 * SECOND
    ends = await asyncio.gather(
        *(supervision.end(job.name, JobState.SUCCEEDED, outcome, end) for _ in range(6))
    )
    assert 1 == sum(ends)
    assert not await supervision.end(job.name, JobState.FAILED, Outcome(False, "X", "late"), AT)
    run, ended = await stores.runs.get_run(job.run), await stores.jobs.get(job.name)
    assert (JobState.SUCCEEDED, RunState.SUCCEEDED, "") == (ended.state, run.state, ended.error_reason)
    assert end == ended.ended_at == run.ended_at
    assert ({"train_loss": 0.25}, (ARTIFACT,), {"lr": "0.1"}) == (run.metrics, run.artifacts, run.params)
    assert ("c0ffee", {"torch": "2"}) == (run.code_version, run.environment)
    points = (await stores.runs.points(job.run, "", 9, "")).items
    assert [point("train_loss", 2, 0.5), point("train_loss", 3, 0.25)] == list(points)


async def test_a_cancel_request_is_stored_until_the_job_has_ended(stores: Any) -> None:
    job = await create_job(stores)
    requested = await stores.jobs.request_cancel(job.name)
    assert (True, JobState.QUEUED) == (requested.cancel_requested, requested.state)
    assert requested == await stores.jobs.request_cancel(job.name)
    supervision = await stores.supervise()
    await supervision.end(job.name, JobState.CANCELLED, Outcome(False, "CANCELLED", "as requested"), AT)
    with pytest.raises(JobEnded):
        await stores.jobs.request_cancel(job.name)
    with pytest.raises(UnknownJob):
        await stores.jobs.request_cancel(JobName("p", "none"))
    run = await stores.runs.get_run(job.run)
    assert (RunState.CANCELLED, "as requested") == (run.state, run.error_message)


async def test_a_repeated_cancel_request_returns_the_job_as_it_is_now(stores: Any) -> None:
    job, other = await create_job(stores, "1"), await create_job(stores, "2")
    requested = await stores.jobs.request_cancel(job.name, "once", b"body")
    with pytest.raises(RequestIdReused):
        await stores.jobs.request_cancel(other.name, "once", b"another")
    assert requested == await stores.jobs.request_cancel(job.name, "once", b"body")
    supervision = await stores.supervise()
    await supervision.end(job.name, JobState.CANCELLED, Outcome(False, "CANCELLED", "as requested"), AT)
    again = await stores.jobs.request_cancel(job.name, "once", b"body")
    assert JobState.CANCELLED == again.state
