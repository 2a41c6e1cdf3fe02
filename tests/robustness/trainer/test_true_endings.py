"""Jobs on a real Ray cluster record how they really ended, whatever was killed, stopped or away meanwhile."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.ray.jobs import OPEN, ray_jobs
from flywheel_local.postgres import Postgres
from flywheel_local.ray import Ray
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from tests.robustness.trainer.test_pipeline import request as pipeline_request
from tests.support.eventually import eventually
from tests.support.peers.trainer import TRAINING_SET

pytestmark = [pytest.mark.slow, pytest.mark.timeout(590)]
PROJECT = "projects/default"
Start = Callable[[dict[str, str]], Awaitable[Any]]
VICTIMS = {
    "worker": "RayTrainWorker",
    "driver": "-m flywheel_job s3://",
    "launcher": "flywheel_job.launcher s3://",
}


@pytest.fixture
async def trainer(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    start_trainer: Start,
) -> Any:
    """A trainer with an experiment."""
    trainer = await start_trainer(trainer_settings | with_peers | with_ray)
    connection, stub = trainer.stub()
    async with connection:
        await stub.CreateExperiment(pb.CreateExperimentRequest(parent=PROJECT, experiment_id="late"))
    return trainer


async def submit(stub: Any, *, epochs: int, **limits: Any) -> pb.Job:
    train = pb.TrainSpec(
        experiment="late",
        training_set=TRAINING_SET,
        tabular=pb.TabularRecipe(epochs=epochs, hidden_sizes=[8], seed=7, batch_size=256),
        limits=pb.JobLimits(**limits),
    )
    return (await stub.SubmitJob(pb.SubmitJobRequest(parent=PROJECT, job=pb.Job(train=train)))).job


async def learns(stub: Any, job: pb.Job) -> None:
    """Wait until the job has made steps."""

    async def learning() -> bool:
        found = (await stub.GetJob(pb.GetJobRequest(name=job.name))).job
        assert not found.HasField("ended_at"), found
        return bool(found.progress.done >= 2)

    await eventually(learning, within=240, every=0.3)


async def ended(stub: Any, job: pb.Job, within: float = 240) -> pb.Job:
    """The job after its end; calls that fail meanwhile are repeated."""

    async def end() -> pb.Job | None:
        with suppress(grpc.aio.AioRpcError):
            found = (await stub.GetJob(pb.GetJobRequest(name=job.name), timeout=5)).job
            return found if found.HasField("ended_at") else None
        return None

    return await eventually(end, within=within, every=0.3)


def processes(text: str) -> list[psutil.Process]:
    """The processes below this one whose command line has this text, without zombies."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if text in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def of_job(job: pb.Job) -> list[psutil.Process]:
    """Launcher, driver and workers of the job."""
    return processes(job.name.rsplit("/", 1)[1]) + processes("RayTrainWorker")


async def nothing_is_left(job: pb.Job) -> None:
    await eventually(lambda: not of_job(job), within=10, every=0.2)


@pytest.mark.parametrize("victim", sorted(VICTIMS))
async def test_a_job_whose_process_is_killed_is_attempted_again(trainer: Any, victim: str) -> None:
    connection, stub = trainer.stub()
    async with connection:
        job = await submit(stub, epochs=1000)
        await learns(stub, job)
        for process in processes(VICTIMS[victim]):
            process.kill()
        job = await ended(stub, job)
        run = (await stub.GetRun(pb.GetRunRequest(name=job.run))).run
        points = await stub.ListMetricPoints(
            pb.ListMetricPointsRequest(run=job.run, key="train_loss", page_size=2000)
        )
    assert (job_pb2.JOB_STATE_SUCCEEDED, pb.RUN_STATE_SUCCEEDED) == (job.state, run.state), job
    lost = "WORKER_LOST" if victim == "worker" else "JOB_KILLED"
    assert [lost, ""] == [attempt.error_reason for attempt in job.attempts]
    assert list(range(1, 1001)) == list(points.steps)
    await nothing_is_left(job)


