"""Jobs on a real Ray cluster record how they really ended, whatever was killed, stopped or away meanwhile."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration

import flywheel as fw
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
CODE = """
import time


def wait(ctx):
    time.sleep(ctx.params["seconds"])


def shout(ctx):
    line = ("a\\0b" * 341)[:1023]
    for _ in range(ctx.params["mebibytes"]):
        print(chr(10).join([line] * 1024))
    raise RuntimeError("the end of it" + chr(0))
"""
Start = Callable[[dict[str, str]], Awaitable[Any]]
VICTIMS = {
    "worker": "RayTrainWorker",
    "driver": "-m flywheel_job s3://",
    "launcher": "flywheel_job.launcher s3://",
}


@pytest.fixture
def settings(
    trainer_settings: dict[str, str], with_peers: dict[str, str], with_ray: dict[str, str]
) -> dict[str, str]:
    """Settings of a trainer with peers and Ray."""
    return trainer_settings | with_peers | with_ray


@pytest.fixture
async def trainer(settings: dict[str, str], start_trainer: Start) -> Any:
    return await started(start_trainer, settings)


async def started(start_trainer: Start, settings: dict[str, str]) -> Any:
    """A trainer with an experiment."""
    trainer = await start_trainer(settings)
    async with trainer.stub() as stub:
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


async def submit_code(trainer: Any, folder: Path, function: str, **params: Any) -> pb.Job:
    """A job that runs a function of CODE."""
    (folder / "work.py").write_text(CODE)
    job = fw.TrainJob(function=f"work.py:{function}", source=folder, experiment="late", params=params)
    async with fw.Client(trainer=trainer.address) as client:
        return await client.submit_job(job)


async def runs(stub: Any, job: pb.Job) -> None:
    """Wait until the engine runs the job."""

    async def running() -> bool:
        found = (await stub.GetJob(pb.GetJobRequest(name=job.name))).job
        return bool(found.state == job_pb2.JOB_STATE_RUNNING)

    await eventually(running, within=120, every=0.3)


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
    async with trainer.stub() as stub:
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


# The workers make their steps without the driver, which is missed at their end.
@pytest.mark.parametrize(("victim", "epochs"), [("worker", 100_000), ("driver", 300)])
async def test_a_stopped_process_stalls_the_job_and_nothing_is_left(
    trainer: Any, victim: str, epochs: int
) -> None:
    async with trainer.stub() as stub:
        job = await submit(stub, epochs=epochs, stall_timeout=Duration(seconds=30))
        await learns(stub, job)
        for process in processes(VICTIMS[victim]):
            process.send_signal(signal.SIGSTOP)
        job = await ended(stub, job, within=90)
    assert (job_pb2.JOB_STATE_FAILED, "JOB_STALLED") == (job.state, job.error_reason)
    await nothing_is_left(job)


async def test_a_cancelled_job_leaves_no_process_after_10_seconds(trainer: Any) -> None:
    async with trainer.stub() as stub:
        job = await submit(stub, epochs=100_000)
        await learns(stub, job)
        begun = time.monotonic()
        await stub.CancelJob(pb.CancelJobRequest(name=job.name))
        job = await ended(stub, job, within=30)
        await nothing_is_left(job)
    assert time.monotonic() - begun < 10
    assert job_pb2.JOB_STATE_CANCELLED == job.state


async def test_a_job_survives_the_loss_of_the_ray_head(trainer: Any, ray: Ray) -> None:
    async with trainer.stub() as stub:
        job = await submit(stub, epochs=500)
        await learns(stub, job)
        ray.kill()
        await asyncio.to_thread(ray.start_again)
        job = await ended(stub, job)
    assert job_pb2.JOB_STATE_SUCCEEDED == job.state, job
    assert ["JOB_LOST", ""] == [attempt.error_reason for attempt in job.attempts]
    await nothing_is_left(job)


@pytest.mark.parametrize(
    ("stopped", "seconds"), [("head", 30), pytest.param("trainer", 75, marks=pytest.mark.soak)]
)
async def test_a_job_goes_on_while_what_runs_it_is_stopped(
    trainer: Any, ray: Ray, stopped: str, seconds: float
) -> None:
    async with trainer.stub() as stub:
        job = await submit(stub, epochs=300)
        await learns(stub, job)
        victims = head(ray) if stopped == "head" else [psutil.Process(trainer.process.pid)]
        for process in victims:
            process.suspend()
        await asyncio.sleep(seconds)
        for process in victims:
            process.resume()
        job = await ended(stub, job, within=60)
    assert job_pb2.JOB_STATE_SUCCEEDED == job.state, job
    assert [""] == [attempt.error_reason for attempt in job.attempts]
    await nothing_is_left(job)


def head(ray: Ray) -> list[psutil.Process]:
    """The processes of the Ray head, without those of jobs."""
    names = ("gcs_server", "raylet", "dashboard", "_private/monitor.py", "log_monitor.py")
    return [process for name in names for process in processes(name)]


@pytest.mark.soak
async def test_jobs_survive_a_long_queue_and_an_outage_of_postgres_longer_than_their_leases(
    settings: dict[str, str], start_trainer: Start, postgres: Postgres, tmp_path: Path
) -> None:
    trainer = await started(start_trainer, settings | {"FLYWHEEL_TRAINER_MAX_RUNNING_JOBS": "1"})
    async with trainer.stub() as stub:
        waiting = await submit_code(trainer, tmp_path, "wait", seconds=90)
        await runs(stub, waiting)
        queued = await submit(stub, epochs=50)
        begun = time.monotonic()
        await asyncio.sleep(60)
        postgres.kill()
        await asyncio.sleep(120)
        await asyncio.to_thread(postgres.start_again)
        recovered = time.monotonic()
        for job in (waiting, queued):
            found = await ended(stub, job, within=120)
            run = (await stub.GetRun(pb.GetRunRequest(name=job.run))).run
            assert (job_pb2.JOB_STATE_SUCCEEDED, pb.RUN_STATE_SUCCEEDED) == (found.state, run.state), found
            assert 1 == len(found.attempts)
        assert recovered - begun >= 180 and time.monotonic() - recovered < 60
        await nothing_is_left(queued)


async def test_a_job_that_prints_a_gigabyte_with_nul_characters(trainer: Any, tmp_path: Path) -> None:
    process = psutil.Process(trainer.process.pid)
    before = process.memory_info().rss
    async with trainer.stub() as stub:
        job = await submit_code(trainer, tmp_path, "shout", mebibytes=1024)
        received = 0
        watch = stub.WatchJob(pb.WatchJobRequest(name=job.name, log_stream="rank-0"))
        async for update in watch:
            received += len(update.log)
        job = await ended(stub, job)
    assert (job_pb2.JOB_STATE_FAILED, "TRAINING_FAILED") == (job.state, job.error_reason), job
    assert "the end of it" in job.error_message
    assert "\0" not in job.error_message
    assert peak_bytes(trainer.process.pid) - before < 200 << 20
    assert 0 < received < 1 << 30
    await nothing_is_left(job)


def peak_bytes(pid: int) -> int:
    """The largest resident memory that the process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


