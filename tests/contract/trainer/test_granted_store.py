"""The store of an attempt on real S3: a trainer signs its requests, and the attempt has no key."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import urllib3
from pyarrow import fs

from flywheel_common.config import S3Settings
from flywheel_common.granted import streams
from flywheel_common.granted.access import Access
from flywheel_common.granted.signer import s3_signer
from flywheel_common.storage.s3 import S3ObjectStore, object_store
from flywheel_job import objects
from flywheel_job.granted import granted_store
from flywheel_job.outcome import Outcome
from flywheel_protos.trainer.v1 import object_access_pb2
from flywheel_protos.types.v1 import object_access_pb2 as pb
from flywheel_trainer.jobs.job import JobName, JobState
from flywheel_trainer.jobs.ports import Supervision
from tests.support.builders import trainer as build
from tests.support.builders.trainer import AT, EXPERIMENT
from tests.support.servers.trainer import MemoryTrainer, serve_in_memory

JOB = JobName("p", "job-1")
LIFETIME_SECONDS = 2
T = TypeVar("T")


@dataclass
class Granted:
    """The store of an attempt, and the whole bucket behind it."""

    store: fs.PyFileSystem
    behind: S3ObjectStore
    bucket: str
    trainer: MemoryTrainer
    supervision: Supervision
    token: str

    def path(self, name: str) -> str:
        """A path among the attempt's own files."""
        return f"{self.bucket}/own/{name}"

    def uri(self, name: str) -> str:
        return f"s3://{self.path(name)}"


@pytest.fixture
async def granted(s3_settings: S3Settings) -> AsyncIterator[Granted]:
    bucket = s3_settings.s3_bucket
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(object_store(s3_settings))
        await behind.ensure_bucket()
        signer = await stack.enter_async_context(s3_signer(s3_settings, s3_settings.s3_endpoint))
        trainer = await serve_in_memory(stack, signer=signer, job_url_seconds=LIFETIME_SECONDS)
        await trainer.ports.runs.create_experiment(EXPERIMENT, "", b"", AT)
        await trainer.ports.jobs.create(build.job("1"), {}, "", b"", AT)
        supervision = trainer.ports.supervision(1)
        attempt = await supervision.begin_attempt(JOB, AT)
        assert attempt is not None
        access = Access((f"s3://{bucket}/inputs/one/",), (f"s3://{bucket}/own",), f"s3://{bucket}/artifacts")
        await supervision.grant(JOB, 1, access)
        token = trainer.ports.tokens.issue(attempt.engine_id)
        store = granted_store(trainer.address, token)
        yield Granted(store, behind, bucket, trainer, supervision, token)


async def call(function: Callable[..., T], *arguments: Any) -> T:
    """Call blocking code of a job while the trainer of this loop answers it."""
    return await asyncio.to_thread(function, *arguments)


async def test_small_files_are_written_read_listed_and_deleted(granted: Granted) -> None:
    store = granted.store

    def work() -> None:
        for name in ("a/one", "a/two words+ä%", "b"):
            objects.write(store, granted.uri(name), name.encode())
        assert "a/two words+ä%".encode() == objects.read(store, granted.uri("a/two words+ä%"))
        found = objects.files_under(store, granted.uri(""))
        assert [granted.path(name) for name in ("a/one", "a/two words+ä%", "b")] == found
        (info,) = store.get_file_info([granted.path("a/one")])
        assert (fs.FileType.File, 5) == (info.type, info.size)
        assert fs.FileType.Directory == store.get_file_info(granted.path("a")).type
        assert fs.FileType.NotFound == store.get_file_info(granted.path("c")).type
        flat = store.get_file_info(fs.FileSelector(granted.path("").rstrip("/")))
        assert {"a", "b"} == {one.base_name for one in flat}
        with pytest.raises(FileNotFoundError):
            objects.read(store, granted.uri("c"))
        store.move(granted.path("b"), granted.path("d/ b"))
        assert b"b" == objects.read(store, granted.uri("d/ b"))
        objects.delete(store, granted.uri("a"))
        objects.delete(store, granted.uri("a"))
        assert [granted.path("d/ b")] == objects.files_under(store, granted.uri(""))

    await call(work)


