"""Joins in partitions, run by a separate process, give the same training sets as joins in memory."""

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
from tests.support.builders.jobs import RecordingJob
from tests.support.builders.partitioned_joins import (
    ORIGINS,
    START,
    UTC_US,
    S3JoinInputs,
    request,
    without_identity,
)


@pytest.fixture
def inputs(s3: S3, tmp_path: Path) -> S3JoinInputs:
    return S3JoinInputs(s3, f"test-{uuid.uuid4().hex[:16]}", tmp_path / "spill")


async def test_a_small_join_stays_in_memory(inputs: S3JoinInputs) -> None:
    job = RecordingJob()
    built = await inputs.builder(inputs.process, limits=JoinLimits()).build(request("small"), job)
    assert "writing part 0" in job.messages
    assert built.uri.split("/")[-2].startswith(f"{built.content_hash[:16]}-")


async def test_a_spine_file_is_joined_in_partitions(inputs: S3JoinInputs) -> None:
    chance = random.Random(5)
    rows = [
        (
            chance.choice([*ORIGINS, "elsewhere", None]),
            chance.choice([1, 2, None]),
            START + chance.randrange(400) * HOUR,
            500,
            chance.choice([0.0, 1.0, None]),
            i,
            chance.choice([None, [], ["a", "b"]]),
        )
        for i in range(3000)
    ]
    types = {
        "origin": pl.String,
        "carrier": pl.Int64,
        "when": UTC_US,
        "distance": pl.Int64,
        "late": pl.Float64,
        "order id": pl.Int64,
        "notes": pl.List(pl.String),
    }
    inputs.write("spines/a.parquet", rows[:1000], types)
    inputs.write("spines/b.parquet", rows[1000:], types)
    spine = FileSpine(f"s3://{inputs.bucket}/spines/", "when", "late")
    in_memory = await inputs.builder().build(request("in-memory", spine=spine), RecordingJob())
    parts = await inputs.builder(inputs.process).build(request("parts", spine=spine), RecordingJob())
    assert without_identity(in_memory) == without_identity(parts)
    assert sum(r[4] is None for r in rows) == parts.unlabelled_count
    assert 3000 == parts.row_count + parts.unlabelled_count
    assert ("order id", "notes") == parts.extra_columns
    kept = inputs.read(parts.uri, ["order id", "notes"])
    assert [r[5:] for r in rows if r[4] is not None] == kept.rows()


async def test_an_empty_spine_gives_an_empty_training_set(inputs: S3JoinInputs) -> None:
    spine = SourceSpine("landings", "scheduled", "delay >= 15", START + 300 * DAY, START + 301 * DAY)
    in_memory = await inputs.builder().build(request("in-memory", spine=spine), RecordingJob())
    parts = await inputs.builder(inputs.process).build(request("parts", spine=spine), RecordingJob())
    assert 0 == parts.row_count
    assert without_identity(in_memory) == without_identity(parts)


async def test_a_join_whose_process_is_killed_continues_without_repeating_tasks(inputs: S3JoinInputs) -> None:
    in_memory = await inputs.builder().build(request("in-memory"), RecordingJob())
    building = asyncio.create_task(
        inputs.builder(inputs.process).build(request("parts"), RecordingJob(), "job1")
    )
    joined: list[Path] = []
    while not joined:
        joined = list(inputs.spill.glob("**/view-*/joined-*.parquet"))
        await asyncio.sleep(0.005)
    before = {p: p.stat().st_mtime_ns for p in joined}
    # As after kill -9 of the service: the join is abandoned without clean-up.
    building.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await building
    again = asyncio.create_task(
        inputs.builder(inputs.process).build(request("parts"), RecordingJob(), "job1")
    )
    seen = dict(before)
    while not again.done():
        for path in before:
            with contextlib.suppress(FileNotFoundError):
                seen[path] = path.stat().st_mtime_ns
        await asyncio.sleep(0.005)
    assert without_identity(in_memory) == without_identity(again.result())
    assert before == seen, "finished tasks ran again"


async def test_a_truncated_file_fails_the_join_as_corrupt(inputs: S3JoinInputs) -> None:
    with inputs.files.open_output_stream(f"{inputs.bucket}/weather/year=2013/part-2.parquet") as stream:
        stream.write(b"PAR1 half a file")
    with pytest.raises(DataLoss) as corrupt:
        await inputs.builder(inputs.process).build(request("parts"), RecordingJob())
    assert "CORRUPT_TABLE" == corrupt.value.reason
    assert None is await inputs.training_sets.get("p", "parts")


async def test_short_feature_names_change_only_the_column_names(inputs: S3JoinInputs) -> None:
    long = await inputs.builder().build(request("long"), RecordingJob())
    short = await inputs.builder().build(request("short", short_feature_names=True), RecordingJob())
    parts = await inputs.builder(inputs.process).build(
        request("parts", short_feature_names=True), RecordingJob()
    )
    assert without_identity(short) == without_identity(parts)
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
    renamed = inputs.read(long.uri, [f.name for f in long.schema])
    renamed.columns = names
    assert renamed.equals(inputs.read(short.uri, names))


async def test_colliding_short_feature_names_are_refused_before_the_build(inputs: S3JoinInputs) -> None:
    first = inputs.catalog.feature_set("flights")
    twice = dataclasses.replace(
        first,
        id="twice",
        features=("weather:wind", "weather:wind"),
        schema=(first.schema[0], first.schema[0]),
    )
    inputs.catalog.latest_feature_sets["twice"] = twice  # type: ignore[index]
    with pytest.raises(InvalidArgument) as refused:
        await inputs.builder().validate(request("x", feature_set="twice", short_feature_names=True))
    assert "DUPLICATE_COLUMN" == refused.value.reason


async def test_compute_on_ray_is_refused_without_a_ray_cluster(inputs: S3JoinInputs) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        await inputs.builder(inputs.process).validate(request("x", compute=Compute.RAY))
    assert "NO_RAY" == refused.value.reason
