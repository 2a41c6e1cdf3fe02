"""The object store in the processes of a join on a cluster: they have no key, the service signs requests."""

from __future__ import annotations

from collections.abc import Iterable

from pyarrow import fs

from flywheel_common.granted.filesystem import GrantedFiles
from flywheel_common.granted.requests import SignedRequests, SigningService
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_feature.store.s3.workspaces import FileWorkspace
from flywheel_feature.tables.errors import ObjectStoreDown
from flywheel_protos.feature.v1 import feature_pb2_grpc, object_access_pb2

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


class GrantedStore:
    """The store of the attempt with this token; `service` is host:port."""

    def __init__(self, service: str, token: str) -> None:
        self._files = fs.PyFileSystem(GrantedFiles(SignedRequests(service, token, FEATURE)))
        self._deletion = GrantedDeletion(self._files)

    def workspace(self, path: str) -> FileWorkspace:
        """The working files below `bucket/prefix`."""
        return FileWorkspace(self._files, path, self._deletion)

    def tables(self, bucket: str) -> S3Tables:
        """The tables of the store, without those that need the log of a Delta table."""
        return S3Tables(self._files, bucket, deletion=self._deletion, delta_options={})
