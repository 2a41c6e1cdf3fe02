"""One law for joins in partitions: in this process, in one beside it, on a Ray cluster, and by BuildTrainingSet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import flywheel as fw
from flywheel_common.errors import FailedPrecondition, Unavailable
from flywheel_common.ray.jobs import ray_jobs
from flywheel_feature.api import convert_definitions
from flywheel_feature.fakes.partitions import MemoryPartitions
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.ingest.archive import NewSegment
from flywheel_feature.jobs.progress import JobProgress
from flywheel_feature.jobs.runner import JobCancelled
from flywheel_feature.offline.manifest import BuiltFiles
from flywheel_feature.offline.model import Compute, JoinMode, SourceSpine, TrainingSet
from flywheel_feature.offline.partitioned.run import restored
from flywheel_feature.offline.partitioned.spec import ERROR, RESULT, ROW, SPEC, Kind, Task
from flywheel_feature.offline.ports import PartitionEngine, Workspace
from flywheel_feature.offline.unfinished import work_name
from flywheel_feature.store.postgres.archive import PostgresArchive
from flywheel_feature.tables.content_hash import content_hash
from flywheel_local.ray import Ray
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import definitions_pb2
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import training_set_pb2 as ts
from tests.contract.feature.grpc_training_sets import GrpcTrainingSets
from tests.contract.feature.over_grpc import no_rpc
from tests.support.builders.partitioned_joins import S3World, Watched, World, carries_out, request, told
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(120)

WEATHER = ["origin", "hour", "written", "wind", "tags"]
WINDY = [("A01", "windy")], {"origin": pl.String, "wind": pl.String}
"""A row, and types that are not those of the source."""
STAGES = ("reading the spine", "ordering", "spreading", "joining", "writing parts")
JOINED = Task(Kind.JOIN, 0, view=0).output
in_workspaces = no_rpc("the working files of a join", "local", "ray")


class Mortal(MemoryTables):
    """Whoever reads next dies of it, once `deadly` was set."""

    deadly = False

    def read_piece(self, *arguments: Any, **named: Any) -> pl.DataFrame:
        deadly, self.deadly = self.deadly, False
        if deadly:
            raise RuntimeError("killed")
        return super().read_piece(*arguments, **named)


class Planned:
    """An engine that carries nothing out: the spec stays where it was put."""

    def __init__(self, engine: PartitionEngine) -> None:
        self.name, self.workspace, self.discard = engine.name, engine.workspace, engine.discard

    async def run(self, name: str, job: JobProgress) -> None:
        raise Unavailable("Nobody is at work.", reason="ENGINE_UNAVAILABLE")


@dataclass
class Joins:
    """An engine, and what it joins."""

    world: World
    engine: PartitionEngine
    kill: Callable[[Workspace], Awaitable[None]]
    """Ends the process that drives the work in a workspace, once it is at work."""

    async def build(
        self, training_set_id: str, job: Watched | None = None, *, by: PartitionEngine | None = None, **changes: Any
    ) -> TrainingSet:  # fmt: skip
        compute = Compute.RAY if self.engine.name == "ray" else Compute.BY_SIZE
        wanted = request(training_set_id, compute=compute, **changes)
        return await self.world.builder(by or self.engine).build(wanted, job or Watched(), training_set_id)

    def workspace(self, training_set_id: str) -> Workspace:
        return self.engine.workspace(work_name("p", training_set_id))

    async def planned(self, training_set_id: str) -> Workspace:
        """A workspace with a spec that nobody carries out."""
        with pytest.raises(Unavailable):
            await self.build(training_set_id, by=Planned(self.engine))
        return self.workspace(training_set_id)

    async def run(self, training_set_id: str) -> None:
        await self.engine.run(work_name("p", training_set_id), Watched())

    def winds(self, workspace: Workspace) -> list[float | None]:
        result = workspace.read_bytes(RESULT)
        assert result is not None
        uri = BuiltFiles.from_json(result).uri
        return self.world.tables.read(uri, ["weather__wind"]).get_column("weather__wind").to_list()


class Served:
    """The service, whose engine is the local one: a training set is built by a job."""

    def __init__(self, world: World, client: fw.Client) -> None:
        self.world, self._client = world, client

    async def build(
        self, training_set_id: str, *, mode: JoinMode = JoinMode.POINT_IN_TIME
    ) -> TrainingSet | None:
        spine = request(training_set_id).spine
        assert isinstance(spine, SourceSpine)
        source = ts.SourceSpine(
            source="projects/p/sources/landings", timestamp_field=spine.timestamp_field, label=spine.label
        )
        source.start_time.FromMicroseconds(spine.start)
        source.end_time.FromMicroseconds(spine.end)
        asked = pb.BuildTrainingSetRequest(
            parent="projects/p",
            training_set_id=training_set_id,
            feature_set="projects/p/featureSets/flights",
            spine=ts.Spine(source=source),
            mode=int(mode),  # type: ignore[arg-type]
            request_id=training_set_id,
        )
        messages: list[str] = []
        job = (await self._client.feature.BuildTrainingSet(asked)).job
        watched = self._client.feature.WatchJob(pb.WatchJobRequest(name=job.name))
        await self._client.wait(watched, "job", lambda job: messages.append(job.progress.message))
        assert "writing part 0" not in messages, "it was joined in memory"
        return await GrpcTrainingSets(self._client.feature, self.world.training_sets).get(
            "p", training_set_id
        )


@pytest.fixture(params=["memory", "local", "ray", "grpc"])
def backing(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def joins(backing: str, request: pytest.FixtureRequest) -> Joins | Served:
    if backing == "memory":
        return in_memory()
    found: Joins | Served = request.getfixturevalue(
        {"local": "beside", "ray": "on_ray", "grpc": "served"}[backing]
    )
    return found


def in_memory() -> Joins:
    tables = Mortal()

    async def kill(_: Workspace) -> None:
        tables.deadly = True

    return Joins(World(tables, "memory"), MemoryPartitions(tables), kill)


def killed_by_id(world: S3World) -> Callable[[Workspace], Awaitable[None]]:
    async def kill(workspace: Workspace) -> None:
        async def at_work() -> list[str]:
            return await asyncio.to_thread(workspace.keys, "spine/")

        await eventually(at_work, within=60, every=0.005)
        (driver,) = world.processes(carries_out)
        driver.kill()

    return kill


@pytest.fixture
def on_s3(s3: S3, bucket: str, tmp_path: Path) -> S3World:
    return S3World(s3, bucket, tmp_path / "spill")


@pytest.fixture
def beside(on_s3: S3World) -> Joins:
    return Joins(on_s3, on_s3.process, killed_by_id(on_s3))


@pytest.fixture
async def on_ray(on_s3: S3World, ray: Ray) -> AsyncIterator[Joins]:
    async with ray_jobs(ray.jobs_url, ray.token) as jobs:
        yield Joins(on_s3, on_s3.on_ray(ray, jobs), killed_by_id(on_s3))


@pytest.fixture
def environment(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The service joins next to nothing in memory."""
    limits = {"JOIN_MEMORY_MEBIBYTES": "1", "SPILL_DIRECTORY": str(tmp_path / "served")}
    return environment | {f"FLYWHEEL_FEATURE_{name}": value for name, value in limits.items()}