async def test_a_list_of_more_than_one_page_is_complete(granted: Granted) -> None:
    async with asyncio.TaskGroup() as group:
        for start in range(0, 1203, 25):
            group.create_task(put_many(granted, range(start, min(start + 25, 1203))))
    found = await call(objects.files_under, granted.store, granted.uri("many"))
    assert [granted.path(f"many/{number:05d}") for number in range(1203)] == found


async def put_many(granted: Granted, numbers: range) -> None:
    for number in numbers:
        await granted.behind.put(f"own/many/{number:05d}", b"x")


async def test_large_files_are_written_in_parts_and_read_in_ranges(
    granted: Granted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PART_BYTES", 5 * 1024 * 1024)
    content = bytes(range(256)) * (13 * 4096)  # 13 MiB: two parts of 5 MiB and a rest

    def work() -> None:
        with granted.store.open_output_stream(granted.path("large")) as stream:
            stream.write(content[:100])
            stream.write(content[100:11_000_000])
            stream.write(content[11_000_000:])
        with granted.store.open_input_file(granted.path("large")) as file:
            assert len(content) == file.size()
            file.seek(7_000_001)
            assert content[7_000_001:7_000_999] == file.read(998)
            assert hashlib.sha256(content).digest() == hashlib.sha256(file.read_at(len(content), 0)).digest()

    await call(work)
    stored = await granted.behind.get("own/large")
    assert hashlib.sha256(content).hexdigest() == hashlib.sha256(stored).hexdigest()


async def test_parquet_inputs_are_read_as_from_any_store(granted: Granted) -> None:
    table = pa.table({"x": list(range(5000)), "y": [str(number) for number in range(5000)]})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, row_group_size=1000)
    for part in range(2):
        await granted.behind.put(f"inputs/one/part-{part}.parquet", buffer.getvalue().to_pybytes())
    uri = f"s3://{granted.bucket}/inputs/one/"
    frame = await call(objects.read_table, granted.store, uri, ["x"])
    assert [*range(5000), *range(5000)] == frame["x"].to_list()
    with pytest.raises(PermissionError):
        await call(objects.write, granted.store, f"{uri}part-2.parquet", b"x")


async def test_objects_of_others_are_refused(granted: Granted) -> None:
    await granted.behind.put("inputs/two/secret", b"secret")
    await granted.behind.put("artifacts/aa/aaaa", b"secret")
    store, bucket = granted.store, granted.bucket

    def work() -> None:
        for name in ("inputs/two/secret", "artifacts/aa/aaaa", "own/../inputs/two/secret"):
            with pytest.raises(PermissionError):
                objects.read(store, f"s3://{bucket}/{name}")
            with pytest.raises(PermissionError):
                objects.write(store, f"s3://{bucket}/{name}", b"x")
        for folder in ("", "inputs/", "inputs/two/", "artifacts/"):
            with pytest.raises(PermissionError):
                objects.files_under(store, f"s3://{bucket}/{folder}")
        with pytest.raises(PermissionError):
            store.copy_file(f"{bucket}/inputs/two/secret", granted.path("copy"))

    await call(work)
    assert b"secret" == await granted.behind.get("inputs/two/secret")


