"""Contract tests for readers of training sets: in memory, and from Parquet on S3."""

from __future__ import annotations

import io

import polars as pl
import pytest

from flywheel_common.config import S3Settings
from flywheel_common.storage.s3 import arrow_filesystem, object_store
from flywheel_trainer.fakes.tables import MemoryTables
from flywheel_trainer.pipelines.comparison import TableReader
from flywheel_trainer.store.s3.tables import ParquetTables

FRAME = pl.DataFrame({"v__x": [1.5, None, -2.0], "v__c": ["AA", "ü", None], "label": [0, 1, 1]})


@pytest.fixture(params=["memory", "s3"])
async def source(request: pytest.FixtureRequest) -> tuple[TableReader, str]:
    """A reader, and the bucket in which sets/one/ contains FRAME in two files."""
    if request.param == "memory":
        tables = MemoryTables()
        tables.known["s3://b/sets/one/"] = FRAME
        return tables, "b"
    settings: S3Settings = request.getfixturevalue("s3_settings")
    async with object_store(settings) as objects:
        for number, rows in enumerate((FRAME[:2], FRAME[2:])):
            content = io.BytesIO()
            rows.write_parquet(content)
            await objects.put(f"sets/one/part-{number}.parquet", content.getvalue())
    files = arrow_filesystem(settings)
    return ParquetTables(lambda: files), settings.s3_bucket


def test_columns_are_read_once_in_order_without_absent_ones(
    source: tuple[TableReader, str],
) -> None:
    read, bucket = source
    found = read(f"s3://{bucket}/sets/one/", ["label", "v__none", "v__x", "label"])
    assert ["label", "v__x"] == found.columns
    assert FRAME.select("label", "v__x").to_dict(as_series=False) == found.to_dict(as_series=False)
    assert FRAME.to_dict(as_series=False) == read(f"s3://{bucket}/sets/one/", FRAME.columns).to_dict(
        as_series=False
    )


def test_an_address_without_files_raises_file_not_found(source: tuple[TableReader, str]) -> None:
    read, bucket = source
    with pytest.raises(FileNotFoundError):
        read(f"s3://{bucket}/sets/none/", ["label"])
