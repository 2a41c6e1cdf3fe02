"""Attempts of joins on Ray at the gRPC edge: the service signs the requests of each, and no others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pyarrow import fs

import flywheel as fw
from flywheel_common.granted.access import Access
from flywheel_common.granted.filesystem import GrantedFiles
from flywheel_common.granted.requests import SignedRequests
from flywheel_common.granted.tokens import AttemptTokens
from flywheel_common.grpc.server import Server
from flywheel_common.postgres.pool import Pool
from flywheel_feature.store.postgres.join_access import PostgresJoinAccess, read_token_key
from flywheel_feature.store.s3.granted import FEATURE
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import object_access_pb2
from flywheel_protos.types.v1 import object_access_pb2 as pb
from tests.support.servers.feature import s3_files

JOIN, ATTEMPT = "feature-p-j", "feature-p-j-0"


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """The settings of a service that has a Ray cluster."""
    return environment | {"FLYWHEEL_FEATURE_RAY_ADDRESS": "http://127.0.0.1:1"}


@pytest.fixture
def access(pool: Pool) -> PostgresJoinAccess:
    return PostgresJoinAccess(pool)


@pytest.fixture
async def files(server: Server, pool: Pool, s3: S3, bucket: str, access: PostgresJoinAccess) -> Any:
    """The store of an attempt that may read one object and write below one prefix."""
    with s3_files(s3).open_output_stream(f"{bucket}/in/a") as stream:
        stream.write(b"content")
    await access.grant(JOIN, ATTEMPT, Access((f"s3://{bucket}/in/a",), (f"s3://{bucket}/joins/j/spine",)))
    token = AttemptTokens(await read_token_key(pool)).issue(ATTEMPT)
    requests = SignedRequests(f"127.0.0.1:{server.port}", token, FEATURE, retry_seconds=10)
    yield fs.PyFileSystem(GrantedFiles(requests))
    requests.close()


def read(files: fs.FileSystem, path: str) -> bytes:
    with files.open_input_stream(path) as stream:
        return bytes(stream.read())


def write(files: fs.FileSystem, path: str) -> None:
    with files.open_output_stream(path) as stream:
        stream.write(b"new")


async def test_an_attempt_uses_what_its_join_may_use(files: Any, bucket: str) -> None:
    assert b"content" == await asyncio.to_thread(read, files, f"{bucket}/in/a")
    await asyncio.to_thread(write, files, f"{bucket}/joins/j/spine/x")
    assert b"new" == await asyncio.to_thread(read, files, f"{bucket}/joins/j/spine/x")
    for path in (f"{bucket}/in/b", f"{bucket}/joins/k/spine/x"):
        with pytest.raises(PermissionError, match="PERMISSION_DENIED"):
            await asyncio.to_thread(read, files, path)
    for path in (f"{bucket}/in/a", f"{bucket}/joins/j/spec.json"):
        with pytest.raises(PermissionError, match="PERMISSION_DENIED"):
            await asyncio.to_thread(write, files, path)


async def test_an_attempt_whose_join_has_ended_gets_nothing(
    files: Any, bucket: str, access: PostgresJoinAccess
) -> None:
    await access.revoke(JOIN)
    with pytest.raises(PermissionError, match="FAILED_PRECONDITION"):
        await asyncio.to_thread(read, files, f"{bucket}/in/a")


async def test_other_callers_and_tokens_of_others_get_nothing(
    files: Any, client: fw.Client, server: Server, bucket: str
) -> None:
    wanted = pb.ObjectRequest(method=pb.OBJECT_METHOD_GET, uri=f"s3://{bucket}/in/a")
    with pytest.raises(fw.FlywheelError) as refused:
        await client.feature.SignObjectRequests(
            object_access_pb2.SignObjectRequestsRequest(requests=[wanted])
        )
    assert "FOREIGN_OBJECT" == refused.value.reason
    forged = AttemptTokens(b"x" * 32).issue(ATTEMPT)
    requests = SignedRequests(f"127.0.0.1:{server.port}", forged, FEATURE, retry_seconds=10)
    with pytest.raises(PermissionError, match="PERMISSION_DENIED"):
        await asyncio.to_thread(requests.send, wanted)
    requests.close()
