"""Joins in partitions as jobs on a Ray cluster: cancelled, handed over, and with killed processes."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs as fs
import pytest

import flywheel_feature
from flywheel_common.clock import ManualClock, SystemClock
from flywheel_common.granted.errors import AttemptEnded
from flywheel_common.ids import SystemIds
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import Pool, create_pool
from flywheel_common.ray.jobs import OPEN, RayJobs, ray_jobs
from flywheel_feature.api.convert_training_sets import TRAINING_SET_JOB
from flywheel_feature.jobs.model import Job, JobState
from flywheel_feature.jobs.runner import JobContext, JobRunner
from flywheel_feature.offline.leftovers import Leftovers
from flywheel_feature.offline.model import Compute
from flywheel_feature.offline.partitioned.build import JoinLimits
from flywheel_feature.store.engines.ray import PartitionRay
from flywheel_feature.store.postgres.jobs import PostgresJobs
from flywheel_feature.store.postgres.join_access import PostgresJoinAccess
from flywheel_local.ray import Ray
from flywheel_local.s3 import S3
from tests.support.builders.jobs import RecordingJob
from tests.support.builders.partitioned_joins import S3JoinInputs, drives_join, request, without_identity
from tests.support.eventually import eventually
from tests.support.servers.join_signing import join_signing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MANY_TASKS = JoinLimits(memory_bytes=500_000, ray_rows=10**12)
"""Limits with which a join takes some seconds, so that tests can interrupt it."""


@pytest.fixture
def inputs(s3: S3, tmp_path: Path) -> S3JoinInputs:
    return S3JoinInputs(s3, f"test-{uuid.uuid4().hex[:16]}", tmp_path / "spill")


@pytest.fixture
async def cluster(ray: Ray) -> AsyncIterator[RayJobs]:
    async with ray_jobs(ray.jobs_url, ray.token) as jobs:
        yield jobs


@pytest.fixture
async def on_ray(inputs: S3JoinInputs, ray: Ray, cluster: RayJobs, pool: Pool) -> AsyncIterator[PartitionRay]:
    async with join_signing(inputs.s3, PostgresJoinAccess(pool)) as signing:
        yield inputs.on_ray(ray, cluster, signing)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    async with create_pool(database) as pool:
        await migrate(pool, Path(flywheel_feature.__file__).parent / "migrations")
        yield pool


class Service:
    """The job runner of the feature service; `running` stands for one process."""

    def __init__(self, inputs: S3JoinInputs, on_ray: PartitionRay, pool: Pool) -> None:
        self.inputs, self.on_ray = inputs, on_ray
        self.store = PostgresJobs(pool)
        self.runner = self._runner()

    def _runner(self) -> JobRunner:
        async def handle(job: JobContext) -> dict[str, object]:
            builder = self.inputs.builder(self.inputs.process, self.on_ray, limits=MANY_TASKS)
            built = await builder.build(request(job.request.decode(), compute=Compute.RAY), job, job.job.id)
            return {"training_set": built.name}

        runner = JobRunner(self.store, SystemIds(), SystemClock().now)
        runner.register(TRAINING_SET_JOB, handle)
        return runner

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A process that runs jobs; leaving stops it, and it returns its jobs to the queue."""
        process = asyncio.create_task(self._runner().run())
        try:
            yield
        finally:
            process.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await process

    async def submit(self, training_set_id: str) -> Job:
        name = f"projects/p/trainingSets/{training_set_id}"
        return await self.runner.submit(
            TRAINING_SET_JOB, training_set_id.encode(), project="p", training_set=name
        )

    async def ended(self, job: Job) -> Job:
        async def look() -> Job | None:
            now = await self.runner.get("p", job.id)
            return now if now.state.ended else None

        found = await eventually(look, within=120, every=0.1)
        assert found is not None
        return found

    def work(self, job: Job) -> str:
        return f"feature-p-{job.id}"

    def files(self, folder: str = "") -> dict[str, int]:
        """Key → modification time of the files below a folder of the bucket."""
        root = f"{self.inputs.bucket}/{folder}"
        found = self.inputs.files.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
        return {i.path.removeprefix(f"{root}/"): i.mtime_ns for i in found if i.type == fs.FileType.File}

    async def joined(self, job: Job) -> dict[str, int]:
        """The files of finished joins, once there are some."""

        async def look() -> dict[str, int]:
            written = await asyncio.to_thread(self.files, f"joins/{self.work(job)}")
            assert not (await self.runner.get("p", job.id)).state.ended
            return {key: at for key, at in written.items() if "/joined-" in key}

        return await eventually(look, within=60, every=0.02)

    async def tries(self, job: Job) -> list[str]:
        """The state of each Ray job for the work."""
        states: list[str] = []
        while (found := await self.on_ray._ray.job(f"{self.work(job)}-{len(states)}")) is not None:
            states.append(found.state)
        return states


