"""Parquet and Delta tables on S3, through pyarrow (port: tables.ports.Tables)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pyarrow.parquet as pq

from flywheel_common.config import S3Settings
from flywheel_common.errors import FlywheelError, NotFound
from flywheel_feature.definitions.errors import InvalidUri
from flywheel_feature.definitions.model import TableFormat
from flywheel_feature.store.s3 import delta, snapshots
from flywheel_feature.store.s3.deletion import S3Deletion
from flywheel_feature.tables.errors import CorruptTable, ObjectStoreDown, TableChanged, UnknownTable
from flywheel_feature.tables.ports import Between, Piece, TableSnapshot

T = TypeVar("T")
READERS = 8
"""Files read at the same time."""
SMALL_BYTES = 1024 * 1024
"""Files up to this size are read in one request, which takes a quarter of the time of separate reads."""
_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)")

_FROM_STORE = re.compile(r"AWS Error|S3 error")
_CORRUPT = re.compile(r"Parquet|magic bytes|[Tt]hrift|[Dd]ecompress|[Cc]orrupt|[Uu]nexpected end of stream")
"""Messages of Parquet readers about corrupt bytes. They raise OSError, as broken connections do."""


class S3Tables:
    """Tables in buckets of one object store.

    `readable_buckets`: other buckets that sources and spines may name; empty allows all that the credentials
    can read.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        access_key: str,
        secret_key: str,
        bucket: str,
        readable_buckets: Sequence[str] = (),
        timeout_seconds: float = 30.0,
    ) -> None:
        # S3-compatible stores refuse the newer checksums; the client reads this variable when it is created.
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED")
        scheme, _, address = endpoint.rpartition("://")
        self._bucket = bucket
        self._delta_options = delta.storage_options(endpoint, access_key, secret_key, timeout_seconds)
        self._deletion = S3Deletion(endpoint, access_key, secret_key, timeout_seconds)
        self._readable = {bucket, *readable_buckets} if readable_buckets else None
        self._fs = fs.S3FileSystem(
            access_key=access_key,
            secret_key=secret_key,
            endpoint_override=address,
            scheme=scheme or "http",
            region="us-east-1",
            connect_timeout=5.0,
            request_timeout=timeout_seconds,
            allow_bucket_creation=False,
        )

    @classmethod
    def from_settings(cls, settings: S3Settings) -> Self:
        return cls(
            endpoint=settings.s3_endpoint,
            access_key=settings.s3_access_key.get_secret_value(),
            secret_key=settings.s3_secret_key.get_secret_value(),
            bucket=settings.s3_bucket,
        )

    def bucket_uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def schema(self, uri: str) -> dict[str, pl.DataType]:
        def read() -> dict[str, pl.DataType]:
            empty = pl.from_arrow(self._dataset(uri).schema.empty_table())
            assert isinstance(empty, pl.DataFrame)
            return dict(zip(empty.columns, empty.dtypes, strict=True))

        return self._guard(uri, read)

    def read(self, uri: str, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        def read() -> pl.DataFrame:
            dataset = self._dataset(uri)
            condition = arrow_filter(dataset.schema, where)
            return to_frame(dataset.to_table(columns=list(dict.fromkeys(columns)), filter=condition))

        return self._guard(uri, read)

    def snapshot(self, uri: str, table_format: TableFormat, version: int = -1) -> TableSnapshot:
        path = self._path(uri)

        def read() -> TableSnapshot:
            if table_format == TableFormat.DELTA:
                return delta.snapshot(f"s3://{path.rstrip('/')}", self._delta_options, version)
            files = [info.path for info in self._files(path)]
            base = path if path.endswith("/") else path.rpartition("/")[0] + "/"
            return self._guard_file(f"s3://{files[0]}", lambda: snapshots.of_files(self._fs, files, base))

        return self._guard(uri, read)

    def pieces(self, files: Sequence[Piece], most_rows: int) -> list[Piece]:
        def split(piece: Piece) -> list[Piece]:
            path = self._path(piece.uri)
            return self._guard_file(piece.uri, lambda: snapshots.split(self._fs, path, piece, most_rows))

        with ThreadPoolExecutor(READERS) as readers:
            return [piece for pieces in readers.map(split, files) for piece in pieces]

    def read_piece(self, piece: Piece, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        path = self._path(piece.uri)
        wanted = list(dict.fromkeys(columns))

        def read() -> pl.DataFrame:
            fragment = snapshots.fragment(self._fs, path, piece)
            schema = fragment.physical_schema
            present = [c for c in wanted if c in schema.names]
            pushed = where if where is not None and where.column in schema.names else None
            table = fragment.to_table(columns=present, filter=arrow_filter(schema, pushed))
            return snapshots.with_partition(to_frame(table), table.num_rows, piece, wanted)

        return self._guard_file(piece.uri, read)

    def read_files(self, uris: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
        wanted = list(dict.fromkeys(columns))
        if not uris:
            return pl.DataFrame({c: pl.Series([], dtype=pl.Null) for c in wanted})

        def one(uri: str) -> pa.Table:
            with self._fs.open_input_file(self._path(uri)) as file:
                small = file.size() <= SMALL_BYTES
                parquet = pq.ParquetFile(pa.BufferReader(file.read()) if small else file)
                names = [c for c in wanted if c in parquet.schema_arrow.names]
                return parquet.read(columns=names, use_threads=False)

        def read() -> pl.DataFrame:
            # An archive has many small files, so that the requests take most of the time.
            with ThreadPoolExecutor(READERS) as readers:
                parts = list(readers.map(one, uris))
            return to_frame(pa.concat_tables(parts, promote_options="permissive"))

        return self._guard(uris[0], read)

    def write(self, uri: str, frame: pl.DataFrame) -> None:
        def write() -> None:
            # The object appears when the stream is closed, so that no reader sees a part of a file.
            with self._fs.open_output_stream(self._path(uri)) as stream:
                pq.write_table(frame.to_arrow(), stream, compression="zstd", row_group_size=131_072)

        self._guard(uri, write)

    def remove(self, uri: str, *, keep: str = "") -> None:
        path = self._path(uri).rstrip("/")
        kept = self._path(keep) if keep else None

        def found() -> list[str]:
            infos = self._fs.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
            files = [i.path for i in infos if i.type == fs.FileType.File]
            return [f for f in files if kept is None or not f.startswith(kept)]

        self._deletion.delete(self._guard(uri, found))

    def _path(self, uri: str) -> str:
        match = _URI.fullmatch(uri)
        if match is None or ".." in match.group(2).split("/"):
            raise InvalidUri(f"{uri[:200]!r} is not an address of the form s3://bucket/key.")
        if self._readable is not None and match.group(1) not in self._readable:
            raise InvalidUri(f"This service may not read bucket {match.group(1)!r}: use another bucket.")
        return f"{match.group(1)}/{match.group(2)}"

    def _dataset(self, uri: str) -> ds.Dataset:
        path = self._path(uri)
        return self._dataset_of([info.path for info in self._files(path)], path)

    def _files(self, path: str) -> list[fs.FileInfo]:
        """Parquet files at a key or below a prefix, by path."""
        if not path.endswith("/"):
            info = self._fs.get_file_info(path)
            if info.type != fs.FileType.File:
                raise FileNotFoundError(path)
            return [info]
        infos = self._fs.get_file_info(fs.FileSelector(path.rstrip("/"), recursive=True))
        files = [i for i in infos if i.type == fs.FileType.File and i.path.endswith(".parquet")]
        # Hidden files and folders, like _manifest or .staging, are not data.
        files = [
            f for f in files if not any(p.startswith(("_", ".")) for p in f.path[len(path) :].split("/"))
        ]
        if not files:
            raise FileNotFoundError(path)
        return sorted(files, key=lambda f: str(f.path))

    def _dataset_of(self, files: Sequence[str], path: str) -> ds.Dataset:
        """These files of the table at `path`."""
        if not path.endswith("/"):
            return ds.dataset(path, filesystem=self._fs, format="parquet")
        return ds.dataset(
            list(files),
            filesystem=self._fs,
            format="parquet",
            partitioning=ds.HivePartitioning.discover(infer_dictionary=False),
            partition_base_dir=path.rstrip("/"),
        )

    def _guard_file(self, uri: str, action: Callable[[], T]) -> T:
        """As `_guard`, for a file that existed when its table was listed."""
        try:
            return self._guard(uri, action)
        except NotFound as error:
            raise TableChanged(
                f"{uri} was deleted while its table was read: retry when the writer of the table is done, or "
                "let it keep the files of older versions for as long as jobs run."
            ) from error

    def _guard(self, uri: str, action: Callable[[], T]) -> T:
        """Return `action()`; raises its errors as domain errors about `uri`."""
        try:
            return action()
        except FileNotFoundError as error:
            raise UnknownTable(
                f"There is no Parquet at {uri}: check the address, or write it first."
            ) from error
        except pa.ArrowInvalid as error:
            raise CorruptTable(f"{uri} cannot be read as Parquet: {str(error)[:200]}") from error
        except OSError as error:
            raise _os_error(uri, error) from error


def _os_error(uri: str, error: OSError) -> FlywheelError:
    text = str(error)
    if not _FROM_STORE.search(text) and _CORRUPT.search(text):
        return CorruptTable(f"{uri} is corrupt: {text[:200]}")
    if "NO_SUCH_BUCKET" in text or "NoSuchBucket" in text or "404" in text:
        return UnknownTable(f"There is no Parquet at {uri}: the bucket does not exist.")
    if "ACCESS_DENIED" in text or "403" in text:
        return InvalidUri(f"{uri} cannot be read with this service's credentials.")
    return ObjectStoreDown(f"The object store does not answer for {uri}: retry.")


def to_frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def arrow_filter(schema: pa.Schema, where: Between | None) -> ds.Expression | None:
    """`where` as a filter of pyarrow."""
    if where is None:
        return None
    kind = schema.field(where.column).type
    column = ds.field(where.column)
    condition = column.is_valid()
    for bound, lower in ((where.low, True), (where.high, False)):
        if bound is None:
            continue
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        scalar = pa.scalar(bound, pa.timestamp("us", zone))
        # Compared in microseconds, so that a bound is not rounded to the column's seconds or milliseconds.
        left = column.cast(pa.timestamp("us", zone), safe=False) if kind != scalar.type else column
        condition = condition & (left >= scalar if lower else left < scalar)
    return condition
