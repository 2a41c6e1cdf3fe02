"""The local object store: durability, preconditions, and how long a stop takes."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import botocore.session
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from flywheel_local.backends import Backends
from flywheel_local.s3 import S3


def connect(s3: S3) -> Any:
    return botocore.session.get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=s3.endpoint,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        config=Config(s3={"addressing_style": "path"}, max_pool_connections=16),
    )


@pytest.fixture
def client(s3: S3) -> Any:
    return connect(s3)


def keys(client: Any, bucket: str) -> list[str]:
    return [item["Key"] for item in client.list_objects_v2(Bucket=bucket).get("Contents", ())]


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_change_that_was_answered_survives_the_end_of_the_server(tmp_path: Path, end: str) -> None:
    with Backends({"s3"}, directory=tmp_path) as backends:
        s3, client = backends.s3, connect(backends.s3)
        s3.create_bucket("kept")
        large = os.urandom(20_000_000)
        client.put_object(Bucket="kept", Key="large", Body=large)
        for n in range(100):
            client.put_object(Bucket="kept", Key=f"small/{n:03}", Body=b"%d" % n)
        for n in range(50):
            client.delete_object(Bucket="kept", Key=f"small/{n:03}")
        getattr(s3, end)()
        s3.restart()
        assert ["large", *(f"small/{n:03}" for n in range(50, 100))] == keys(client, "kept")
        assert large == client.get_object(Bucket="kept", Key="large")["Body"].read()
        for n in range(50, 100):
            assert b"%d" % n == client.get_object(Bucket="kept", Key=f"small/{n:03}")["Body"].read()


def test_a_stop_is_fast_and_leaves_neither_processes_nor_sockets(tmp_path: Path) -> None:
    with Backends({"s3"}, directory=tmp_path) as backends:
        assert backends.s3.process is not None
        pid, ports = backends.s3.process.pid, backends.s3.ports.values()

        def sockets() -> list[Path]:
            return [f for port in ports for f in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]

        assert sockets()
        began = time.monotonic()
        backends.stop()
        assert time.monotonic() - began < 5
        assert not psutil.pid_exists(pid)
        assert [] == sockets()


def test_objects_are_refused_without_a_key_on_every_port(s3: S3, client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="a", Body=b"secret")
    statuses = {}
    for name, path in (("s3", f"{bucket}/a"), ("s3_filer", f"buckets/{bucket}/a"), ("s3_volume", "1,01")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{s3.ports[name]}/{path}", timeout=5)
        statuses[name] = refused.value.code
        refused.value.close()
    assert {"s3": 403, "s3_filer": 401, "s3_volume": 401} == statuses


def test_one_of_many_writers_of_a_new_key_succeeds(client: Any, bucket: str) -> None:
    def write(n: int) -> int | str:
        try:
            client.put_object(Bucket=bucket, Key="one", Body=b"%d" % n, IfNoneMatch="*")
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return n

    with ThreadPoolExecutor(12) as writers:
        answers = list(writers.map(write, range(12)))
    (first,) = [a for a in answers if isinstance(a, int)]
    assert ["PreconditionFailed"] * 11 == [a for a in answers if isinstance(a, str)]
    assert b"%d" % first == client.get_object(Bucket=bucket, Key="one")["Body"].read()


def test_a_prefix_without_files_is_gone_and_can_be_used_again(client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="a/b/1", Body=b"old")
    client.delete_object(Bucket=bucket, Key="a/b/1")
    assert [] == keys(client, bucket)
    client.put_object(Bucket=bucket, Key="a/b", Body=b"a file now")
    client.put_object(Bucket=bucket, Key="a/b/2", Body=b"new")
    assert ["a/b", "a/b/2"] == keys(client, bucket)
    assert b"a file now" == client.get_object(Bucket=bucket, Key="a/b")["Body"].read()


def test_a_bucket_that_does_not_exist_is_refused(client: Any) -> None:
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket="no-such-bucket", Key="a", Body=b"x")
    assert "NoSuchBucket" == refused.value.response["Error"]["Code"]