@pytest.fixture
def service(inputs: S3JoinInputs, on_ray: PartitionRay, pool: Pool) -> Service:
    return Service(inputs, on_ray, pool)


def is_at_work(process: psutil.Process) -> bool:
    return process.cmdline()[0] == "ray::run_task"


async def joined_in_memory(inputs: S3JoinInputs) -> Any:
    return without_identity(await inputs.builder().build(request("in-memory"), RecordingJob()))


async def nothing_is_left(service: Service, job: Job) -> None:
    """Wait until all processes of the work have ended; there is no file before and after."""
    assert {} == service.files("joins")

    async def gone() -> bool:
        return not list(service.inputs.processes(lambda _: True))

    await eventually(gone, within=60, every=0.5)
    assert {} == service.files("joins")
    assert {} == service.files("training-sets")
    assert None is await service.inputs.training_sets.get("p", job.training_set.rpartition("/")[2])


async def test_a_cancelled_job_stops_on_ray_and_leaves_no_file(service: Service) -> None:
    async with service.running():
        job = await service.submit("stopped")
        await service.joined(job)
        await service.runner.cancel("p", job.id)
        assert JobState.CANCELLED == (await service.ended(job)).state
        assert ["STOPPED"] == await service.tries(job)
    await nothing_is_left(service, job)


async def test_a_requeued_job_continues_on_ray_and_the_next_process_uses_it(
    inputs: S3JoinInputs, service: Service
) -> None:
    async with service.running():
        job = await service.submit("resumed")
        await service.joined(job)
    assert JobState.QUEUED == (await service.runner.get("p", job.id)).state
    async with service.running():
        assert JobState.SUCCEEDED == (await service.ended(job)).state
    assert ["SUCCEEDED"] == await service.tries(job)
    assert await joined_in_memory(inputs) == without_identity(await inputs.training_sets.get("p", "resumed"))
    assert {} == service.files("joins")


async def test_a_killed_driver_is_replaced_without_repeating_tasks(
    inputs: S3JoinInputs, service: Service
) -> None:
    async with service.running():
        job = await service.submit("killed")
        before = await service.joined(job)
        (driver,) = inputs.processes(drives_join)
        driver.kill()

        async def second_try() -> bool:
            return len(await service.tries(job)) == 2

        await eventually(second_try, within=60, every=0.1)
        folder = f"joins/{service.work(job)}"
        seen: dict[str, int] = {}
        while not (await service.runner.get("p", job.id)).state.ended:
            seen |= await asyncio.to_thread(service.files, folder)
            await asyncio.sleep(0.05)
        ended = await service.ended(job)
        assert (JobState.SUCCEEDED, 2) == (ended.state, ended.attempt)
    assert ["FAILED", "SUCCEEDED"] == await service.tries(job)
    assert before == {key: seen[key] for key in before}, "finished tasks ran again"
    assert await joined_in_memory(inputs) == without_identity(await inputs.training_sets.get("p", "killed"))
    assert {} == service.files("joins")