@pytest.mark.parametrize("victim", ["worker", "driver"])
async def test_a_stopped_process_stalls_the_job_and_nothing_is_left(trainer: Any, victim: str) -> None:
    connection, stub = trainer.stub()
    async with connection:
        job = await submit(stub, epochs=100_000, stall_timeout=Duration(seconds=30))
        await learns(stub, job)
        for process in processes(VICTIMS[victim]):
            process.send_signal(signal.SIGSTOP)
        job = await ended(stub, job, within=90)
    assert (job_pb2.JOB_STATE_FAILED, "JOB_STALLED") == (job.state, job.error_reason)
    await nothing_is_left(job)


async def test_a_cancelled_job_leaves_no_process_after_10_seconds(trainer: Any) -> None:
    connection, stub = trainer.stub()
    async with connection:
        job = await submit(stub, epochs=100_000)
        await learns(stub, job)
        begun = time.monotonic()
        await stub.CancelJob(pb.CancelJobRequest(name=job.name))
        job = await ended(stub, job, within=30)
        await nothing_is_left(job)
    assert time.monotonic() - begun < 10
    assert job_pb2.JOB_STATE_CANCELLED == job.state


async def test_a_job_survives_the_loss_of_the_ray_head(trainer: Any, ray: Ray) -> None:
    connection, stub = trainer.stub()
    async with connection:
        job = await submit(stub, epochs=500)
        await learns(stub, job)
        ray.kill()
        await asyncio.to_thread(ray.start_again)
        job = await ended(stub, job)
    assert job_pb2.JOB_STATE_SUCCEEDED == job.state, job
    assert ["JOB_LOST", ""] == [attempt.error_reason for attempt in job.attempts]
    await nothing_is_left(job)


async def test_a_job_survives_an_outage_of_postgres_longer_than_its_lease(
    trainer: Any, postgres: Postgres
) -> None:
    connection, stub = trainer.stub()
    async with connection:
        job = await submit(stub, epochs=300)
        await learns(stub, job)
        postgres.kill()
        await asyncio.sleep(75)
        await asyncio.to_thread(postgres.start_again)
        recovered = time.monotonic()
        job = await ended(stub, job, within=120)
        run = (await stub.GetRun(pb.GetRunRequest(name=job.run))).run
    assert time.monotonic() - recovered < 60
    assert (job_pb2.JOB_STATE_SUCCEEDED, pb.RUN_STATE_SUCCEEDED) == (job.state, run.state), job
    assert 1 == len(job.attempts)


async def test_a_pipeline_that_is_cancelled_before_a_crash_leaves_no_job_on_ray(
    trainer: Any, ray: Ray
) -> None:
    connection, stub = trainer.stub()
    async with connection:
        run = (await stub.StartPipelineRun(pipeline_request("once", epochs=100_000))).pipeline_run

        async def running() -> pb.Job | None:
            jobs = (await stub.ListJobs(pb.ListJobsRequest(parent=PROJECT, filter="state=RUNNING"))).jobs
            return jobs[0] if jobs else None

        job = await eventually(running, within=60, every=0.2)
        await stub.CancelPipelineRun(pb.CancelPipelineRunRequest(name=run.name))
        trainer.kill()
    await trainer.start()
    connection, stub = trainer.stub()
    async with connection:
        job = await ended(stub, job, within=60)
    assert (job_pb2.JOB_STATE_CANCELLED, run.name) == (job.state, job.pipeline_run)
    async with ray_jobs(ray.jobs_url, ray.token) as jobs:
        found = await jobs.job(job.attempts[-1].engine_id)
        assert found is None or found.state not in OPEN


async def test_a_gpu_that_the_cluster_lacks_is_named_at_once(trainer: Any) -> None:
    connection, stub = trainer.stub()
    async with connection:
        train = pb.TrainSpec(experiment="late", training_set=TRAINING_SET, gpus_per_worker=1)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.SubmitJob(pb.SubmitJobRequest(parent=PROJECT, job=pb.Job(train=train)))
    found = from_rpc_error(error.value)
    assert ("FAILED_PRECONDITION", "INFEASIBLE_RESOURCES") == (found.code.name, found.reason)
    assert "requests 1 GPUs, and the cluster has 0" in found.message
