"""Errors of the object store: an outage is one, whatever the address contains."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pyarrow import fs

from flywheel_common.errors import FlywheelError, Unavailable
from flywheel_common.granted.filesystem import GrantedFiles
from flywheel_feature.definitions.model import TableFormat
from flywheel_feature.store.s3.granted import GrantedDeletion
from flywheel_feature.store.s3.table_files import S3TableFiles
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_feature.store.s3.workspaces import FileWorkspace
from flywheel_feature.tables.ports import Piece
from tests.support.ports import free_port


@pytest.mark.parametrize("key", ["403/404.parquet", "NoSuchBucket.parquet"])
def test_an_outage_is_no_fault_of_the_address(key: str) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    tables = S3TableFiles.connect(endpoint=endpoint, access_key="none", secret_key="none", bucket="local")
    for read in (tables.snapshot, tables.files):
        with pytest.raises(Unavailable) as down:
            read(f"s3://local/{key}", 1)
        assert down.value.reason == "OBJECT_STORE_DOWN"
    with pytest.raises(Unavailable):
        tables.footers([f"s3://local/{key}"])


class Refusing(BaseHTTPRequestHandler):
    """Answers as an object store does for the buckets `denied` and `missing`."""

    def do_GET(self) -> None:
        status, code = (403, "AccessDenied") if "denied" in self.path else (404, "NoSuchBucket")
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *arguments: object) -> None:
        return None


@pytest.fixture
def refusing() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("table_format", [TableFormat.PARQUET, TableFormat.DELTA])
@pytest.mark.parametrize(("bucket", "reason"), [("denied", "INVALID_URI"), ("missing", "UNKNOWN_TABLE")])
def test_refused_and_missing_buckets_are_faults_of_the_address(
    refusing: str, table_format: TableFormat, bucket: str, reason: str
) -> None:
    tables = S3TableFiles.connect(endpoint=refusing, access_key="a", secret_key="b", bucket=bucket)
    for read in (tables.snapshot, tables.files):
        for key in ("t", "t/", "t.parquet"):
            with pytest.raises(FlywheelError) as refused:
                read(tables.bucket_uri(key), table_format)
            assert refused.value.reason == reason


class FailingRequests:
    """Signed requests, each of which raises an error."""

    def __init__(self, error: OSError) -> None:
        self._error = error

    def send(self, *arguments: object, **named: object) -> object:
        raise self._error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EIO, "The service that signs requests does not answer: gone"), "OBJECT_STORE_DOWN"),
        (OSError(errno.EIO, "The object store answered 500 for s3://local/t"), "OBJECT_STORE_DOWN"),
        (PermissionError("PERMISSION_DENIED: The attempt may not GET s3://local/t."), "INVALID_URI"),
        (FileNotFoundError("There is no object s3://local/t."), "TABLE_CHANGED"),
    ],
)
def test_errors_of_signed_requests_are_told_apart(error: OSError, reason: str) -> None:
    files = fs.PyFileSystem(GrantedFiles(FailingRequests(error)))  # type: ignore[arg-type]
    tables = S3Tables(files, "local", deletion=GrantedDeletion(files), delta_options={})
    with pytest.raises(FlywheelError) as raised:
        tables.read_piece(Piece("s3://local/t"), ["x"])
    assert reason == raised.value.reason
    if reason == "OBJECT_STORE_DOWN":
        workspace = FileWorkspace(files, "local/joins/j", GrantedDeletion(files))
        for call in (workspace.keys, workspace.delete, lambda: workspace.read_bytes("spec.json")):
            with pytest.raises(Unavailable):
                call()