async def test_a_pipeline_that_is_cancelled_before_a_crash_leaves_no_job_on_ray(
    trainer: Any, ray: Ray
) -> None:
    async with trainer.stub() as stub:
        run = (await stub.StartPipelineRun(pipeline_request("once", epochs=100_000))).pipeline_run

        async def running() -> pb.Job | None:
            jobs = (await stub.ListJobs(pb.ListJobsRequest(parent=PROJECT, filter="state=RUNNING"))).jobs
            return jobs[0] if jobs else None

        job = await eventually(running, within=60, every=0.2)
        await stub.CancelPipelineRun(pb.CancelPipelineRunRequest(name=run.name))
        trainer.kill()
    await trainer.start()
    async with trainer.stub() as stub:
        job = await ended(stub, job, within=60)
    assert (job_pb2.JOB_STATE_CANCELLED, run.name) == (job.state, job.pipeline_run)
    async with ray_jobs(ray.jobs_url, ray.token) as jobs:
        found = await jobs.job(job.attempts[-1].engine_id)
        assert found is None or found.state not in OPEN


async def test_a_gpu_that_the_cluster_lacks_is_named_at_once(trainer: Any) -> None:
    async with trainer.stub() as stub:
        train = pb.TrainSpec(experiment="late", training_set=TRAINING_SET, gpus_per_worker=1)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.SubmitJob(pb.SubmitJobRequest(parent=PROJECT, job=pb.Job(train=train)))
    found = from_rpc_error(error.value)
    assert ("FAILED_PRECONDITION", "INFEASIBLE_RESOURCES") == (found.code.name, found.reason)
    assert "requests 1 GPUs, and the cluster has 0" in found.message