@pytest.fixture
async def served(on_s3: S3World, client: fw.Client, pool: Any) -> Served:
    """With the world's definitions applied and its events archived."""
    catalog = on_s3.catalog
    definitions = definitions_pb2.Definitions(
        entities=map(convert_definitions.entity_to_proto, catalog.entities.values()),
        sources=map(convert_definitions.source_to_proto, catalog.sources.values()),
        views=[convert_definitions.view_to_proto(replace(v, version=0)) for v in catalog.views.values()],
        feature_sets=[
            convert_definitions.feature_set_to_proto(replace(s, version=0))
            for s in catalog.feature_sets.values()
        ],
    )
    await client.feature.ApplyDefinitions(
        pb.ApplyDefinitionsRequest(parent="projects/p", definitions=definitions)
    )
    archive = PostgresArchive(pool, on_s3.bucket)
    landings = catalog.source("landings")
    for s in await on_s3.archive.segments("p", "landings"):
        key = s.uri.removeprefix(f"s3://{on_s3.bucket}/")
        times = s.min_time, s.max_time
        assert await archive.commit(
            NewSegment(landings, s.partition, s.first_offset, s.next_offset, key, s.event_count, *times)
        )
    return Served(on_s3, client)


@pytest.mark.parametrize("mode", list(JoinMode))
async def test_a_set_built_in_partitions_is_the_set_built_in_memory(
    joins: Joins | Served, mode: JoinMode
) -> None:
    world = joins.world
    whole = await world.builder().build(request("whole", mode=mode), Watched())
    parts = await joins.build("parts", mode=mode)
    assert parts is not None
    assert told(whole) == told(parts)
    assert 2500 < parts.row_count
    columns = [f.name for f in parts.schema]
    assert content_hash(world.read(parts.uri, columns)) == parts.content_hash
    assert world.read(parts.uri, columns).equals(world.read(whole.uri, columns))