async def test_a_signed_request_reaches_no_other_object(granted: Granted) -> None:
    await granted.behind.put("inputs/one/a", b"mine")
    await granted.behind.put("inputs/two/a", b"secret")
    request = pb.ObjectRequest(method=pb.OBJECT_METHOD_GET, uri=f"s3://{granted.bucket}/inputs/one/a")
    answer = await granted.trainer.stub.SignObjectRequests(
        object_access_pb2.SignObjectRequestsRequest(requests=[request]),
        metadata=[("authorization", f"Bearer {granted.token}")],
    )
    url = answer.requests[0].url

    def statuses() -> list[int]:
        http = urllib3.PoolManager(retries=False)
        return [
            http.request("GET", url).status,
            http.request("GET", url.replace("inputs/one", "inputs/two")).status,
            http.request("PUT", url, body=b"x").status,
            http.request("DELETE", url).status,
        ]

    assert [200, 403, 403, 403] == await call(statuses)
    await asyncio.sleep(LIFETIME_SECONDS + 1)  # the time after which the store refuses it
    assert [403] * 4 == await call(statuses)


async def test_requests_are_renewed_while_the_attempt_is_active(granted: Granted) -> None:
    await granted.behind.put("inputs/one/a", b"mine")
    uri = f"s3://{granted.bucket}/inputs/one/a"
    assert b"mine" == await call(objects.read, granted.store, uri)
    await asyncio.sleep(LIFETIME_SECONDS + 1)
    assert b"mine" == await call(objects.read, granted.store, uri)
    await granted.supervision.end_attempt(JOB, 1, "JOB_LOST", "", AT)
    await granted.supervision.begin_attempt(JOB, AT)
    await granted.supervision.grant(JOB, 2, Access((), (), ""))
    await asyncio.sleep(LIFETIME_SECONDS + 1)
    with pytest.raises(PermissionError, match="has ended"):
        await call(objects.read, granted.store, uri)


async def test_an_attempt_of_an_ended_job_gets_nothing(granted: Granted) -> None:
    await granted.supervision.end(JOB, JobState.CANCELLED, Outcome(succeeded=False), AT)
    with pytest.raises(PermissionError, match="has ended"):
        await call(objects.write, granted.store, granted.uri("late"), b"x")


async def test_an_artifact_has_the_bytes_of_its_digest(granted: Granted) -> None:
    prefix = f"s3://{granted.bucket}/artifacts"
    uri, digest = await call(objects.put_by_digest, granted.store, prefix, b"model")
    key = uri.removeprefix(f"s3://{granted.bucket}/")
    assert b"model" == await granted.behind.get(key)
    files = objects.granted_files(granted.store)
    assert files is not None

    def replace() -> None:
        files.put(objects.path_of(uri), b"other", sha256=digest)

    with pytest.raises(OSError, match="400"):
        await call(replace)
    assert b"model" == await granted.behind.get(key)


async def test_a_write_waits_until_the_trainer_answers_again(granted: Granted) -> None:
    """A port on which nothing listens at first."""
    listener = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    store = granted_store(f"127.0.0.1:{port}", granted.token)
    writing = asyncio.create_task(call(objects.write, store, granted.uri("patient"), b"x"))
    await asyncio.sleep(0.5)
    assert not writing.done()
    trainer_port = int(granted.trainer.address.rpartition(":")[2])
    forwarder = await asyncio.start_server(lambda r, w: forward(r, w, trainer_port), "127.0.0.1", port)
    async with asyncio.timeout(30):
        await writing
    forwarder.close()
    assert b"x" == await granted.behind.get("own/patient")


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Copy a connection to another port, in both directions."""
    there, here = await asyncio.open_connection("127.0.0.1", port)

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()

    tasks = [asyncio.create_task(copy(reader, here)), asyncio.create_task(copy(there, writer))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        here.close()
        writer.close()


async def test_threads_share_the_store(granted: Granted) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                objects.write(granted.store, granted.uri(f"t/{number}-{turn}"), bytes([number]) * 1000)
                found = objects.read(granted.store, granted.uri(f"t/{number}-{turn}"))
                assert bytes([number]) * 1000 == found
        except BaseException as error:
            failures.append(error)

    def run() -> None:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    await call(run)
    assert [] == failures
    assert 80 == len(await call(objects.files_under, granted.store, granted.uri("t")))
