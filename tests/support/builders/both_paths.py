"""One batch view read on both paths: materialized into an online store, and joined into a training set."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq

from flywheel_common.clock import SystemClock
from flywheel_common.value import from_micros
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
    VersionRef,
    View,
)
from flywheel_feature.encoding.keys import entity_keys, key_prefix
from flywheel_feature.encoding.row_encoding import RowLayout
from flywheel_feature.fakes.archive import MemoryArchive
from flywheel_feature.fakes.online import MemoryOnlineStore
from flywheel_feature.fakes.training_sets import MemoryTrainingSets
from flywheel_feature.ingest.errors import FilesLeftOut
from flywheel_feature.ingest.materialize_checkpoint import MaterializeCheckpoint
from flywheel_feature.ingest.materialize_job import MaterializeJob, MaterializeRequest
from flywheel_feature.ingest.rule_actions import RuleActions
from flywheel_feature.ingest.tombstones import TombstoneFilter
from flywheel_feature.offline.build import TrainingSetBuilder
from flywheel_feature.offline.model import FileSpine, TrainingSetRequest
from flywheel_feature.store.s3.deletion import S3Deletion
from flywheel_feature.store.s3.table_files import S3TableFiles
from flywheel_feature.tables.ports import SeenFile, TableFile
from tests.support.builders.jobs import RecordingJob

KEY, TIME = "store", "at"
T0 = datetime(2024, 5, 1, tzinfo=UTC)
"""The time of every row."""
Answers = dict[Any, tuple[Any, ...]]
"""Key → the values of the features, None for null."""


class LocalTables(S3TableFiles):
    """The tables of `S3TableFiles` on a folder of this machine. Plain Parquet only; nothing is deleted."""

    def __init__(self, folder: Path) -> None:
        (folder / "local").mkdir(parents=True, exist_ok=True)
        files = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
        super().__init__(files, "local", deletion=S3Deletion("none", "", ""), delta_options={})

    def write_arrow(self, key: str, table: pa.Table) -> None:
        """Write a file into the bucket with its Arrow types as they are."""
        path = self._path(self.bucket_uri(key))
        self._fs.create_dir(path.rpartition("/")[0], recursive=True)
        with self._fs.open_output_stream(path) as stream:
            pq.write_table(table, stream)

    def write(self, uri: str, frame: pl.DataFrame) -> None:
        self._fs.create_dir(self._path(uri).rpartition("/")[0], recursive=True)
        super().write(uri, frame)


class _Memory:
    """Which files and how far views are materialized, and pushed files (several ports of ingest)."""

    def __init__(self) -> None:
        self.read: dict[str, SeenFile] = {}
        self.pushed_files: list[TableFile] = []

    async def seen(self, project: str, view: str, version: int) -> Mapping[str, SeenFile]:
        return dict(self.read)

    async def mark_seen(self, project: str, view: str, version: int, uri: str, seen: SeenFile) -> None:
        self.read[uri] = seen

    async def mark_due(self, project: str, view: str, version: int, uri: str, seen: SeenFile) -> None:
        raise NotImplementedError("All rows are valid.")

    async def due(self, now: int) -> Mapping[tuple[str, str, int], int]:
        return {}

    async def forget_files(self, project: str, view: str, version: int) -> None:
        self.read.clear()

    async def pushed(self, project: str, view: str) -> list[TableFile]:
        return list(self.pushed_files)

    async def done(self, project: str, view: str, version: int, end_time: int, newest: int) -> None:
        return None

    async def newest(self, project: str) -> dict[tuple[str, int], int]:
        return {}


class BothPaths:
    """The view `facts` with `features` of a source at `kind.uri`, whose entity has the key KEY."""

    def __init__(
        self,
        tables: Any,
        kind: ParquetSource,
        features: Mapping[str, DataType],
        *,
        key: DataType = DataType.STRING,
        vector_size: int = 0,
    ) -> None:
        self.tables = tables
        self.seen = _Memory()
        self.archive = MemoryArchive()
        self._online = MemoryOnlineStore()
        self._sets = 0
        keys = (Field(KEY, key),)
        sizes = {name: vector_size if t.is_vector else 0 for name, t in features.items()}
        fields = tuple(Field(name, t, sizes[name]) for name, t in features.items())
        self.source = Source("p", "files", (*keys, Field(TIME, DataType.TIMESTAMP), *fields), TIME, "", kind)
        columns = tuple(Feature(f.name, f.data_type, vector_size=f.vector_size, field=f.name) for f in fields)
        self.view = View("p", "facts", "store", BatchView("files", columns), version=1, features=columns)
        schema = tuple(Field(f"facts__{f.name}", f.data_type, f.vector_size) for f in fields)
        self._set = FeatureSet(
            "p",
            "all",
            tuple(f"facts:{f.name}" for f in fields),
            version=1,
            views=(VersionRef("facts", 1),),
            schema=schema,
            join_keys=keys,
        )
        self.catalog = Catalog(
            "p",
            entities={"store": Entity("p", "store", keys)},
            sources={"files": self.source},
            views={self.view.ref: self.view},
            feature_sets={VersionRef("all", 1): self._set},
            latest_views={"facts": self.view},
            latest_feature_sets={"all": self._set},
        )

    async def _catalogs(self, project: str) -> Catalog:
        return self.catalog

    def push(self, uri: str) -> None:
        """Put a file that exists into the push log of the view."""
        self.seen.pushed_files.append(TableFile(uri, str(len(self.seen.pushed_files)), pushed=True))
        self.archive.push("p", "facts", uri)

    async def materialize(self) -> str:
        """Materialize the files that have not been read; returns the message about files left out."""
        job = MaterializeJob(
            catalogs=self._catalogs,
            files=self.tables,
            seen=self.seen,
            pushed=self.seen,
            online=self._online,
            materialized=self.seen,
            tombstones=TombstoneFilter(lambda _: self.catalog, lambda _: {}),
            rule_actions=RuleActions(self.tables),
            clock=SystemClock(),
        )
        request = MaterializeRequest("p", "facts")
        try:
            await job.materialize(request, MaterializeCheckpoint(), RecordingJob())
        except FilesLeftOut as error:
            return error.message
        return ""

    async def online(self, keys: Sequence[Any]) -> Answers:
        """The values online; entities without a row are missing."""
        data_type = self.source.schema[0].data_type
        names = entity_keys([(data_type, keys)])
        prefix = key_prefix(self.view)
        rows = await self._online.read([prefix + name for name in names])
        decoded = RowLayout(self.view.features).decode(rows)
        found: Answers = {}
        for place, key in enumerate(keys):
            if rows[place] is not None:
                values = zip(self.view.features, decoded.columns, strict=True)
                found[key] = tuple(
                    plain_value(f.data_type, column[place]) if valid[place] else None
                    for f, (column, valid) in values
                )
        return found

    async def offline(self, keys: Sequence[Any]) -> Answers:
        """The values of a training set whose spine has each key once, after T0."""
        uri = self.tables.bucket_uri(f"spines/{self._sets}.parquet")
        times = pl.Series("when", [T0.replace(month=6)] * len(keys), dtype=pl.Datetime("us", "UTC"))
        await asyncio.to_thread(self.tables.write, uri, pl.DataFrame([pl.Series(KEY, keys), times]))
        return {row[0]: tuple(row[1:]) for row in await self.joined(uri)}

    async def joined(self, uri: str) -> list[tuple[Any, ...]]:
        """(key, *values) of the rows of a training set; the spine at `uri` has the columns KEY and when."""
        self._sets += 1
        builder = TrainingSetBuilder(
            catalogs=self._catalogs,
            tables=self.tables,
            archive=self.archive,
            training_sets=MemoryTrainingSets(),
            clock=SystemClock(),
        )
        request = TrainingSetRequest("p", f"set{self._sets}", "all", 0, FileSpine(uri, "when"))
        built = await builder.build(request, RecordingJob())
        columns = [f.name for f in self._set.schema]
        rows = await asyncio.to_thread(self.tables.read, built.uri, [KEY, *columns])
        return list(rows.iter_rows())


def plain_value(data_type: DataType, value: Any) -> Any:
    """A decoded value as Polars returns it."""
    if data_type.is_list or data_type.is_vector:
        return [plain_value(data_type.element, v) for v in value]
    if data_type == DataType.TIMESTAMP:
        return from_micros(int(value))
    return value.item() if hasattr(value, "item") else value
