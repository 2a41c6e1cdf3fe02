"""The object store in the processes of a join on a cluster: they have no key, the service signs requests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from pyarrow import fs

from flywheel_common.granted.filesystem import GrantedFiles
from flywheel_common.granted.requests import SignedRequests, SigningService
from flywheel_common.granted.streams import Reader
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_feature.store.s3.workspaces import FileWorkspace
from flywheel_feature.tables.errors import ObjectStoreDown
from flywheel_protos.feature.v1 import feature_pb2_grpc, object_access_pb2

KEPT_BYTES = 64 * 1024 * 1024
"""Bytes of working files that a process keeps."""
FEATURE = SigningService(feature_pb2_grpc.FeatureServiceStub, object_access_pb2.SignObjectRequestsRequest)


class GrantedDeletion:
    """`Deletion` by signed requests."""

    def __init__(self, files: fs.FileSystem) -> None:
        self._files = files

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            try:
                self._files.delete_file(path)
            except OSError as error:
                raise ObjectStoreDown(f"The object store did not delete s3://{path}: retry.") from error


class WorkingFiles(GrantedFiles):
    """Keeps small files and the ends of others in memory, up to KEPT_BYTES, those that were used last.

    Only Parquet files, which never change once they exist. Every bucket reads all of them, so that a file
    would be requested as often as there are buckets.
    """

    def __init__(self, requests: SignedRequests) -> None:
        super().__init__(requests)
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Reader] = OrderedDict()
        self._bytes = 0

    def reader(self, path: str) -> Reader:
        if not path.endswith(".parquet"):
            return super().reader(path)
        with self._lock:
            kept = self._kept.get(path)
            if kept is not None:
                self._kept.move_to_end(path)
                return kept.again()
        opened = super().reader(path)
        with self._lock:
            if path not in self._kept:
                self._kept[path] = opened.again()
                self._bytes += opened.kept_bytes
            while self._bytes > KEPT_BYTES:
                self._bytes -= self._kept.popitem(last=False)[1].kept_bytes
        return opened


class GrantedStore:
    """The store of the attempt with this token; `service` is host:port."""

    def __init__(self, service: str, token: str) -> None:
        self._requests = SignedRequests(service, token, FEATURE)
        self._files = fs.PyFileSystem(GrantedFiles(self._requests))
        self._deletion = GrantedDeletion(self._files)

    def workspace(self, path: str) -> FileWorkspace:
        """The working files below `bucket/prefix`."""
        return FileWorkspace(fs.PyFileSystem(WorkingFiles(self._requests)), path, self._deletion)

    def tables(self, bucket: str) -> S3Tables:
        """The tables of the store, without those that need the log of a Delta table."""
        return S3Tables(self._files, bucket, deletion=self._deletion, delta_options={})
