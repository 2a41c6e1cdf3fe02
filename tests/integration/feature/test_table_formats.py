"""Reading tables that other programs wrote: folders, Hive partitions, Delta tables, and refused ones."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from flywheel_common.errors import FailedPrecondition, NotFound
from flywheel_feature.definitions.model import DataType, Field, ParquetSource, Source, TableFormat
from flywheel_feature.store.s3.tables import SMALL_BYTES
from flywheel_local.s3 import S3
from tests.support.builders.delta_lake import START, DeltaLake, weather

D = DataType


@pytest.fixture
def lake(s3: S3, bucket: str) -> DeltaLake:
    return DeltaLake(s3, bucket)


def source_of(lake: DeltaLake, table_format: TableFormat, **types: DataType) -> Source:
    known = {"origin": D.STRING, "hour": D.TIMESTAMP, "wind": D.FLOAT64, **types}
    schema = tuple(Field(name, kind) for name, kind in known.items())
    return Source("p", "weather", schema, "hour", "", ParquetSource(lake.uri, table_format))


def values(rows: pl.DataFrame) -> list[tuple[Any, ...]]:
    return sorted(
        (o, round((h - START) / timedelta(hours=1)), w)
        for o, h, w in rows.select("origin", "hour", "wind").rows()
    )


ROWS = [("JFK", 1, 1.0), ("LGA", 2, 2.0), ("JFK", 3, 3.0)]


@pytest.mark.parametrize("partition_by", [None, ["origin"]])
async def test_a_delta_table_is_read_according_to_its_log(
    lake: DeltaLake, partition_by: list[str] | None
) -> None:
    lake.commit([("old", 0, 0.0)], partition_by=partition_by)
    # The files of the overwritten version are still in the folder, but not part of the table.
    lake.commit(ROWS[:2], mode="overwrite", partition_by=partition_by)
    lake.commit(ROWS[2:], mode="append", partition_by=partition_by)
    source = source_of(lake, TableFormat.DELTA)
    assert values(await lake.reader.read(source, ["origin", "wind"])) == sorted(ROWS)
    low = round(START.timestamp() * 1e6) + 2 * 3600 * 1_000_000
    assert values(await lake.reader.read(source, ["origin", "wind"], low=low)) == sorted(ROWS[1:])
    pieces = await lake.reader.pieces(source, ["origin", "wind"], 1)
    assert values(lake.reader.read_pieces(source, ["origin", "wind"], pieces)) == sorted(ROWS)


async def test_one_job_reads_one_version_and_the_next_job_the_newest(lake: DeltaLake) -> None:
    lake.commit(ROWS[:1])
    source = source_of(lake, TableFormat.DELTA)
    job = lake.reader.pinned()
    assert values(await job.read(source, ["origin", "wind"])) == ROWS[:1]
    lake.commit(ROWS[1:], mode="append")
    assert values(await job.read(source, ["origin", "wind"])) == ROWS[:1]
    assert {"projects/p/sources/weather": 0} == job.versions
    later = lake.reader.pinned()
    assert values(await later.read(source, ["origin", "wind"])) == sorted(ROWS)
    assert {"projects/p/sources/weather": 1} == later.versions


async def test_a_column_added_to_a_delta_table_is_null_in_older_rows(lake: DeltaLake) -> None:
    lake.commit(ROWS[:1])
    wider = weather(ROWS[1:2]).with_columns(gust=pl.lit(9.0))
    write_deltalake(
        lake.uri, pa.table(wider.to_arrow()), mode="append", schema_mode="merge", storage_options=lake.options
    )
    rows = await lake.reader.read(source_of(lake, TableFormat.DELTA, gust=D.FLOAT64), ["origin", "gust"])
    assert [("JFK", None), ("LGA", 9.0)] == sorted(rows.select("origin", "gust").rows())


async def test_a_delta_table_with_deletion_vectors_is_refused(lake: DeltaLake) -> None:
    lake.commit(
        ROWS, configuration={"delta.columnMapping.mode": "none", "delta.enableDeletionVectors": "true"}
    )
    with pytest.raises(FailedPrecondition, match="deletionVectors") as refused:
        await lake.reader.read(source_of(lake, TableFormat.DELTA), ["wind"])
    assert "UNSUPPORTED_FORMAT" == refused.value.reason


async def test_a_missing_delta_table_is_not_found(lake: DeltaLake) -> None:
    with pytest.raises(NotFound) as absent:
        await lake.reader.read(source_of(lake, TableFormat.DELTA), ["wind"])
    assert "UNKNOWN_TABLE" == absent.value.reason


async def test_a_column_with_different_types_per_file_is_read_as_declared(lake: DeltaLake) -> None:
    lake.tables.write(f"{lake.uri}a.parquet", weather(ROWS[:1]).cast({"wind": pl.Float32}))
    lake.tables.write(f"{lake.uri}b.parquet", weather(ROWS[1:]).cast({"wind": pl.Int16}))
    assert values(await lake.reader.read(source_of(lake, TableFormat.PARQUET), ["origin", "wind"])) == sorted(
        ROWS
    )


@pytest.mark.parametrize(
    ("kind", "folder", "expected"),
    [
        (D.INT64, "2013", 2013),
        # Declared as text, the value is the text of the folder with its leading zeros.
        (D.STRING, "007", "007"),
        (D.STRING, "a%20b%2Fc", "a b/c"),
        (D.FLOAT64, "1.5", 1.5),
        (D.BOOL, "true", True),
        (D.TIMESTAMP, "2013-01-02", START + timedelta(days=1)),
        (D.STRING, "__HIVE_DEFAULT_PARTITION__", None),
        (D.INT64, "__HIVE_DEFAULT_PARTITION__", None),
    ],
)
async def test_hive_folders_are_columns_of_the_declared_type(
    lake: DeltaLake, kind: DataType, folder: str, expected: Any
) -> None:
    lake.tables.write(f"{lake.uri}year={folder}/month=1/part.parquet", weather(ROWS))
    source = source_of(lake, TableFormat.PARQUET, year=kind, month=D.INT64)
    rows = await lake.reader.read(source, ["year", "month", "wind"])
    assert [(expected, 1, w) for _, _, w in ROWS] == rows.select("year", "month", "wind").rows()


async def test_a_hive_folder_that_does_not_parse_is_a_source_mismatch(lake: DeltaLake) -> None:
    lake.tables.write(f"{lake.uri}year=soon/part.parquet", weather(ROWS))
    with pytest.raises(FailedPrecondition) as mismatch:
        await lake.reader.read(source_of(lake, TableFormat.PARQUET, year=D.INT64), ["year"])
    assert "SOURCE_MISMATCH" == mismatch.value.reason


async def test_files_are_read_in_the_given_order_with_null_for_missing_columns(lake: DeltaLake) -> None:
    """Small files are read in one request, large ones column by column."""
    rows = SMALL_BYTES // 4
    chance = random.Random(3)
    large = pl.DataFrame(
        {"n": range(rows), "noise": [chance.random() for _ in range(rows)], "l": [[1, None]] * rows}
    )
    small = pl.DataFrame({"l": [[2], None], "s": ["a", "b"], "n": [-1, -2]})
    uris = [f"s3://{lake.bucket}/files/{name}.parquet" for name in ("b", "a")]
    lake.tables.write(uris[0], large)
    lake.tables.write(uris[1], small)
    sizes = {i.path: i.size for i in lake.tables._fs.get_file_info([u.removeprefix("s3://") for u in uris])}
    assert [True, False] == [size > SMALL_BYTES for size in sizes.values()]
    read = lake.tables.read_files([uris[0], uris[1], uris[1]], ["s", "l", "n", "nowhere"])
    assert [*range(rows), -1, -2, -1, -2] == read["n"].to_list()
    assert [None, None, "a", "b", "a", "b"] == read["s"].to_list()[rows - 2 :]
    assert [[1, None], [2], None, [2], None] == read["l"].to_list()[rows - 1 :]
    assert ["s", "l", "n", "nowhere"] == read.columns
    assert read["nowhere"].null_count() == read.height
    with pytest.raises(NotFound):
        lake.tables.read_files([f"s3://{lake.bucket}/files/none.parquet"], ["n"])
