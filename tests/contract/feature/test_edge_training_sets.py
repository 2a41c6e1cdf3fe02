"""Training sets at the gRPC edge: conversion, filters, paging, status codes, and builds in partitions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from google.protobuf import text_format

import flywheel as fw
from flywheel_common.errors import NotFound
from flywheel_common.postgres.pool import Pool
from flywheel_feature.api import convert_definitions
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.ingest.archive import NewSegment
from flywheel_feature.offline.model import ColumnProfile, FileSpine, JoinMode, SourceSpine, TrainingSet
from flywheel_feature.store.postgres.archive import PostgresArchive
from flywheel_feature.store.postgres.training_sets import PostgresTrainingSets
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import definitions_pb2
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import training_set_pb2 as ts
from tests.support.builders.jobs import RecordingJob
from tests.support.builders.partitioned_joins import S3JoinInputs, request, without_identity

BUILT = TrainingSet(
    project="p",
    id="winter",
    feature_set="projects/p/featureSets/flights/versions/2",
    view_versions=("projects/p/views/weather/versions/1",),
    spine=SourceSpine("landings", "scheduled", "delay >= 15", 1, 2, 3, ("id",)),
    mode=JoinMode.POINT_IN_TIME,
    uri="s3://b/training-sets/p/winter/0123/",
    content_hash="0123",
    row_count=7,
    label_mean=0.25,
    min_time=1_356_998_400_000_000,
    max_time=1_356_998_400_000_001,
    schema=(
        Field("weather__wind", DataType.FLOAT64, 0, "m/s"),
        Field("weather__shape", DataType.FLOAT32_VECTOR, 2),
    ),
    profile=(
        ColumnProfile("weather__wind", DataType.FLOAT64, 7, 1, 0.1, 0.2, -1.0, 1.0, (0.0,), (3, 3)),
        ColumnProfile(
            "weather__sky",
            DataType.STRING,
            7,
            0,
            categories=("dry", "wet"),
            category_counts=(4, 2),
            other_count=1,
        ),
    ),
    unlabelled_count=2,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    build_seconds=1.5,
    short_feature_names=True,
    source_versions={"projects/p/sources/weather": 4},
    extra_columns=("id",),
)
BUILT_MESSAGE = """
name: "projects/p/trainingSets/winter" feature_set: "projects/p/featureSets/flights/versions/2"
view_versions: "projects/p/views/weather/versions/1"
spine {
  source {
    source: "projects/p/sources/landings" timestamp_field: "scheduled" label: "delay >= 15"
    start_time { nanos: 1000 } end_time { nanos: 2000 } known_before { nanos: 3000 }
    extra_fields: "id"
  }
}
mode: JOIN_MODE_POINT_IN_TIME uri: "s3://b/training-sets/p/winter/0123/" content_hash: "0123"
row_count: 7 label_mean: 0.25 unlabelled_count: 2 short_feature_names: true
min_time { seconds: 1356998400 } max_time { seconds: 1356998400 nanos: 1000 }
schema { name: "weather__wind" data_type: DATA_TYPE_FLOAT64 description: "m/s" }
schema { name: "weather__shape" data_type: DATA_TYPE_FLOAT32_VECTOR vector_size: 2 }
profile {
  name: "weather__wind" data_type: DATA_TYPE_FLOAT64 count: 7 null_count: 1
  mean: 0.1 stddev: 0.2 min: -1 max: 1
  edges: 0 bin_counts: 3 bin_counts: 3
}
profile {
  name: "weather__sky" data_type: DATA_TYPE_STRING count: 7 categories: "dry" categories: "wet"
  category_counts: 4 category_counts: 2 other_count: 1
}
created_at { seconds: 1767225600 } build_duration { seconds: 1 nanos: 500000000 }
source_versions { key: "projects/p/sources/weather" value: 4 } extra_columns: "id"
"""


WINDY = [("A01", "windy")], {"origin": pl.String, "wind": pl.String}
"""A row whose wind is not a number."""


@pytest.fixture
def environment(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """A service that joins almost nothing in memory."""
    limits = {"JOIN_MEMORY_MEBIBYTES": "1", "SPILL_DIRECTORY": str(tmp_path / "joins")}
    return environment | {f"FLYWHEEL_FEATURE_{name}": value for name, value in limits.items()}


async def read(client: fw.Client, name: str) -> ts.TrainingSet:
    request_by_name = pb.GetTrainingSetRequest(name=f"projects/{name}")
    return (await client.feature.GetTrainingSet(request_by_name)).training_set


async def test_all_fields_of_a_training_set_are_returned(client: fw.Client, pool: Pool) -> None:
    stored = PostgresTrainingSets(pool)
    await stored.create(BUILT)
    spine = FileSpine("s3://b/k.parquet", "t", "y")
    await stored.create(replace(BUILT, id="file", spine=spine, mode=JoinMode.NAIVE_LATEST))
    assert text_format.Parse(BUILT_MESSAGE, ts.TrainingSet()) == await read(client, "p/trainingSets/winter")
    from_file = await read(client, "p/trainingSets/file")
    assert ts.FileSpine(uri="s3://b/k.parquet", timestamp_field="t", label_field="y") == from_file.spine.file
    assert ts.JOIN_MODE_NAIVE_LATEST == from_file.mode
    for name in ("q/trainingSets/winter", "p/trainingSets/summer"):
        with pytest.raises(NotFound) as absent:
            await read(client, name)
        assert "UNKNOWN_TRAINING_SET" == absent.value.reason


async def test_training_sets_are_listed_newest_first_with_pages(client: fw.Client, pool: Pool) -> None:
    stored = PostgresTrainingSets(pool)
    for n in range(5):
        created = BUILT.created_at + timedelta(seconds=n // 2)
        version = f"projects/p/featureSets/{'flights' if n % 2 else 'flights2'}/versions/{n + 1}"
        await stored.create(replace(BUILT, id=f"s{n}", created_at=created, feature_set=version))

    async def ids(parent: str, filter_terms: str = "") -> list[list[str]]:
        listing = pb.ListTrainingSetsRequest(parent=parent, page_size=2, filter=filter_terms)
        pages = []
        while True:
            page = await client.feature.ListTrainingSets(listing)
            pages.append([s.name.rpartition("/")[2] for s in page.training_sets])
            if not page.next_page_token:
                return pages
            listing.page_token = page.next_page_token

    assert [["s4", "s3"], ["s2", "s1"], ["s0"]] == await ids("projects/p")
    flights = "feature_set=projects/p/featureSets/flights"
    assert [["s3", "s1"]] == await ids("projects/p", flights)
    assert [["s1"]] == await ids("projects/p", f"{flights}/versions/2")
    assert [[]] == await ids("projects/q")


async def apply_world(client: fw.Client, world: S3JoinInputs, pool: Pool) -> None:
    """Apply the definitions of a world, and register its archived events."""
    catalog = world.catalog
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
    archive = PostgresArchive(pool, world.bucket)
    landings = catalog.source("landings")
    for s in await world.archive.segments("p", "landings"):
        key = s.uri.removeprefix(f"s3://{world.bucket}/")
        times = s.min_time, s.max_time
        segment = NewSegment(landings, s.partition, s.first_offset, s.next_offset, key, s.event_count, *times)
        assert await archive.commit(segment)


@pytest.mark.timeout(120)
async def test_service_builds_large_sets_in_partitions(
    client: fw.Client, pool: Pool, s3: S3, bucket: str, tmp_path: Path
) -> None:
    world = S3JoinInputs(s3, bucket, tmp_path / "unused")
    await apply_world(client, world, pool)

    async def build(training_set_id: str, mode: JoinMode) -> list[str]:
        """Messages of the job."""
        spine = request(training_set_id).spine
        assert isinstance(spine, SourceSpine)
        source = ts.SourceSpine(
            source="projects/p/sources/landings", timestamp_field=spine.timestamp_field, label=spine.label
        )
        source.start_time.FromMicroseconds(spine.start)
        source.end_time.FromMicroseconds(spine.end)
        message = pb.BuildTrainingSetRequest(
            parent="projects/p",
            training_set_id=training_set_id,
            feature_set="projects/p/featureSets/flights",
            spine=ts.Spine(source=source),
            mode=int(mode),  # type: ignore[arg-type]
            request_id=training_set_id,
        )
        messages: list[str] = []
        job = (await client.feature.BuildTrainingSet(message)).job
        watched = client.feature.WatchJob(pb.WatchJobRequest(name=job.name))
        await client.wait(watched, "job", lambda job: messages.append(job.progress.message))
        return messages

    for mode in JoinMode:
        in_memory = await world.builder().build(request(f"memory-{mode}", mode=mode), RecordingJob())
        messages = await build(f"parts-{mode}", mode)
        assert "writing part 0" not in messages, "the service joined in memory"
        built = await PostgresTrainingSets(pool).get("p", f"parts-{mode}")
        assert built is not None
        assert without_identity(in_memory) == without_identity(built)
        columns = [f.name for f in built.schema]
        assert world.read(built.uri, columns).equals(world.read(in_memory.uri, columns))

    world.write("weather/year=2013/part-9.parquet", *WINDY)
    with pytest.raises(fw.JobFailedError, match="wind") as mismatch:
        await build("broken", JoinMode.POINT_IN_TIME)
    assert "SOURCE_MISMATCH" == mismatch.value.reason
