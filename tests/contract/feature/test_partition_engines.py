"""Contract tests for engines of joins in partitions: in this process, in a local process and on Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flywheel_common.errors import FailedPrecondition, Unavailable
from flywheel_common.ray.errors import EngineUnavailable
from flywheel_common.ray.jobs import ray_jobs
from flywheel_feature.fakes.partitions import MemoryPartitions
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.jobs.progress import JobProgress
from flywheel_feature.jobs.runner import JobCancelled
from flywheel_feature.offline.manifest import BuiltFiles
from flywheel_feature.offline.model import Compute, JoinMode, TrainingSet
from flywheel_feature.offline.partitioned.run import error_from_json
from flywheel_feature.offline.partitioned.spec import ERROR, RESULT, ROW, SPEC, Kind, Task
from flywheel_feature.offline.ports import PartitionEngine, Workspace
from flywheel_feature.offline.unfinished import work_name
from flywheel_feature.tables.content_hash import content_hash
from flywheel_local.ray import Ray
from flywheel_local.s3 import S3
from tests.support.builders.jobs import RecordingJob
from tests.support.builders.partitioned_joins import (
    JoinInputs,
    S3JoinInputs,
    drives_join,
    request,
    without_identity,
)
from tests.support.eventually import eventually
from tests.support.servers.join_signing import join_signing

pytestmark = pytest.mark.timeout(120)

WEATHER = ["origin", "hour", "written", "wind", "tags"]
WINDY = [("A01", "windy")], {"origin": pl.String, "wind": pl.String}
"""A row and its types, which are not those of the source."""
STAGES = ("reading the spine", "ordering", "distributing", "joining", "writing parts")
JOINED = Task(Kind.JOIN, 0, view=0).output


class FailingTables(MemoryTables):
    """Tables whose next read fails with an unexpected error, once `fail_next_read` is set."""

    fail_next_read = False

    def read_piece(self, *arguments: Any, **named: Any) -> pl.DataFrame:
        fails, self.fail_next_read = self.fail_next_read, False
        if fails:
            raise RuntimeError("killed")
        return super().read_piece(*arguments, **named)


class PlanOnly:
    """An engine that runs nothing, so that the spec stays in the workspace."""

    def __init__(self, engine: PartitionEngine) -> None:
        self.name, self.workspace, self.discard = engine.name, engine.workspace, engine.discard

    async def run(self, name: str, job: JobProgress) -> None:
        raise EngineUnavailable("This engine runs nothing.")


@dataclass
class Joins:
    """An engine, and the inputs of its joins."""

    world: JoinInputs
    engine: PartitionEngine
    kill: Callable[[Workspace], Awaitable[None]]
    """Kills the process that runs the join of a workspace, as soon as it has written a file."""

    async def build(
        self,
        training_set_id: str,
        job: RecordingJob | None = None,
        *,
        by: PartitionEngine | None = None,
        **changes: Any,
    ) -> TrainingSet:
        compute = Compute.RAY if self.engine.name == "ray" else Compute.BY_SIZE
        wanted = request(training_set_id, compute=compute, **changes)
        return await self.world.builder(by or self.engine).build(
            wanted, job or RecordingJob(), training_set_id
        )

    def workspace(self, training_set_id: str) -> Workspace:
        return self.engine.workspace(work_name("p", training_set_id))

    async def planned(self, training_set_id: str) -> Workspace:
        """A workspace with a spec that is not running."""
        with pytest.raises(Unavailable):
            await self.build(training_set_id, by=PlanOnly(self.engine))
        return self.workspace(training_set_id)

    async def run(self, training_set_id: str) -> None:
        await self.engine.run(work_name("p", training_set_id), RecordingJob())

    def winds(self, workspace: Workspace) -> list[float | None]:
        result = workspace.read_bytes(RESULT)
        assert result is not None
        uri = BuiltFiles.from_json(result).uri
        return self.world.tables.read(uri, ["weather__wind"]).get_column("weather__wind").to_list()


@pytest.fixture(params=["memory", "local", "ray"])
def joins(request: pytest.FixtureRequest) -> Joins:
    if request.param == "memory":
        return in_memory()
    found: Joins = request.getfixturevalue({"local": "in_process", "ray": "on_ray"}[request.param])
    return found


def in_memory() -> Joins:
    tables = FailingTables()

    async def kill(_: Workspace) -> None:
        tables.fail_next_read = True

    return Joins(JoinInputs(tables, "memory"), MemoryPartitions(tables), kill)


def kill_driver(world: S3JoinInputs) -> Callable[[Workspace], Awaitable[None]]:
    async def kill(workspace: Workspace) -> None:
        async def has_files() -> list[str]:
            return await asyncio.to_thread(workspace.keys, "spine/")

        await eventually(has_files, within=60, every=0.005)
        (driver,) = world.processes(drives_join)
        driver.kill()

    return kill


@pytest.fixture
def on_s3(s3: S3, bucket: str, tmp_path: Path) -> S3JoinInputs:
    return S3JoinInputs(s3, bucket, tmp_path / "spill")


@pytest.fixture
def in_process(on_s3: S3JoinInputs) -> Joins:
    return Joins(on_s3, on_s3.process, kill_driver(on_s3))


@pytest.fixture
async def on_ray(on_s3: S3JoinInputs, ray: Ray) -> AsyncIterator[Joins]:
    async with ray_jobs(ray.jobs_url, ray.token) as jobs, join_signing(on_s3.s3) as signing:
        yield Joins(on_s3, on_s3.on_ray(ray, jobs, signing), kill_driver(on_s3))


@pytest.mark.parametrize("mode", list(JoinMode))
async def test_set_built_in_partitions_equals_set_built_in_memory(joins: Joins, mode: JoinMode) -> None:
    """Progress never decreases, and no working files are left."""
    world, job = joins.world, RecordingJob()
    in_memory = await world.builder().build(request("memory", mode=mode), RecordingJob())
    built = await joins.build("parts", job, mode=mode)
    assert without_identity(in_memory) == without_identity(built)
    assert 2500 < built.row_count
    columns = [f.name for f in built.schema]
    assert content_hash(world.read(built.uri, columns)) == built.content_hash
    assert world.read(built.uri, columns).equals(world.read(in_memory.uri, columns))
    assert sorted(job.progressed) == job.progressed
    assert {100} == {total for _, total in job.progressed}
    assert [] == joins.workspace("parts").keys()


async def test_error_of_a_task_is_the_error_of_the_build(joins: Joins) -> None:
    joins.world.write("weather/year=2013/part-9.parquet", *WINDY)
    with pytest.raises(FailedPrecondition, match="wind") as mismatch:
        await joins.build("parts")
    assert "SOURCE_MISMATCH" == mismatch.value.reason


async def test_finished_tasks_and_joins_are_not_repeated(joins: Joins) -> None:
    first = await joins.planned("first")
    await joins.run("first")
    bucket = first.read(JOINED, [ROW, "wind", "tags"])
    assert 0 < bucket.height
    again = await joins.planned("again")
    again.write(JOINED, bucket.with_columns(wind=pl.lit(7.0)), [bucket.height])
    await joins.run("again")
    expected = joins.winds(first)
    for row in bucket.get_column(ROW):
        expected[row] = 7.0
    assert expected == joins.winds(again)
    done = await joins.planned("done")
    done.write_bytes(RESULT, b"a result")
    await joins.run("done")
    assert b"a result" == done.read_bytes(RESULT)
    assert [] == done.keys("spine/")


async def test_killed_join_is_reported_and_resumes_when_started_again(joins: Joins) -> None:
    workspace = await joins.planned("parts")
    running = asyncio.create_task(joins.run("parts"))
    await joins.kill(workspace)
    with pytest.raises(Unavailable) as death:
        await running
    assert "ENGINE_UNAVAILABLE" == death.value.reason
    assert workspace.read_bytes(RESULT) is None
    in_memory = await joins.world.builder().build(request("memory"), RecordingJob())
    assert without_identity(in_memory) == without_identity(await joins.build("parts"))


async def test_error_of_one_attempt_does_not_end_the_next(joins: Joins) -> None:
    joins.world.write("weather/year=2013/part-9.parquet", *WINDY)
    workspace = await joins.planned("parts")
    await joins.run("parts")
    assert workspace.read_bytes(RESULT) is None
    error = error_from_json(workspace.read_json(ERROR))
    assert (FailedPrecondition, "SOURCE_MISMATCH") == (type(error), error.reason)
    folder = f"s3://{joins.world.bucket}/weather/year=2013"
    correct = joins.world.read(f"{folder}/part-0.parquet", WEATHER)
    joins.world.tables.write(f"{folder}/part-9.parquet", correct.head(1))
    await joins.run("parts")
    assert 2500 < len(joins.winds(workspace))


async def test_join_without_a_spec_ends_with_an_error(joins: Joins) -> None:
    await joins.run("nothing")
    error = error_from_json(joins.workspace("nothing").read_json(ERROR))
    assert (Unavailable, "ENGINE_UNAVAILABLE") == (type(error), error.reason)


async def test_cancelled_join_leaves_no_files_and_discard_is_idempotent(joins: Joins) -> None:
    with pytest.raises(JobCancelled):
        await joins.build("parts", RecordingJob(cancel_at=STAGES))
    name = work_name("p", "parts")
    assert [] == joins.workspace("parts").keys()
    await joins.engine.discard(name)
    await joins.engine.discard(work_name("p", "never started"))
    assert [] == joins.workspace("parts").keys()
    assert joins.workspace("parts").read_bytes(SPEC) is None
    assert None is await joins.world.training_sets.get("p", "parts")
