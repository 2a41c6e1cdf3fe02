"""Tables that others wrote: plain folders, hive partitions, Delta tables, and what is refused."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.fs as fs
import pytest
from deltalake import write_deltalake

from flywheel_common.errors import FailedPrecondition, NotFound
from flywheel_feature.definitions.model import DataType, Field, ParquetSource, Source, TableFormat
from flywheel_feature.fakes.archive import MemoryArchive
from flywheel_feature.store.s3.delta import storage_options
from flywheel_feature.store.s3.tables import SMALL_BYTES, S3Tables
from flywheel_feature.tables.sources import SourceReader
from flywheel_local.s3 import S3

START = datetime(2013, 1, 1, tzinfo=UTC)
UTC_US = pl.Datetime("us", "UTC")
D = DataType


class Lake:
    """A bucket that others write to."""

    def __init__(self, s3: S3) -> None:
        self.bucket = f"test-{uuid.uuid4().hex[:16]}"
        fs.S3FileSystem(
            access_key=s3.access_key, secret_key=s3.secret_key, scheme="http", allow_bucket_creation=True,
            endpoint_override=s3.endpoint.removeprefix("http://"),
        ).create_dir(self.bucket)  # fmt: skip
        self.tables = S3Tables(
            endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, bucket=self.bucket
        )
        # Writing needs one more word: the store has no preconditions.
        options = storage_options(s3.endpoint, s3.access_key, s3.secret_key, 30.0)
        self.options = {**options, "aws_s3_allow_unsafe_rename": "true"}
        self.uri = f"s3://{self.bucket}/weather"

    def commit(self, rows: list[tuple[Any, ...]], **options: Any) -> None:
        write_deltalake(self.uri, pa.table(frame(rows).to_arrow()), storage_options=self.options, **options)

    def source(self, table_format: TableFormat, **types: DataType) -> Source:
        known = {"origin": D.STRING, "hour": D.TIMESTAMP, "wind": D.FLOAT64, **types}
        schema = tuple(Field(name, kind) for name, kind in known.items())
        return Source("p", "weather", schema, "hour", "", ParquetSource(f"{self.uri}/", table_format))

    @property
    def reader(self) -> SourceReader:
        return SourceReader(self.tables, MemoryArchive())


@pytest.fixture
def lake(s3: S3) -> Lake:
    return Lake(s3)


def frame(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(
        [(o, START + timedelta(hours=h), w) for o, h, w in rows],
        schema={"origin": pl.String, "hour": UTC_US, "wind": pl.Float64},
        orient="row",
    )


def values(rows: pl.DataFrame) -> list[tuple[Any, ...]]:
    return sorted(
        (o, round((h - START) / timedelta(hours=1)), w)
        for o, h, w in rows.select("origin", "hour", "wind").rows()
    )


ROWS = [("JFK", 1, 1.0), ("LGA", 2, 2.0), ("JFK", 3, 3.0)]


@pytest.mark.parametrize("partition_by", [None, ["origin"]])
async def test_a_delta_table_is_read_as_its_log_says(lake: Lake, partition_by: list[str] | None) -> None:
    lake.commit([("old", 0, 0.0)], partition_by=partition_by)
    # Files that an overwrite left behind are no part of the table, whatever lies in the folder.
    lake.commit(ROWS[:2], mode="overwrite", partition_by=partition_by)
    lake.commit(ROWS[2:], mode="append", partition_by=partition_by)
    source = lake.source(TableFormat.DELTA)
    assert values(await lake.reader.read(source, ["origin", "wind"])) == sorted(ROWS)
    low = round(START.timestamp() * 1e6) + 2 * 3600 * 1_000_000
    assert values(await lake.reader.read(source, ["origin", "wind"], low=low)) == sorted(ROWS[1:])
    pieces = await lake.reader.pieces(source, ["origin", "wind"], 1)
    assert values(lake.reader.read_pieces(source, ["origin", "wind"], pieces)) == sorted(ROWS)


async def test_one_job_reads_one_version_and_the_next_job_the_newest(lake: Lake) -> None:
    lake.commit(ROWS[:1])
    source = lake.source(TableFormat.DELTA)
    job = lake.reader.pinned()
    assert values(await job.read(source, ["origin", "wind"])) == ROWS[:1]
    lake.commit(ROWS[1:], mode="append")
    assert values(await job.read(source, ["origin", "wind"])) == ROWS[:1]
    assert {"projects/p/sources/weather": 0} == job.versions
    later = lake.reader.pinned()
    assert values(await later.read(source, ["origin", "wind"])) == sorted(ROWS)
    assert {"projects/p/sources/weather": 1} == later.versions


async def test_a_column_that_a_delta_table_got_later_is_null_before(lake: Lake) -> None:
    lake.commit(ROWS[:1])
    wider = frame(ROWS[1:2]).with_columns(gust=pl.lit(9.0))
    write_deltalake(
        lake.uri, pa.table(wider.to_arrow()), mode="append", schema_mode="merge", storage_options=lake.options
    )
    rows = await lake.reader.read(lake.source(TableFormat.DELTA, gust=D.FLOAT64), ["origin", "gust"])
    assert [("JFK", None), ("LGA", 9.0)] == sorted(rows.select("origin", "gust").rows())


async def test_a_delta_table_that_asks_for_more_of_its_readers_is_refused(lake: Lake) -> None:
    lake.commit(
        ROWS, configuration={"delta.columnMapping.mode": "none", "delta.enableDeletionVectors": "true"}
    )
    with pytest.raises(FailedPrecondition, match="deletionVectors") as refused:
        await lake.reader.read(lake.source(TableFormat.DELTA), ["wind"])
    assert "UNSUPPORTED_FORMAT" == refused.value.reason


async def test_a_delta_table_that_is_not_there_is_not_found(lake: Lake) -> None:
    with pytest.raises(NotFound) as absent:
        await lake.reader.read(lake.source(TableFormat.DELTA), ["wind"])
    assert "UNKNOWN_TABLE" == absent.value.reason


async def test_a_column_whose_type_changed_between_files_is_read_as_declared(lake: Lake) -> None:
    lake.tables.write(f"{lake.uri}/a.parquet", frame(ROWS[:1]).cast({"wind": pl.Float32}))
    lake.tables.write(f"{lake.uri}/b.parquet", frame(ROWS[1:]).cast({"wind": pl.Int16}))
    assert values(await lake.reader.read(lake.source(TableFormat.PARQUET), ["origin", "wind"])) == sorted(
        ROWS
    )


@pytest.mark.parametrize(
    ("kind", "folder", "expected"),
    [
        (D.INT64, "2013", 2013),
        # Declared as text it stays the text of the folder, leading zero and all.
        (D.STRING, "007", "007"),
        (D.STRING, "a%20b%2Fc", "a b/c"),
        (D.FLOAT64, "1.5", 1.5),
        (D.BOOL, "true", True),
        (D.TIMESTAMP, "2013-01-02", START + timedelta(days=1)),
        (D.STRING, "__HIVE_DEFAULT_PARTITION__", None),
        (D.INT64, "__HIVE_DEFAULT_PARTITION__", None),
    ],
)
async def test_hive_folders_are_columns_of_their_declared_type(
    lake: Lake, kind: DataType, folder: str, expected: Any
) -> None:
    lake.tables.write(f"{lake.uri}/year={folder}/month=1/part.parquet", frame(ROWS))
    source = lake.source(TableFormat.PARQUET, year=kind, month=D.INT64)
    rows = await lake.reader.read(source, ["year", "month", "wind"])
    assert [(expected, 1, w) for _, _, w in ROWS] == rows.select("year", "month", "wind").rows()


async def test_a_hive_folder_that_is_no_value_of_its_type_is_a_mismatch(lake: Lake) -> None:
    lake.tables.write(f"{lake.uri}/year=soon/part.parquet", frame(ROWS))
    with pytest.raises(FailedPrecondition) as mismatch:
        await lake.reader.read(lake.source(TableFormat.PARQUET, year=D.INT64), ["year"])
    assert "SOURCE_MISMATCH" == mismatch.value.reason


async def test_files_of_any_size_are_read_in_the_order_asked_and_what_one_lacks_is_null(lake: Lake) -> None:
    """Small files are fetched as a whole, large ones a column at a time."""
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
    assert {"s", "l", "n"} == set(read.columns)
    with pytest.raises(NotFound):
        lake.tables.read_files([f"s3://{lake.bucket}/files/none.parquet"], ["n"])