async def test_a_task_of_a_killed_worker_is_retried_within_the_same_job(
    inputs: S3JoinInputs, service: Service
) -> None:
    async with service.running():
        job = await service.submit("killed")

        async def at_work() -> list[psutil.Process]:
            return list(inputs.processes(is_at_work))

        for worker in await eventually(at_work, within=60, every=0.01):
            worker.kill()
        ended = await service.ended(job)
        assert (JobState.SUCCEEDED, 1) == (ended.state, ended.attempt)
    assert ["SUCCEEDED"] == await service.tries(job)
    assert await joined_in_memory(inputs) == without_identity(await inputs.training_sets.get("p", "killed"))


async def test_ray_work_of_a_job_cancelled_in_the_queue_is_removed(
    inputs: S3JoinInputs, service: Service
) -> None:
    async with service.running():
        job = await service.submit("abandoned")
        await service.joined(job)
    assert set(await service.tries(job)) <= OPEN
    clock = ManualClock(SystemClock().now())
    engines = [inputs.process, service.on_ray]
    leftovers = Leftovers(
        service.store, TRAINING_SET_JOB, inputs.training_sets, inputs.tables, engines, clock
    )
    await leftovers.sweep()
    assert set(await service.tries(job)) <= OPEN, "a queued job is not a leftover"
    await service.runner.cancel("p", job.id)
    clock.advance(120)
    await leftovers.sweep()
    assert ["STOPPED"] == await service.tries(job)
    await nothing_is_left(service, job)


LOOK_AROUND = """
import json, os, pathlib, urllib.request

seen = [json.dumps(dict(os.environ))]
request = urllib.request.Request(os.environ["JOBS"] + "/api/jobs/")
if os.environ.get("RAY_AUTH_TOKEN"):
    request.add_header("Authorization", "Bearer " + os.environ["RAY_AUTH_TOKEN"])
seen.append(urllib.request.urlopen(request).read().decode())
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        command = (process / "cmdline").read_bytes()
        if b"ray" in command or b"join_worker" in command:
            for part in (command, (process / "environ").read_bytes()):
                seen.append(part.decode(errors="replace"))
    except OSError:
        pass
pathlib.Path(os.environ["OUTPUT"]).write_text("\\n".join(seen))
"""


async def test_a_job_beside_a_join_sees_no_key_of_the_object_store(
    inputs: S3JoinInputs, service: Service, cluster: RayJobs, ray: Ray, tmp_path: Path
) -> None:
    """It looks where code of users can: its environment, Ray's API, the processes of the cluster."""
    script, output = tmp_path / "look.py", tmp_path / "seen.txt"
    script.write_text(LOOK_AROUND)
    async with service.running():
        job = await service.submit("beside")
        await service.joined(job)
        environment = {**ray.environment, "JOBS": ray.jobs_url, "OUTPUT": str(output)}
        looking = f"look-{uuid.uuid4().hex}"
        await cluster.submit(looking, shlex.join([sys.executable, str(script)]), environment)

        async def looked() -> bool:
            found = await cluster.job(looking)
            assert found is not None
            assert found.state != "FAILED", await cluster.log(looking)
            return found.state == "SUCCEEDED"

        await eventually(looked, within=60, every=0.1)
        assert JobState.SUCCEEDED == (await service.ended(job)).state
    seen = output.read_text()
    assert service.work(job) in seen, "the job did not see the join"
    assert inputs.s3.secret_key not in seen
    assert "S3_ACCESS_KEY" not in seen
    # What it can see is the token of the join, which has ended with it.
    attempt = f"{service.work(job)}-0"
    assert f"fwattempt.{attempt}." in seen
    with pytest.raises(AttemptEnded):
        await service.on_ray._access.access_of(attempt)
