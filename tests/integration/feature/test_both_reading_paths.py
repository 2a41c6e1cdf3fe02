"""Tables on the object store: what is materialized online equals what a training set reads."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

import flywheel as fw
from flywheel.tables import to_dict
from flywheel_feature.definitions.model import DataType, ParquetSource, TableFormat
from flywheel_feature.store.s3.table_files import S3TableFiles
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import training_set_pb2 as ts
from tests.support.builders.both_paths import KEY, T0, TIME, BothPaths
from tests.support.builders.delta_lake import DeltaLake
from tests.support.builders.parquet_types import PARQUET, VECTOR_SIZE

D = DataType


@pytest.fixture
def lake(s3: S3, bucket: str) -> DeltaLake:
    return DeltaLake(s3, bucket)


@pytest.fixture
def tables(s3: S3, bucket: str) -> S3TableFiles:
    return S3TableFiles.connect(
        endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, bucket=bucket
    )


def rows(*keys: str, **columns: Any) -> pa.Table:
    return pa.table({KEY: list(keys), TIME: pa.array([T0] * len(keys)), **columns})


@pytest.mark.parametrize("spelling", ["s3://{}/t", "s3://{}/t/", "s3://{}//t//"])
async def test_delta_files_that_were_removed_are_on_no_path(
    lake: DeltaLake, tables: S3TableFiles, spelling: str
) -> None:
    uri = spelling.format(lake.bucket)

    def commit(table: pa.Table, mode: Any) -> None:
        options = {**lake.options}
        write_deltalake(
            f"s3://{lake.bucket}/t",
            table,
            mode=mode,
            partition_by=[KEY],
            storage_options=options,
            schema_mode="merge" if mode == "append" else "overwrite",
        )

    def write() -> None:
        commit(rows("old", "01", x=[9.0, 9.0]), "overwrite")
        commit(rows("01", "1", "gone", x=[1.0, 2.0, 3.0]), "overwrite")
        DeltaTable(f"s3://{lake.bucket}/t", storage_options=lake.options).delete(f"{KEY} = 'gone'")
        commit(rows("2", x=[4.0], added=["new"]), "append")

    await asyncio.to_thread(write)
    kind = ParquetSource(uri, TableFormat.DELTA)
    both = BothPaths(tables, kind, {"x": D.FLOAT64, "added": D.STRING})
    assert await both.materialize() == ""
    expected = {"01": (1.0, None), "1": (2.0, None), "2": (4.0, "new")}
    absent = dict.fromkeys(["old", "gone"], (None, None))
    assert await both.online([*expected, *absent]) == expected
    assert await both.offline([*expected, *absent]) == expected | absent


@pytest.mark.parametrize("spelling", ["s3://{}/t", "s3://{}/t/"])
async def test_folders_and_added_columns_are_read_on_both_paths(
    lake: DeltaLake, tables: S3TableFiles, spelling: str
) -> None:
    for key, file in (("01", rows("-", x=[1.0])), ("1", rows("-", x=[2.0], added=["new"]))):
        await asyncio.to_thread(_write, tables, f"{lake.bucket}/t/{KEY}={key}/a.parquet", file.drop([KEY]))
    kind = ParquetSource(spelling.format(lake.bucket))
    both = BothPaths(tables, kind, {"x": D.FLOAT64, "added": D.STRING})
    assert await both.materialize() == ""
    expected = {"01": (1.0, None), "1": (2.0, "new")}
    assert await both.online(["01", "1"]) == await both.offline(["01", "1"]) == expected


async def test_every_parquet_type_is_read_alike_on_both_paths(lake: DeltaLake, tables: S3TableFiles) -> None:
    columns: dict[str, pa.Array] = {}
    types: dict[str, DataType] = {}
    wanted: list[Any] = []
    for place, (array, expected) in enumerate(PARQUET.values()):
        for kind, value in expected.items():
            name = f"c{place}_{kind.name.lower()}"
            columns[name], types[name] = array, kind
            wanted.append(value)
    await asyncio.to_thread(_write, tables, f"{lake.bucket}/t/a.parquet", rows("A", "B", **columns))
    both = BothPaths(tables, ParquetSource(f"s3://{lake.bucket}/t"), types, vector_size=VECTOR_SIZE)
    assert await both.materialize() == ""
    found = {"A": (None,) * len(wanted), "B": tuple(wanted)}
    assert await both.online(["A", "B"]) == await both.offline(["A", "B"]) == found


async def test_mapped_columns_are_stored_with_their_source(client: fw.Client, lake: DeltaLake) -> None:
    columns = {"Store Nr": "store", "2nd Größe": "size"}
    source = fw.DeltaSource(
        "stores",
        {"store": fw.STRING, "at": fw.TIMESTAMP, "size": fw.FLOAT64},
        timestamp="at",
        uri=f"s3://{lake.bucket}/t",
        columns=columns,
    )
    view = fw.BatchView("facts", fw.Entity("store", {"store": fw.STRING}), source, {"size": fw.FLOAT64})
    await client.apply(fw.compile_definitions([view, fw.FeatureSet("all", ["facts:size"])], "default"))
    listed = await client.feature.GetSource(pb.GetSourceRequest(name="projects/default/sources/stores"))
    assert dict(listed.source.parquet.columns) == columns

    def write() -> None:
        table = rows("A", "B", x=[1.5, 2.5]).rename_columns(["Store Nr", "at", "2nd Größe"])
        write_deltalake(f"s3://{lake.bucket}/t", table, storage_options=lake.options)
        spine = pa.table({KEY: ["A", "B", "C"], "when": [T0 + timedelta(days=1)] * 3})
        _write(lake.tables, f"{lake.bucket}/spine.parquet", spine)

    await asyncio.to_thread(write)
    await client.push("views/facts", {"store": ["C"], "at": [T0], "size": [3.5]}, source.schema)
    await client.materialize("facts")
    answer = await client.online_features("all", {"store": ["A", "B", "C"]})
    assert to_dict(answer.features)["facts__size"] == [1.5, 2.5, 3.5]
    file = ts.FileSpine(uri=f"s3://{lake.bucket}/spine.parquet", timestamp_field="when")
    built = await client.build_training_set("all", ts.Spine(file=file))
    read = await asyncio.to_thread(lake.tables.read, built.uri, [KEY, "facts__size"])
    assert sorted(read.rows()) == [("A", 1.5), ("B", 2.5), ("C", 3.5)]
    before = ts.FileSpine(uri=f"s3://{lake.bucket}/spine.parquet", ignored_columns=["when"])
    before.as_of.FromDatetime(T0 - timedelta(days=1))
    built = await client.build_training_set("all", ts.Spine(file=before))
    read = await asyncio.to_thread(lake.tables.read, built.uri, [KEY, "facts__size"])
    assert sorted(read.rows()) == [("A", None), ("B", None), ("C", None)]


def _write(tables: S3Tables, path: str, table: pa.Table) -> None:
    with tables._fs.open_output_stream(path) as stream:
        pq.write_table(table, stream)
