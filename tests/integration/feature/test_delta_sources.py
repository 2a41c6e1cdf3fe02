"""Sources as others write them: Delta tables and folders of hive partitions, read at one version by each job."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.fs as fs
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
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_feature.tables.sources import SourceReader
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import training_set_pb2 as ts

START = datetime(2013, 1, 1, tzinfo=UTC)
SOURCE = "projects/default/sources/weather"


def at(hour: float) -> datetime:
    return START + timedelta(hours=hour)


def weather(*rows: tuple[str, float, float | None]) -> pl.DataFrame:
    """(origin, hour, wind)."""
    return pl.DataFrame(
        [(origin, at(hour), wind) for origin, hour, wind in rows],
        schema={"origin": pl.String, "hour": pl.Datetime("us", "UTC"), "wind": pl.Float64},
        orient="row",
    )


class Lake:
    """A bucket in which another program writes the Delta table `weather`, partitioned by origin."""

    def __init__(self, s3: S3, bucket: str) -> None:
        self.bucket = bucket
        self.uri = f"s3://{bucket}/weather/"
        self.tables = S3Tables(
            endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, bucket=bucket
        )
        self.options = {
            "aws_endpoint": s3.endpoint,
            "aws_access_key_id": s3.access_key,
            "aws_secret_access_key": s3.secret_key,
            "aws_region": "us-east-1",
            "allow_http": "true",
            "aws_virtual_hosted_style_request": "false",
            "aws_s3_allow_unsafe_rename": "true",
        }

    def write(self, mode: str, *rows: tuple[str, float, float | None]) -> None:
        write_deltalake(
            self.uri,
            weather(*rows).to_arrow(),
            partition_by=["origin"],
            mode=mode,  # type: ignore[arg-type]
            storage_options=self.options,
        )

    def table(self) -> DeltaTable:
        return DeltaTable(self.uri, storage_options=self.options)

    def files(self, prefix: str) -> list[str]:
        found = self.tables._fs.get_file_info(
            fs.FileSelector(f"{self.bucket}/{prefix}", recursive=True, allow_not_found=True)
        )
        return sorted(f.path for f in found if f.type == fs.FileType.File)

    def history(self) -> None:
        """Four versions: rows that are overwritten, new ones, some of them deleted, some appended."""
        self.write("error", ("JFK", 1, 99.0), ("LA X", 1, 98.0), ("BOS", 1, 97.0))
        self.write("overwrite", ("JFK", 1, 1.0), ("ORD", 3, 3.0), ("LA X", 2, 20.0), ("LA X", 4, None))
        # A whole partition: rewriting files asks the store for ranges in a way that it does not answer.
        self.table().delete("origin = 'ORD'")
        self.write("append", ("JFK", 5, 5.0), ("EWR", 1, 7.0))

    def spine(self, *rows: tuple[str, float]) -> str:
        uri = f"s3://{self.bucket}/spines/one.parquet"
        self.tables.write(
            uri, pl.DataFrame({"origin": [r[0] for r in rows], "when": [at(r[1]) for r in rows]})
        )
        return uri


@pytest.fixture
def lake(s3: S3, bucket: str) -> Lake:
    return Lake(s3, bucket)


ASKED = [
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
    # The overwritten 97, 98 and 99 are nowhere, the deleted 3 is not, a null value is a value.
    ("BOS", 6.0): None, ("EWR", 6.0): 7.0, ("JFK", 0.5): None, ("JFK", 4.0): 1.0, ("JFK", 6.0): 5.0, ("LA X", 3.0): 20.0,
    ("LA X", 6.0): None, ("ORD", 6.0): None,
}  # fmt: skip


def definitions(lake: Lake) -> Any:
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


async def test_a_training_set_and_the_online_store_hold_what_a_delta_table_holds_now(
    client: fw.Client, lake: Lake
) -> None:
    await asyncio.to_thread(lake.history)
    await client.apply(definitions(lake))
    spine = ts.Spine(file=ts.FileSpine(uri=lake.spine(*ASKED), timestamp_field="when"))
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


async def test_iceberg_is_refused_when_it_is_applied(client: fw.Client, lake: Lake) -> None:
    wanted = definitions(lake)
    wanted.sources[0].parquet.format = 3
    answer = await client.feature.ApplyDefinitions(
        pb.ApplyDefinitionsRequest(parent="projects/default", definitions=wanted, validate_only=True)
    )
    (violation,) = answer.violations
    assert (SOURCE, "parquet.format") == (violation.name, violation.field)
    assert "DELTA" in violation.message


def catalog(lake: Lake, table_format: TableFormat = TableFormat.DELTA, **fields: DataType) -> Catalog:
    schema = {
        "origin": DataType.STRING,
        "hour": DataType.TIMESTAMP,
        "wind": DataType.FLOAT64,
        **fields,
    }
    source = Source(
        "default", "weather", tuple(Field(n, t) for n, t in schema.items()), "hour", "",
        ParquetSource(lake.uri, table_format),
    )  # fmt: skip
    wind = Feature("wind", DataType.FLOAT64, field="wind")
    view = View("default", "weather", "origin", BatchView("weather", (wind,)), version=1, features=(wind,))
    flights = FeatureSet(
        "default", "flights", ("weather:wind",), version=1, views=(VersionRef("weather", 1),),
        schema=(Field("weather__wind", DataType.FLOAT64),), join_keys=(Field("origin", DataType.STRING),),
    )  # fmt: skip
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
    pass


class Job:
    """A job whose process dies where a test says so; what it saved stays."""

    def __init__(self, checkpoint: bytes = b"", dies_at: str = "") -> None:
        self.checkpoint = checkpoint
        self.percents: list[int] = []
        self._dies_at = dies_at

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None:
        self.percents.append(done)
        if self._dies_at and message.startswith(self._dies_at):
            raise Killed

    def check_cancelled(self) -> None:
        pass

    async def save_checkpoint(self, checkpoint: bytes) -> None:
        self.checkpoint = checkpoint


class Sets:
    def __init__(self, lake: Lake) -> None:
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
        self._spine = FileSpine(lake.spine(*ASKED), "when")

    def request(self, training_set_id: str) -> TrainingSetRequest:
        return TrainingSetRequest("default", training_set_id, "flights", 0, self._spine)


async def test_a_job_that_starts_again_reads_the_version_that_it_began_with(lake: Lake) -> None:
    await asyncio.to_thread(lake.history)
    sets = Sets(lake)
    undisturbed = await sets.builder.build(sets.request("undisturbed"), Job())
    dying = Job(dies_at="reading the spine")
    with pytest.raises(Killed):
        await sets.builder.build(sets.request("resumed"), dying)
    await asyncio.to_thread(lake.write, "append", ("BOS", 2, 2.0))
    resumed = await sets.builder.build(sets.request("resumed"), Job(dying.checkpoint))
    assert undisturbed.content_hash == resumed.content_hash
    assert {SOURCE: 3} == resumed.source_versions
    later = await sets.builder.build(sets.request("later"), Job())
    assert {SOURCE: 4} == later.source_versions
    assert undisturbed.content_hash != later.content_hash
    again = await sets.builder.build(sets.request("again"), Job())
    assert later.content_hash == again.content_hash


async def _build(sets: Sets) -> Any:
    return await sets.builder.build(sets.request("broken"), Job())


@pytest.mark.parametrize(
    ("harm", "reason", "named"),
    [
        ("vacuum", "TABLE_CHANGED", "origin=JFK"),
        ("half", "CORRUPT_TABLE", "origin=JFK"),
        ("log", "CORRUPT_TABLE", "Delta log"),
        ("absent", "UNKNOWN_TABLE", "weather"),
    ],
)
async def test_a_broken_delta_table_is_named_and_nothing_is_left(
    lake: Lake, harm: str, reason: str, named: str
) -> None:
    sets = Sets(lake)
    if harm != "absent":
        await asyncio.to_thread(lake.write, "error", ("JFK", 1, 1.0), ("BOS", 2, 2.0))
    files = lake.tables._fs
    data = [f for f in lake.files("weather") if "JFK" in f]
    log = lake.files("weather/_delta_log")
    match harm:
        case "vacuum":
            files.delete_file(data[0])
        case "half":
            whole = files.open_input_file(data[0]).read()
            with files.open_output_stream(data[0]) as stream:
                stream.write(whole[: len(whole) // 2])
        case "log":
            with files.open_output_stream(log[0]) as stream:
                stream.write(b'{"add": half')
    with pytest.raises(FlywheelError, match=named) as refused:
        await _build(sets)
    assert reason == refused.value.reason
    assert [] == lake.files("training-sets")
    assert await sets.registered.get("default", "broken") is None


async def test_a_table_that_asks_for_what_cannot_be_read_is_refused_and_never_read_wrongly(
    lake: Lake,
) -> None:
    def create() -> None:
        lake.write("error", ("JFK", 1, 1.0))
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


async def test_files_that_were_rewritten_count_once(lake: Lake, tmp_path: Path) -> None:
    """Written, rewritten by a delete and compacted on a disk, then copied: three generations of files lie in the folder."""

    def written() -> None:
        local = str(tmp_path / "weather")
        for hour in range(1, 5):
            rows = weather(("JFK", hour, float(hour)), ("BOS", hour, 10.0 * hour))
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
    reader = SourceReader(lake.tables, MemoryArchive())
    read = await reader.read(catalog(lake).source("weather"), ["origin", "wind"])
    assert [("BOS", 10.0), ("BOS", 30.0), ("BOS", 40.0), ("JFK", 1.0), ("JFK", 2.0), ("JFK", 4.0)] == sorted(
        read.select("origin", "wind").rows()
    )
    assert len([f for f in lake.files("weather") if f.endswith(".parquet")]) > 6


async def test_folders_of_hive_partitions_are_columns_of_the_declared_type(lake: Lake) -> None:
    frames: Sequence[tuple[str, pl.DataFrame]] = [
        ("origin=JFK/year=2013/", weather(("-", 1, 1.0), ("-", 3, 3.0))),
        ("origin=LA%20X/year=2013/", weather(("-", 2, 20.0))),
        ("origin=LA%20X/year=2014/", weather(("-", 9000, 21.0))),
        ("origin=__HIVE_DEFAULT_PARTITION__/year=2013/", weather(("-", 1, 50.0))),
    ]
    for number, (folder, frame) in enumerate(frames):
        lake.tables.write(f"{lake.uri}{folder}part-{number}.parquet", frame.drop("origin"))
    lake.tables.write(f"{lake.uri}_temporary/part-9.parquet", weather(("EWR", 1, 9.0)))
    known = catalog(lake, TableFormat.PARQUET, year=DataType.INT64)
    reader = SourceReader(lake.tables, MemoryArchive())
    read = await reader.read(known.source("weather"), ["origin", "year", "wind"])
    rows = read.select("origin", "year", "wind").sort("wind").rows()
    assert [
        ("JFK", 2013, 1.0),
        ("JFK", 2013, 3.0),
        ("LA X", 2013, 20.0),
        ("LA X", 2014, 21.0),
        (None, 2013, 50.0),
    ] == rows
    low = round(at(2).timestamp() * 1_000_000)
    some = await reader.read(known.source("weather"), ["wind"], low=low, high=low + 3_600_000_001)
    assert {3.0, 20.0} == set(some["wind"])
