"""Delta tables and Hive folders as sources; each job reads one version of a table."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

import flywheel as fw
from flywheel.tables import to_dict
from flywheel_common.clock import SystemClock
from flywheel_common.errors import FailedPrecondition, FlywheelError
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    BatchView,
    DataType,
    Entity,
    Feature,
    FeatureSet,
    Field,
    ParquetSource,
    Source,
    TableFormat,
    VersionRef,
    View,
)
from flywheel_feature.fakes.archive import MemoryArchive
from flywheel_feature.fakes.training_sets import MemoryTrainingSets
from flywheel_feature.offline.build import TrainingSetBuilder
from flywheel_feature.offline.model import FileSpine, TrainingSetRequest
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import training_set_pb2 as ts
from tests.support.builders.delta_lake import DeltaLake, at, weather
from tests.support.builders.jobs import RecordingJob

SOURCE = "projects/default/sources/weather"


@pytest.fixture
def lake(s3: S3, bucket: str) -> DeltaLake:
    return DeltaLake(s3, bucket)


def write_history(lake: DeltaLake) -> None:
    """Four versions: rows that are overwritten, new rows, a deleted partition, appended rows."""
    by_origin = {"partition_by": ["origin"]}
    lake.commit([("JFK", 1, 99.0), ("LA X", 1, 98.0), ("BOS", 1, 97.0)], **by_origin)
    rows = [("JFK", 1, 1.0), ("ORD", 3, 3.0), ("LA X", 2, 20.0), ("LA X", 4, None)]
    lake.commit(rows, mode="overwrite", **by_origin)
    # A whole partition is deleted, because the local store does not support the range requests of a rewrite.
    lake.table().delete("origin = 'ORD'")
    lake.commit([("JFK", 5, 5.0), ("EWR", 1, 7.0)], mode="append", **by_origin)


def write_spine(lake: DeltaLake, rows: Sequence[tuple[str, float]]) -> str:
    uri = f"s3://{lake.bucket}/spines/one.parquet"
    frame = pl.DataFrame({"origin": [r[0] for r in rows], "when": [at(r[1]) for r in rows]})
    lake.tables.write(uri, frame)
    return uri


SPINE_ROWS = [
    ("BOS", 6.0),
    ("EWR", 6.0),
    ("JFK", 0.5),
    ("JFK", 4.0),
    ("JFK", 6.0),
    ("LA X", 3.0),
    ("LA X", 6.0),
    ("ORD", 6.0),
]
EXPECTED = {
    # Without the overwritten 97, 98 and 99 and the deleted 3; the latest value of LA X is null.
    ("BOS", 6.0): None,
    ("EWR", 6.0): 7.0,
    ("JFK", 0.5): None,
    ("JFK", 4.0): 1.0,
    ("JFK", 6.0): 5.0,
    ("LA X", 3.0): 20.0,
    ("LA X", 6.0): None,
    ("ORD", 6.0): None,
}


def definitions(lake: DeltaLake) -> Any:
    source = fw.ParquetSource(
        "weather",
        {"origin": fw.STRING, "hour": fw.TIMESTAMP, "wind": fw.FLOAT64},
        timestamp="hour",
        uri=lake.uri,
        format="delta",
    )
    origin = fw.Entity("origin", {"origin": fw.STRING})
    view = fw.BatchView("weather", origin, source, {"wind": fw.FLOAT64})
    return fw.compile_definitions([view, fw.FeatureSet("flights", ["weather:wind"])], "default")


async def test_a_delta_table_feeds_training_sets_and_the_online_store(
    client: fw.Client, lake: DeltaLake
) -> None:
    await asyncio.to_thread(write_history, lake)
    await client.apply(definitions(lake))
    spine = ts.Spine(file=ts.FileSpine(uri=write_spine(lake, SPINE_ROWS), timestamp_field="when"))
    built = await client.build_training_set("flights", spine)
    rows = lake.tables.read(built.uri, ["origin", "event_timestamp", "weather__wind"]).rows()
    assert {(o, at(h)): wind for (o, h), wind in EXPECTED.items()} == {(r[0], r[1]): r[2] for r in rows}
    assert len(EXPECTED) == len(rows) == built.row_count
    assert {SOURCE: 3} == dict(built.source_versions)

    short = await client.build_training_set("flights", spine, full_feature_names=False)
    assert ["origin", "event_timestamp", "wind"] == [f.name for f in short.schema]
    assert ["wind"] == [p.name for p in short.profile]
    assert short.short_feature_names
    assert rows == lake.tables.read(short.uri, ["origin", "event_timestamp", "wind"]).rows()

    await client.materialize("weather")
    answer = await client.online_features("flights", {"origin": ["JFK", "LA X", "BOS", "EWR"]}, as_of=at(6))
    assert [5.0, None, None, 7.0] == to_dict(answer.features)["weather__wind"]


async def test_an_iceberg_source_is_refused_by_apply(client: fw.Client, lake: DeltaLake) -> None:
    wanted = definitions(lake)
    wanted.sources[0].parquet.format = 3
    answer = await client.feature.ApplyDefinitions(
        pb.ApplyDefinitionsRequest(parent="projects/default", definitions=wanted, validate_only=True)
    )
    (violation,) = answer.violations
    assert (SOURCE, "parquet.format") == (violation.name, violation.field)
    assert "DELTA" in violation.message


def catalog(lake: DeltaLake, table_format: TableFormat = TableFormat.DELTA, **fields: DataType) -> Catalog:
    schema = {
        "origin": DataType.STRING,
        "hour": DataType.TIMESTAMP,
        "wind": DataType.FLOAT64,
        **fields,
    }
    columns = tuple(Field(n, t) for n, t in schema.items())
    source = Source("default", "weather", columns, "hour", "", ParquetSource(lake.uri, table_format))
    wind = Feature("wind", DataType.FLOAT64, field="wind")
    view = View("default", "weather", "origin", BatchView("weather", (wind,)), version=1, features=(wind,))
    flights = FeatureSet(
        "default",
        "flights",
        ("weather:wind",),
        version=1,
        views=(VersionRef("weather", 1),),
        schema=(Field("weather__wind", DataType.FLOAT64),),
        join_keys=(Field("origin", DataType.STRING),),
    )
    return Catalog(
        "default",
        entities={"origin": Entity("default", "origin", (Field("origin", DataType.STRING),))},
        sources={"weather": source},
        views={view.ref: view},
        feature_sets={VersionRef("flights", 1): flights},
        latest_views={"weather": view},
        latest_feature_sets={"flights": flights},
    )


class Killed(Exception):
    """Ends a build as a killed process does."""


class Sets:
    """Builds training sets from the lake."""

    def __init__(self, lake: DeltaLake) -> None:
        self.registered = MemoryTrainingSets()

        async def catalogs(project: str) -> Catalog:
            return catalog(lake)

        self.builder = TrainingSetBuilder(
            catalogs=catalogs,
            tables=lake.tables,
            archive=MemoryArchive(),
            training_sets=self.registered,
            clock=SystemClock(),
        )
        self._spine = FileSpine(write_spine(lake, SPINE_ROWS), "when")

    def request(self, training_set_id: str) -> TrainingSetRequest:
        return TrainingSetRequest("default", training_set_id, "flights", 0, self._spine)


async def test_a_restarted_job_reads_the_version_that_it_started_with(lake: DeltaLake) -> None:
    await asyncio.to_thread(write_history, lake)
    sets = Sets(lake)
    undisturbed = await sets.builder.build(sets.request("undisturbed"), RecordingJob())

    def die(message: str) -> None:
        if message.startswith("reading the spine"):
            raise Killed

    killed = RecordingJob(on_message=die)
    with pytest.raises(Killed):
        await sets.builder.build(sets.request("resumed"), killed)
    await asyncio.to_thread(lake.commit, [("BOS", 2, 2.0)], mode="append", partition_by=["origin"])
    resumed = await sets.builder.build(sets.request("resumed"), RecordingJob(killed.checkpoint))
    assert undisturbed.content_hash == resumed.content_hash
    assert {SOURCE: 3} == resumed.source_versions
    later = await sets.builder.build(sets.request("later"), RecordingJob())
    assert {SOURCE: 4} == later.source_versions
    assert undisturbed.content_hash != later.content_hash
    again = await sets.builder.build(sets.request("again"), RecordingJob())
    assert later.content_hash == again.content_hash


@pytest.mark.parametrize(
    ("harm", "reason", "named"),
    [
        ("vacuum", "TABLE_CHANGED", "origin=JFK"),
        ("half", "CORRUPT_TABLE", "origin=JFK"),
        ("log", "CORRUPT_TABLE", "Delta log"),
        ("absent", "UNKNOWN_TABLE", "weather"),
    ],
)
async def test_a_build_from_a_broken_delta_table_fails_and_leaves_no_file(
    lake: DeltaLake, harm: str, reason: str, named: str
) -> None:
    sets = Sets(lake)
    if harm != "absent":
        rows = [("JFK", 1, 1.0), ("BOS", 2, 2.0)]
        await asyncio.to_thread(lake.commit, rows, partition_by=["origin"])
    files = lake.tables._fs
    data = [f for f in lake.files("weather") if "JFK" in f]
    log = lake.files("weather/_delta_log")
    match harm:
        case "vacuum":
            files.delete_file(data[0])
        case "half":
            content = files.open_input_file(data[0]).read()
            with files.open_output_stream(data[0]) as stream:
                stream.write(content[: len(content) // 2])
        case "log":
            with files.open_output_stream(log[0]) as stream:
                stream.write(b'{"add": half')
    with pytest.raises(FlywheelError, match=named) as refused:
        await sets.builder.build(sets.request("broken"), RecordingJob())
    assert reason == refused.value.reason
    assert [] == lake.files("training-sets")
    assert await sets.registered.get("default", "broken") is None


async def test_a_table_with_unsupported_reader_features_is_refused(
    lake: DeltaLake,
) -> None:
    def create() -> None:
        lake.commit([("JFK", 1, 1.0)], partition_by=["origin"])
        schema = lake.table().schema()
        other = lake.uri.replace("weather", "vectors")
        DeltaTable.create(
            other,
            schema=schema,
            configuration={"delta.enableDeletionVectors": "true"},
            storage_options=lake.options,
        )
        with pytest.raises(DeltaError):
            DeltaTable(other, storage_options=lake.options).to_pyarrow_dataset()

    await asyncio.to_thread(create)
    with pytest.raises(FailedPrecondition, match="deletionVectors") as refused:
        lake.tables.snapshot(lake.uri.replace("weather", "vectors"), TableFormat.DELTA)
    assert "UNSUPPORTED_FORMAT" == refused.value.reason


async def test_rows_of_rewritten_files_are_read_once(lake: DeltaLake, tmp_path: Path) -> None:
    """The folder has files of three generations: as written, after a delete, and after compaction."""

    def written() -> None:
        local = str(tmp_path / "weather")
        for hour in range(1, 5):
            rows = weather([("JFK", hour, float(hour)), ("BOS", hour, 10.0 * hour)])
            write_deltalake(local, rows.to_arrow(), partition_by=["origin"], mode="append")
        table = DeltaTable(local)
        table.delete("wind = 3.0 OR wind = 20.0")
        table.optimize.compact()
        assert 5 == table.version()
        for file in Path(local).rglob("*"):
            if file.is_file():
                target = f"{lake.bucket}/weather/{file.relative_to(local)}"
                with lake.tables._fs.open_output_stream(target) as stream:
                    stream.write(file.read_bytes())

    await asyncio.to_thread(written)
    read = await lake.reader.read(catalog(lake).source("weather"), ["origin", "wind"])
    assert [("BOS", 10.0), ("BOS", 30.0), ("BOS", 40.0), ("JFK", 1.0), ("JFK", 2.0), ("JFK", 4.0)] == sorted(
        read.select("origin", "wind").rows()
    )
    assert len([f for f in lake.files("weather") if f.endswith(".parquet")]) > 6


async def test_hive_partitions_are_read_as_columns_of_the_declared_type(lake: DeltaLake) -> None:
    frames: Sequence[tuple[str, pl.DataFrame]] = [
        ("origin=JFK/year=2013/", weather([("-", 1, 1.0), ("-", 3, 3.0)])),
        ("origin=LA%20X/year=2013/", weather([("-", 2, 20.0)])),
        ("origin=LA%20X/year=2014/", weather([("-", 9000, 21.0)])),
        ("origin=__HIVE_DEFAULT_PARTITION__/year=2013/", weather([("-", 1, 50.0)])),
    ]
    for number, (folder, frame) in enumerate(frames):
        lake.tables.write(f"{lake.uri}{folder}part-{number}.parquet", frame.drop("origin"))
    lake.tables.write(f"{lake.uri}_temporary/part-9.parquet", weather([("EWR", 1, 9.0)]))
    known = catalog(lake, TableFormat.PARQUET, year=DataType.INT64)
    read = await lake.reader.read(known.source("weather"), ["origin", "year", "wind"])
    rows = read.select("origin", "year", "wind").sort("wind").rows()
    assert [
        ("JFK", 2013, 1.0),
        ("JFK", 2013, 3.0),
        ("LA X", 2013, 20.0),
        ("LA X", 2014, 21.0),
        (None, 2013, 50.0),
    ] == rows
    low = round(at(2).timestamp() * 1_000_000)
    some = await lake.reader.read(known.source("weather"), ["wind"], low=low, high=low + 3_600_000_001)
    assert {3.0, 20.0} == set(some["wind"])