async def test_an_error_of_a_task_is_the_error_of_the_build(joins: Joins | Served) -> None:
    joins.world.write("weather/year=2013/part-9.parquet", *WINDY)
    with pytest.raises((FailedPrecondition, fw.JobFailedError), match="wind") as mismatch:
        await joins.build("parts")
    assert "SOURCE_MISMATCH" == mismatch.value.reason


@in_workspaces
async def test_progress_is_told_and_no_working_file_is_left(joins: Joins) -> None:
    job = Watched()
    await joins.build("parts", job)
    assert sorted(job.progressed) == job.progressed
    assert {100} == {total for _, total in job.progressed}
    assert [] == joins.workspace("parts").keys()


@in_workspaces
async def test_what_was_finished_is_not_done_again(joins: Joins) -> None:
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


@in_workspaces
async def test_work_that_dies_is_said_and_goes_on_when_it_is_begun_again(joins: Joins) -> None:
    workspace = await joins.planned("parts")
    running = asyncio.create_task(joins.run("parts"))
    await joins.kill(workspace)
    with pytest.raises(Unavailable) as death:
        await running
    assert "ENGINE_UNAVAILABLE" == death.value.reason
    assert workspace.read_bytes(RESULT) is None
    whole = await joins.world.builder().build(request("whole"), Watched())
    assert told(whole) == told(await joins.build("parts"))


@in_workspaces
async def test_what_ended_one_try_does_not_end_the_next(joins: Joins) -> None:
    joins.world.write("weather/year=2013/part-9.parquet", *WINDY)
    workspace = await joins.planned("parts")
    await joins.run("parts")
    assert workspace.read_bytes(RESULT) is None
    error = restored(workspace.read_json(ERROR))
    assert (FailedPrecondition, "SOURCE_MISMATCH") == (type(error), error.reason)
    calm = joins.world.read(f"s3://{joins.world.bucket}/weather/year=2013/part-0.parquet", WEATHER)
    joins.world.tables.write(f"s3://{joins.world.bucket}/weather/year=2013/part-9.parquet", calm.head(1))
    await joins.run("parts")
    assert 2500 < len(joins.winds(workspace))


@in_workspaces
async def test_work_without_a_spec_ends_with_an_error(joins: Joins) -> None:
    await joins.run("nothing")
    error = restored(joins.workspace("nothing").read_json(ERROR))
    assert (Unavailable, "ENGINE_UNAVAILABLE") == (type(error), error.reason)


@in_workspaces
async def test_cancelled_work_leaves_nothing_and_may_be_discarded_again(joins: Joins) -> None:
    with pytest.raises(JobCancelled):
        await joins.build("parts", Watched(stop_at=STAGES))
    name = work_name("p", "parts")
    assert [] == joins.workspace("parts").keys()
    await joins.engine.discard(name)
    await joins.engine.discard(work_name("p", "never begun"))
    assert [] == joins.workspace("parts").keys()
    assert joins.workspace("parts").read_bytes(SPEC) is None
    assert None is await joins.world.training_sets.get("p", "parts")
