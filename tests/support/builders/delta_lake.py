"""The table `weather` in a bucket, written as another program would: Delta or Hive folders."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.fs as fs
from deltalake import DeltaTable, write_deltalake

from flywheel_feature.fakes.archive import MemoryArchive
from flywheel_feature.store.s3.delta import storage_options
from flywheel_feature.tables.sources import SourceReader
from flywheel_local.s3 import S3
from tests.support.servers.feature import s3_tables

START = datetime(2013, 1, 1, tzinfo=UTC)
Row = tuple[str, float, float | None]
"""(origin, hours after START, wind)."""


def at(hours: float) -> datetime:
    """The time so many hours after START."""
    return START + timedelta(hours=hours)


def weather(rows: Iterable[Row]) -> pl.DataFrame:
    return pl.DataFrame(
        [(origin, at(hour), wind) for origin, hour, wind in rows],
        schema={"origin": pl.String, "hour": pl.Datetime("us", "UTC"), "wind": pl.Float64},
        orient="row",
    )


class DeltaLake:
    """A bucket with the table `weather` at `uri`."""

    def __init__(self, s3: S3, bucket: str) -> None:
        self.bucket = bucket
        self.uri = f"s3://{bucket}/weather/"
        self.tables = s3_tables(s3, bucket)
        self.options = storage_options(s3.endpoint, s3.access_key, s3.secret_key, 30.0)

    @property
    def reader(self) -> SourceReader:
        return SourceReader(self.tables, MemoryArchive())

    def commit(self, rows: Iterable[Row], **options: Any) -> None:
        """Write a version of the Delta table; `options` are those of write_deltalake."""
        arrow = pa.table(weather(rows).to_arrow())
        write_deltalake(self.uri, arrow, storage_options=self.options, **options)

    def table(self) -> DeltaTable:
        return DeltaTable(self.uri, storage_options=self.options)

    def files(self, prefix: str) -> list[str]:
        """The paths of all files below a prefix of the bucket, sorted."""
        found = self.tables._fs.get_file_info(
            fs.FileSelector(f"{self.bucket}/{prefix}", recursive=True, allow_not_found=True)
        )
        return sorted(f.path for f in found if f.type == fs.FileType.File)
