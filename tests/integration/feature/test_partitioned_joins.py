"""Joins that are computed in partitions, by a process of their own or on Ray: the same training set, whatever happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.fs as fs
import pytest

from flywheel_common.clock import SystemClock
from flywheel_common.errors import DataLoss, FailedPrecondition, InvalidArgument
from flywheel_common.ray_jobs import ray_jobs
from flywheel_feature.catalog import Catalog
from flywheel_feature.definitions import (
    DAY,
    HOUR,
    Aggregation,
    AggregationFunction,
    BatchView,
    DataType,
    Entity,
    Expression,
    Feature,
    FeatureSet,
    Field,
    OnDemandView,
    ParquetSource,
    RequestSource,
    Source,
    StreamSource,
    StreamView,
    VersionRef,
    View,
)
from flywheel_feature.jobs import JobCancelled
from flywheel_feature.offline.content_hash import content_hash
from flywheel_feature.offline.memory import MemoryArchive, MemoryTrainingSets
from flywheel_feature.offline.partitioned_build import JoinLimits
from flywheel_feature.offline.ports import PartitionEngine, Segment
from flywheel_feature.offline.training_set import TrainingSetBuilder
from flywheel_feature.offline.training_sets import (
    Compute,
    FileSpine,
    JoinMode,
    SourceSpine,
    TrainingSetRequest,
)
from flywheel_feature.store.partition_process import PartitionProcess
from flywheel_feature.store.partition_ray import PartitionRay
from flywheel_feature.store.s3_deletion import S3Deletion
from flywheel_feature.store.tables import S3Tables
from flywheel_local.ray import Ray
from flywheel_local.s3 import S3

D = DataType
UTC_US = pl.Datetime("us", "UTC")
START = 1_357_000_000_000_000
SMALL = JoinLimits(memory_bytes=1_000_000, ray_rows=10**12)
"""A few thousand rows do not fit."""
ORIGINS = [f"A{i:02d}" for i in range(40)]


class Watched:
    """A job; `stop_at` cancels it once a message begins so."""

    def __init__(self, stop_at: str = "never") -> None:
        self.messages: list[str] = []
        self.progressed: list[tuple[int, int]] = []
        self._stop_at = stop_at
        self._stopped = False

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None:
        self.messages.append(message)
        self.progressed.append((done, total))
        self._stopped = self._stopped or message.startswith(self._stop_at)

    def check_cancelled(self) -> None:
        if self._stopped:
            raise JobCancelled


def definitions(bucket: str) -> Catalog:
    """Views over two entities, with late rows, TTL, windows and expressions."""
    key, carrier = Field("origin", D.STRING), Field("carrier", D.INT64)
    weather = Source(
        "p", "weather",
        (key, Field("hour", D.TIMESTAMP), Field("written", D.TIMESTAMP), Field("wind", D.FLOAT64), Field("tags", D.STRING_LIST)),
        "hour", "written", ParquetSource(f"s3://{bucket}/weather/"),
    )  # fmt: skip
    fleet = Source(
        "p", "fleet", (key, carrier, Field("day", D.TIMESTAMP), Field("planes", D.INT64), Field("shape", D.FLOAT32_VECTOR, 2)),
        "day", "", ParquetSource(f"s3://{bucket}/fleet/"),
    )  # fmt: skip
    landed = Source(
        "p", "landings",
        (key, carrier, Field("landed", D.TIMESTAMP), Field("scheduled", D.TIMESTAMP), Field("known", D.TIMESTAMP),
         Field("distance", D.INT64), Field("delay", D.FLOAT64)),
        "landed", "known", StreamSource(),
    )  # fmt: skip
    request = Source("p", "request", (Field("distance", D.INT64),), "", "", RequestSource())
    wind, tags = Feature("wind", D.FLOAT64, field="wind"), Feature("tags", D.STRING_LIST, field="tags")
    planes = Feature("planes", D.INT64, field="planes")
    shape = Feature("shape", D.FLOAT32_VECTOR, 2, field="shape")
    views = [
        View("p", "weather", "origin", BatchView("weather", (wind, tags)), ttl=30 * HOUR, version=1, features=(wind, tags)),
        View("p", "fleet", "pair", BatchView("fleet", (planes, shape)), version=1, features=(planes, shape)),
        View(
            "p", "traffic", "origin",
            StreamView(
                "landings",
                (
                    Aggregation("mean_delay", AggregationFunction.MEAN, "delay", DAY),
                    Aggregation("spread", AggregationFunction.STD, "delay", 7 * DAY),
                    Aggregation("flights", AggregationFunction.COUNT, "", DAY),
                    Aggregation("recent", AggregationFunction.LAST_N, "delay", DAY, 3),
                ),
                filter="distance > 0", tile=HOUR,
            ),
            version=1,
            features=(
                Feature("mean_delay", D.FLOAT64), Feature("spread", D.FLOAT64), Feature("flights", D.INT64),
                Feature("recent", D.FLOAT64_LIST),
            ),
        ),
        View(
            "p", "computed", "",
            OnDemandView(
                ("weather", "traffic"), ("request",),
                (Expression(Feature("strain", D.FLOAT32), "weather__wind * distance + COALESCE(traffic__mean_delay, 0)"),),
            ),
            version=1, features=(Feature("strain", D.FLOAT32),), inputs=(VersionRef("weather", 1), VersionRef("traffic", 1)),
        ),
    ]  # fmt: skip
    schema = [
        Field("weather__wind", D.FLOAT64), Field("weather__tags", D.STRING_LIST), Field("fleet__planes", D.INT64),
        Field("fleet__shape", D.FLOAT32_VECTOR, 2), Field("traffic__mean_delay", D.FLOAT64), Field("traffic__spread", D.FLOAT64),
        Field("traffic__flights", D.INT64), Field("traffic__recent", D.FLOAT64_LIST), Field("computed__strain", D.FLOAT32),
    ]  # fmt: skip
    flights = FeatureSet(
        "p", "flights", tuple(f.name.replace("__", ":") for f in schema), version=1, views=tuple(v.ref for v in views),
        schema=tuple(schema), join_keys=(key, carrier), request_fields=(Field("distance", D.INT64),),
    )  # fmt: skip
    return Catalog(
        "p",
        entities={"origin": Entity("p", "origin", (key,)), "pair": Entity("p", "pair", (key, carrier))},
        sources={s.id: s for s in (weather, fleet, landed, request)},
        views={v.ref: v for v in views},
        feature_sets={VersionRef("flights", 1): flights},
        latest_views={v.id: v for v in views},
        latest_feature_sets={"flights": flights},
    )


class World:
    def __init__(self, s3: S3, bucket: str, spill: Path) -> None:
        self.s3, self.bucket, self.spill = s3, bucket, spill
        self.tables = S3Tables(
            endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, bucket=bucket
        )
        self.files = fs.S3FileSystem(
            access_key=s3.access_key, secret_key=s3.secret_key, scheme="http", allow_bucket_creation=True,
            endpoint_override=s3.endpoint.removeprefix("http://"),
        )  # fmt: skip
        self.files.create_dir(bucket)
        self.catalog = definitions(bucket)
        self.archive = MemoryArchive()
        self.environment = {
            "FLYWHEEL_FEATURE_S3_ENDPOINT": s3.endpoint,
            "FLYWHEEL_FEATURE_S3_ACCESS_KEY": s3.access_key,
            "FLYWHEEL_FEATURE_S3_SECRET_KEY": s3.secret_key,
            "FLYWHEEL_FEATURE_S3_BUCKET": bucket,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",
        }
        self.process = PartitionProcess(str(spill), self.environment)
        self.training_sets = MemoryTrainingSets()
        self._fill()

    async def catalogs(self, project: str) -> Catalog:
        return self.catalog

    def builder(self, *engines: PartitionEngine, limits: JoinLimits = SMALL) -> TrainingSetBuilder:
        return TrainingSetBuilder(
            catalogs=self.catalogs, tables=self.tables, archive=self.archive, training_sets=self.training_sets,
            clock=SystemClock(), archive_wait_seconds=1.0, engines=engines, limits=limits,
        )  # fmt: skip

    def write(self, key: str, rows: list[tuple[Any, ...]], schema: dict[str, Any]) -> None:
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        self.tables.write(f"s3://{self.bucket}/{key}", frame)

    def _fill(self) -> None:
        chance = random.Random(13)

        def moment() -> int:
            # Few different times: many ties.
            return START + chance.randrange(0, 20 * 24) * HOUR

        key = {"origin": pl.String}
        for file in range(3):
            rows = [
                (chance.choice([*ORIGINS, None]), t, chance.choice([None, t, t + HOUR, t + 40 * HOUR]), chance.random(),
                 chance.choice([None, [], ["wet", "cold"]]))
                for t in (moment() for _ in range(1500))
            ]  # fmt: skip
            types = {**key, "hour": UTC_US, "written": UTC_US, "wind": pl.Float64, "tags": pl.List(pl.String)}
            self.write(f"weather/year=2013/part-{file}.parquet", rows, types)
        rows = [
            (chance.choice(ORIGINS), chance.randrange(5), moment(), chance.randrange(90), [chance.random(), 2.0]) for _ in range(2000)
        ]  # fmt: skip
        types = {
            **key,
            "carrier": pl.Int64,
            "day": UTC_US,
            "planes": pl.Int64,
            "shape": pl.Array(pl.Float32, 2),
        }
        self.write("fleet/all.parquet", rows, types)
        for segment in range(4):
            first = 1000 * (segment // 2)
            events = []
            for i in range(1000):
                t = moment()
                delay = None if chance.random() < 0.1 else chance.gauss(10, 40)
                events.append(
                    (chance.choice(ORIGINS), chance.randrange(5), t, t - 3 * HOUR, chance.choice([None, t + 2 * HOUR]),
                     chance.choice([0, 500, 2500]), delay, f"{segment}-{i}", segment % 2, first + i)
                )  # fmt: skip
            types = {
                **key, "carrier": pl.Int64, "landed": UTC_US, "scheduled": UTC_US, "known": UTC_US, "distance": pl.Int64,
                "delay": pl.Float64, "__event_id": pl.String, "__partition": pl.Int32, "__offset": pl.Int64,
            }  # fmt: skip
            self.write(f"archive/{segment}.parquet", events, types)
            times = [e[2] for e in events]
            self.archive.add(
                "p", "landings",
                Segment(f"s3://{self.bucket}/archive/{segment}.parquet", segment % 2, first, first + 1000, min(times), max(times), 1000),
                {segment % 2: first + 1000},
            )  # fmt: skip

    def read(self, uri: str, columns: list[str]) -> pl.DataFrame:
        return self.tables.read(uri, columns)


@pytest.fixture
def world(s3: S3, tmp_path: Path) -> World:
    return World(s3, f"test-{uuid.uuid4().hex[:16]}", tmp_path / "spill")


def request(training_set_id: str, **changes: Any) -> TrainingSetRequest:
    spine = SourceSpine("landings", "scheduled", "delay >= 15", START, START + 18 * DAY)
    return TrainingSetRequest(**{
        "project": "p", "training_set_id": training_set_id, "feature_set": "flights", "feature_set_version": 0, "spine": spine,
        **changes,
    })  # fmt: skip


def told(built: Any) -> Any:
    """The manifest, less what names and times it."""
    return dataclasses.replace(built, id="", uri="", created_at=None, build_seconds=0.0)


@pytest.mark.parametrize("mode", list(JoinMode))
async def test_a_set_built_in_partitions_is_the_set_built_in_memory(world: World, mode: JoinMode) -> None:
    whole = await world.builder().build(request("whole", mode=mode), Watched())
    job = Watched()
    parts = await world.builder(world.process).build(request("parts", mode=mode), job)
    assert told(whole) == told(parts)
    assert 2500 < parts.row_count
    columns = [f.name for f in parts.schema]
    assert content_hash(world.read(parts.uri, columns)) == parts.content_hash
    assert world.read(parts.uri, columns).equals(world.read(whole.uri, columns))
    assert any("joining" == m for m in job.messages)
    assert [] == list(world.spill.glob("*")), "working files are left over"


async def test_a_small_join_stays_in_memory(world: World) -> None:
    job = Watched()
    built = await world.builder(world.process, limits=JoinLimits()).build(request("small"), job)
    assert "writing part 0" in job.messages
    assert built.uri.split("/")[-2].startswith(f"{built.content_hash[:16]}-")


async def test_a_spine_file_is_joined_in_partitions_too(world: World) -> None:
    chance = random.Random(5)
    rows = [
        (chance.choice([*ORIGINS, "elsewhere", None]), chance.choice([1, 2, None]), START + chance.randrange(400) * HOUR, 500,
         chance.choice([0.0, 1.0, None])) for _ in range(3000)
    ]  # fmt: skip
    types = {
        "origin": pl.String,
        "carrier": pl.Int64,
        "when": UTC_US,
        "distance": pl.Int64,
        "late": pl.Float64,
    }
    world.write("spines/a.parquet", rows[:1000], types)
    world.write("spines/b.parquet", rows[1000:], types)
    spine = FileSpine(f"s3://{world.bucket}/spines/", "when", "late")
    whole = await world.builder().build(request("whole", spine=spine), Watched())
    parts = await world.builder(world.process).build(request("parts", spine=spine), Watched())
    assert told(whole) == told(parts)
    assert sum(r[4] is None for r in rows) == parts.unlabelled_count
    assert 3000 == parts.row_count + parts.unlabelled_count


async def test_an_empty_spine_gives_an_empty_set_in_partitions(world: World) -> None:
    spine = SourceSpine("landings", "scheduled", "delay >= 15", START + 300 * DAY, START + 301 * DAY)
    whole = await world.builder().build(request("whole", spine=spine), Watched())
    parts = await world.builder(world.process).build(request("parts", spine=spine), Watched())
    assert 0 == parts.row_count
    assert told(whole) == told(parts)


async def test_a_join_whose_process_is_killed_goes_on_where_it_was(world: World) -> None:
    whole = await world.builder().build(request("whole"), Watched())
    building = asyncio.create_task(world.builder(world.process).build(request("parts"), Watched(), "job1"))
    joined: list[Path] = []
    while not joined:
        joined = list(world.spill.glob("**/view-*/joined-*.parquet"))
        await asyncio.sleep(0.005)
    before = {p: p.stat().st_mtime_ns for p in joined}
    # What kill -9 of the service does: nobody waits for the join any more, and nothing is cleared up.
    building.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await building
    again = asyncio.create_task(world.builder(world.process).build(request("parts"), Watched(), "job1"))
    seen = dict(before)
    while not again.done():
        for path in before:
            with contextlib.suppress(FileNotFoundError):
                seen[path] = path.stat().st_mtime_ns
        await asyncio.sleep(0.005)
    assert told(whole) == told(again.result())
    assert before == seen, "what was finished was done again"


async def test_a_cancelled_join_leaves_no_process_and_no_working_files(world: World) -> None:
    job = Watched(stop_at="spreading")
    with pytest.raises(JobCancelled):
        await world.builder(world.process).build(request("parts"), job)
    assert [] == list(world.spill.glob("*"))
    assert None is await world.training_sets.get("p", "parts")


async def test_a_half_written_file_ends_the_join_with_its_reason(world: World) -> None:
    with world.files.open_output_stream(f"{world.bucket}/weather/year=2013/part-2.parquet") as stream:
        stream.write(b"PAR1 half a file")
    with pytest.raises(DataLoss) as corrupt:
        await world.builder(world.process).build(request("parts"), Watched())
    assert "CORRUPT_TABLE" == corrupt.value.reason
    assert None is await world.training_sets.get("p", "parts")


async def test_an_error_of_a_task_is_the_error_of_the_build(world: World) -> None:
    world.write(
        "weather/year=2013/part-9.parquet", [("A01", "windy")], {"origin": pl.String, "wind": pl.String}
    )
    with pytest.raises(FailedPrecondition) as mismatch:
        await world.builder(world.process).build(request("parts"), Watched())
    assert "SOURCE_MISMATCH" == mismatch.value.reason
    assert [] == list(world.spill.glob("*"))


async def test_short_names_are_the_same_set_under_other_names(world: World) -> None:
    long = await world.builder().build(request("long"), Watched())
    short = await world.builder().build(request("short", short_feature_names=True), Watched())
    parts = await world.builder(world.process).build(request("parts", short_feature_names=True), Watched())
    assert told(short) == told(parts)
    assert short.short_feature_names
    names = [f.name for f in short.schema]
    assert [
        "wind",
        "tags",
        "planes",
        "shape",
        "mean_delay",
        "spread",
        "flights",
        "recent",
        "strain",
    ] == names[4:-1]
    assert names[4:] == [p.name for p in short.profile]
    renamed = world.read(long.uri, [f.name for f in long.schema])
    renamed.columns = names
    assert renamed.equals(world.read(short.uri, names))


async def test_short_names_that_collide_are_refused_before_anything_runs(world: World) -> None:
    first = world.catalog.feature_set("flights")
    twice = dataclasses.replace(
        first,
        id="twice",
        features=("weather:wind", "weather:wind"),
        schema=(first.schema[0], first.schema[0]),
    )
    world.catalog.latest_feature_sets["twice"] = twice  # type: ignore[index]
    with pytest.raises(InvalidArgument) as refused:
        await world.builder().validate(request("x", feature_set="twice", short_feature_names=True))
    assert "DUPLICATE_COLUMN" == refused.value.reason


async def test_ray_is_refused_where_there_is_none(world: World) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        await world.builder(world.process).validate(request("x", compute=Compute.RAY))
    assert "NO_RAY" == refused.value.reason


@pytest.fixture
async def on_ray(world: World, ray: Ray) -> AsyncIterator[PartitionRay]:
    async with ray_jobs(ray.jobs_url, ray.token) as jobs:
        yield PartitionRay(
            jobs, python=sys.executable, files=world.files, root=f"{world.bucket}/joins",
            deletion=S3Deletion(world.s3.endpoint, world.s3.access_key, world.s3.secret_key),
            environment={**world.environment, **ray.environment},
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_ray_gives_the_same_set_bit_for_bit(world: World, on_ray: PartitionRay) -> None:
    whole = await world.builder().build(request("whole"), Watched())
    job = Watched()
    on_cluster = await world.builder(world.process, on_ray).build(
        request("cluster", compute=Compute.RAY), job, uuid.uuid4().hex
    )
    assert told(whole) == told(on_cluster)
    assert any(m.endswith("on Ray") for m in job.messages)
    left = fs.FileSelector(f"{world.bucket}/joins", recursive=True, allow_not_found=True)
    assert [] == [i.path for i in world.files.get_file_info(left) if i.type == fs.FileType.File]
