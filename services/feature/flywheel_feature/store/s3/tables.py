"""Parquet and Delta tables on S3, through pyarrow (port: tables.ports.Tables)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq

from flywheel_common.config import S3Settings
from flywheel_common.errors import FlywheelError, NotFound
from flywheel_common.storage.whole_files import parquet_bytes, write_whole
from flywheel_feature.definitions.errors import InvalidUri
from flywheel_feature.definitions.model import TableFormat
from flywheel_feature.store.s3 import delta, snapshots
from flywheel_feature.store.s3.arrow_frames import to_frame
from flywheel_feature.store.s3.deletion import Deletion, S3Deletion
from flywheel_feature.tables.addresses import is_data_file, object_path
from flywheel_feature.tables.errors import (
    CorruptTable,
    ObjectStoreDown,
    TableChanged,
    UnknownTable,
    UnsupportedFormat,
)
from flywheel_feature.tables.ports import Between, Footer, Piece, TableSnapshot

T = TypeVar("T")
READERS = 8
"""Files read at the same time."""
SMALL_BYTES = 1024 * 1024
"""Files up to this size are read in one request, which takes a quarter of the time of separate reads."""
_ABSENT = re.compile(r"AWS Error NO_SUCH_BUCKET|<Code>NoSuchBucket|404 Not Found|HTTP status 404")
_DENIED = re.compile(r"AWS Error ACCESS_DENIED|<Code>AccessDenied|403 Forbidden|HTTP status 403")
_FROM_STORE = re.compile(r"AWS Error|S3 error|Error performing|curl|HTTP|[Cc]onnection|[Tt]imed? ?out")
"""Messages about the store. Readers of Parquet raise OSError too, with many messages about the file."""


class S3Tables:
    """Tables in buckets of one object store.

    `readable_buckets`: other buckets that sources and spines may name; empty allows all that the credentials
    can read. `delta_options` are those of the `deltalake` package.
    """

    def __init__(
        self,
        files: fs.FileSystem,
        bucket: str,
        *,
        deletion: Deletion,
        delta_options: Mapping[str, str],
        readable_buckets: Sequence[str] = (),
    ) -> None:
        self._fs = files
        self._bucket = bucket
        self._deletion = deletion
        self._delta_options = delta_options
        self._readable = {bucket, *readable_buckets} if readable_buckets else None

    @classmethod
    def connect(
        cls,
        *,
        endpoint: str,
        access_key: str,
        secret_key: str,
        bucket: str,
        readable_buckets: Sequence[str] = (),
        timeout_seconds: float = 30.0,
    ) -> Self:
        """The tables of a store, with a key of it."""
        # S3-compatible stores refuse the newer checksums; the client reads this variable when it is created.
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED")
        scheme, _, address = endpoint.rpartition("://")
        files = fs.S3FileSystem(
            access_key=access_key,
            secret_key=secret_key,
            endpoint_override=address,
            scheme=scheme or "http",
            region="us-east-1",
            connect_timeout=5.0,
            request_timeout=timeout_seconds,
            allow_bucket_creation=False,
        )
        return cls(
            files,
            bucket,
            deletion=S3Deletion(endpoint, access_key, secret_key, timeout_seconds),
            delta_options=delta.storage_options(endpoint, access_key, secret_key, timeout_seconds),
            readable_buckets=readable_buckets,
        )

    @classmethod
    def from_settings(cls, settings: S3Settings) -> Self:
        return cls.connect(
            endpoint=settings.s3_endpoint,
            access_key=settings.s3_access_key.get_secret_value(),
            secret_key=settings.s3_secret_key.get_secret_value(),
            bucket=settings.s3_bucket,
        )

    def bucket_uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def schema(self, uri: str) -> dict[str, pl.DataType]:
        return dict(self.snapshot(uri, TableFormat.PARQUET).stored)

    def read(self, uri: str, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        files = self.snapshot(uri, TableFormat.PARQUET).files
        return pl.concat([self.read_piece(f, columns, where) for f in files], how="vertical_relaxed")

    def snapshot(self, uri: str, table_format: TableFormat, version: int = -1) -> TableSnapshot:
        path = self._path(uri)

        def read() -> TableSnapshot:
            if table_format == TableFormat.DELTA:
                return delta.snapshot(f"s3://{path}", self._delta_options, version)
            files = [info.path for info in self._files(path)]
            return self._guard_file(f"s3://{files[0]}", lambda: snapshots.of_files(self._fs, files, path))

        return self._guard(uri, read)

    def footers(self, uris: Sequence[str]) -> list[Footer | FlywheelError]:
        def footer(uri: str) -> Footer:
            metadata = pq.read_metadata(self._path(uri), filesystem=self._fs)
            return Footer(metadata.num_rows, frozenset(metadata.schema.to_arrow_schema().names))

        def found(uri: str) -> Footer | FlywheelError:
            try:
                return self._guard(uri, lambda: footer(uri))
            except FlywheelError as error:
                if error.retryable:
                    raise
                return error

        with ThreadPoolExecutor(READERS) as readers:
            return list(readers.map(found, uris))

    def pieces(self, files: Sequence[Piece], most_rows: int) -> list[Piece]:
        def split(piece: Piece) -> list[Piece]:
            path = self._path(piece.uri)
            return self._guard_file(piece.uri, lambda: snapshots.split(self._fs, path, piece, most_rows))

        with ThreadPoolExecutor(READERS) as readers:
            return [piece for pieces in readers.map(split, files) for piece in pieces]

    def read_piece(self, piece: Piece, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        path = self._path(piece.uri)

        def read() -> pl.DataFrame:
            fragment = snapshots.fragment(self._fs, path, piece)
            return to_frame(snapshots.scanner(fragment, columns, where).to_table())

        return self._guard_file(piece.uri, read)

    def read_files(self, uris: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
        wanted = list(dict.fromkeys(columns))
        if not uris:
            return pl.DataFrame({c: pl.Series([], dtype=pl.Null) for c in wanted})

        def one(uri: str) -> pa.Table:
            return self._guard(uri, lambda: contents(uri))

        def contents(uri: str) -> pa.Table:
            with self._fs.open_input_file(self._path(uri)) as file:
                small = file.size() <= SMALL_BYTES
                parquet = pq.ParquetFile(pa.BufferReader(file.read()) if small else file)
                names = [c for c in wanted if c in parquet.schema_arrow.names]
                return parquet.read(columns=names, use_threads=False)

        # An archive has many small files, so that the requests take most of the time.
        with ThreadPoolExecutor(READERS) as readers:
            parts = list(readers.map(one, uris))
        rows = self._guard(uris[0], lambda: to_frame(pa.concat_tables(parts, promote_options="permissive")))
        nulls = pl.Series([None], dtype=pl.Null).new_from_index(0, rows.height)
        return rows.with_columns(nulls.alias(c) for c in wanted if c not in rows.columns).select(wanted)

    def write(self, uri: str, frame: pl.DataFrame) -> None:
        def write() -> None:
            content = parquet_bytes(frame.to_arrow(), compression="zstd", row_group_size=131_072)
            write_whole(self._fs, self._path(uri), content)

        self._guard(uri, write)

    def remove(self, uri: str, *, keep: str = "") -> None:
        path = self._path(uri)
        kept = f"{self._path(keep)}/" if keep else None

        def found() -> list[str]:
            infos = self._fs.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
            files = [i.path for i in infos if i.type == fs.FileType.File]
            return [f for f in files if kept is None or not f.startswith(kept)]

        self._deletion.delete(self._guard(uri, found))

    def _path(self, uri: str) -> str:
        path = object_path(uri)
        bucket = path.partition("/")[0]
        if self._readable is not None and bucket not in self._readable:
            raise InvalidUri(f"This service may not read bucket {bucket!r}: use another bucket.")
        return path

    def _files(self, path: str) -> list[fs.FileInfo]:
        """The file at a path, or the files of the table below it, by path."""
        info = self._fs.get_file_info(path)
        if info.type == fs.FileType.File:
            return [info]
        infos = self._fs.get_file_info(fs.FileSelector(path, recursive=True))
        below = len(path) + 1
        files = [i for i in infos if i.type == fs.FileType.File and is_data_file(i.path[below:])]
        if not files:
            raise FileNotFoundError(path)
        return sorted(files, key=lambda f: str(f.path))

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
        except pa.ArrowMemoryError:
            raise
        except pa.ArrowNotImplementedError as error:
            raise UnsupportedFormat(f"{uri} cannot be read: {str(error)[:200]}") from error
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise CorruptTable(f"{uri} cannot be read as Parquet: {str(error)[:200]}") from error
        except OSError as error:
            raise _os_error(uri, error) from error


def _os_error(uri: str, error: OSError) -> FlywheelError:
    text = str(error)
    if _ABSENT.search(text):
        return UnknownTable(f"There is no Parquet at {uri}: the bucket does not exist.")
    if _DENIED.search(text) or isinstance(error, PermissionError):
        return InvalidUri(f"{uri} cannot be read with this service's credentials.")
    if error.errno is None and not _FROM_STORE.search(text):
        return CorruptTable(f"{uri} is corrupt: {text[:200]}")
    return ObjectStoreDown(f"The object store does not answer for {uri}: retry.")
