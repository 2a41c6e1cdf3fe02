"""Joins that are computed in partitions, by a process of their own: the same training set, whatever happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import uuid
from pathlib import Path

import polars as pl
import pytest

from flywheel_common.errors import DataLoss, FailedPrecondition, InvalidArgument
from flywheel_feature.definitions.model import DAY, HOUR
from flywheel_feature.offline.model import (
    Compute,
    FileSpine,
    SourceSpine,
)
from flywheel_feature.offline.partitioned.build import JoinLimits
from flywheel_local.s3 import S3
from tests.support.builders.partitioned_joins import (
    ORIGINS,
    START,
    UTC_US,
    S3World,
    Watched,
    request,
    told,
)


@pytest.fixture
def world(s3: S3, tmp_path: Path) -> S3World:
    return S3World(s3, f"test-{uuid.uuid4().hex[:16]}", tmp_path / "spill")


async def test_a_small_join_stays_in_memory(world: S3World) -> None:
    job = Watched()
    built = await world.builder(world.process, limits=JoinLimits()).build(request("small"), job)
    assert "writing part 0" in job.messages
    assert built.uri.split("/")[-2].startswith(f"{built.content_hash[:16]}-")


async def test_a_spine_file_is_joined_in_partitions_too(world: S3World) -> None:
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


async def test_an_empty_spine_gives_an_empty_set_in_partitions(world: S3World) -> None:
    spine = SourceSpine("landings", "scheduled", "delay >= 15", START + 300 * DAY, START + 301 * DAY)
    whole = await world.builder().build(request("whole", spine=spine), Watched())
    parts = await world.builder(world.process).build(request("parts", spine=spine), Watched())
    assert 0 == parts.row_count
    assert told(whole) == told(parts)


async def test_a_join_whose_process_is_killed_goes_on_where_it_was(world: S3World) -> None:
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


async def test_a_half_written_file_ends_the_join_with_its_reason(world: S3World) -> None:
    with world.files.open_output_stream(f"{world.bucket}/weather/year=2013/part-2.parquet") as stream:
        stream.write(b"PAR1 half a file")
    with pytest.raises(DataLoss) as corrupt:
        await world.builder(world.process).build(request("parts"), Watched())
    assert "CORRUPT_TABLE" == corrupt.value.reason
    assert None is await world.training_sets.get("p", "parts")


async def test_short_names_are_the_same_set_under_other_names(world: S3World) -> None:
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


async def test_short_names_that_collide_are_refused_before_anything_runs(world: S3World) -> None:
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


async def test_ray_is_refused_where_there_is_none(world: S3World) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        await world.builder(world.process).validate(request("x", compute=Compute.RAY))
    assert "NO_RAY" == refused.value.reason
