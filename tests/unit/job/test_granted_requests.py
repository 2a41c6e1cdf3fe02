"""Requests of an attempt: repeated while the trainer or the store is away, and given up when refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pyarrow as pa
import pytest
from google.protobuf.duration_pb2 import Duration
from pyarrow import fs

from flywheel_common.granted.filesystem import GrantedFiles
from flywheel_common.granted.requests import SignedRequests
from flywheel_common.granted.streams import PART_BYTES, WINDOW_BYTES, Reader, Uploads, Writer
from flywheel_job.batch_scoring.output import Output
from flywheel_job.batch_scoring.partitions import Partition
from flywheel_job.granted import TRAINER
from flywheel_protos.trainer.v1 import object_access_pb2, trainer_pb2_grpc
from flywheel_protos.types.v1 import object_access_pb2 as pb

URI = "s3://b/own/a"
METHODS = {
    "GET": "GET",
    "DELETE": "DELETE",
    "ABORT_UPLOAD": "DELETE",
    "CREATE_UPLOAD": "POST",
    "COMPLETE_UPLOAD": "POST",
}
GET = pb.ObjectRequest(method=pb.OBJECT_METHOD_GET, uri=URI)
Answer = tuple[int, bytes] | tuple[int, bytes, str] | str
"""Status and body, and perhaps the Content-Range."""


@dataclass
class World:
    """A trainer and a store that answer as a test says, and what they were asked."""

    requests: SignedRequests
    answers: list[Answer] = field(default_factory=list)
    """Of the store, in order; then 200. A text is a fault: `cut` ends the connection in the body."""
    signing: list[grpc.StatusCode] = field(default_factory=list)
    """Errors of the trainer, in order; then it signs."""
    lifetime: int = 900
    asked: list[str] = field(default_factory=list)
    """HTTP method and path of what the store received."""
    bodies: list[bytes] = field(default_factory=list)
    signed: list[pb.ObjectRequest] = field(default_factory=list)


@pytest.fixture
def world() -> Iterator[World]:
    class Store(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            world.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            world.asked.append(f"{self.command} {self.path}")
            answer = world.answers.pop(0) if world.answers else (200, b"content")
            if answer == "cut":
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"x")
                self.close_connection = True
                return
            assert not isinstance(answer, str)
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(answer[1])))
            if len(answer) == 3:
                self.send_header("Content-Range", answer[2])
            self.send_header("ETag", f'"{len(world.asked)}"')
            self.end_headers()
            self.wfile.write(answer[1])

        do_GET = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - names of the base class

        def log_message(self, *_: Any) -> None:
            pass

    class Trainer(trainer_pb2_grpc.TrainerServiceServicer):
        def SignObjectRequests(self, request: Any, context: Any) -> Any:
            assert ("authorization", "Bearer token") in context.invocation_metadata()
            if world.signing:
                context.abort(world.signing.pop(0), "as the test says")
            (one,) = request.requests
            world.signed.append(one)
            method = METHODS.get(pb.ObjectMethod.Name(one.method).removeprefix("OBJECT_METHOD_"), "PUT")
            url = f"http://127.0.0.1:{store.server_port}/{len(world.signed)}"
            signed = pb.SignedObjectRequest(http_method=method, url=url)
            lifetime = Duration(seconds=world.lifetime)
            return object_access_pb2.SignObjectRequestsResponse(requests=[signed], lifetime=lifetime)

    store = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    serving = threading.Thread(target=store.serve_forever)
    serving.start()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trainer_pb2_grpc.add_TrainerServiceServicer_to_server(Trainer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    requests = SignedRequests(f"127.0.0.1:{port}", "token", TRAINER, retry_seconds=5)
    world = World(requests)
    yield world
    requests.close()
    server.stop(None).wait()
    store.shutdown()
    store.server_close()
    serving.join()


def test_a_signed_request_is_sent_again_while_it_is_new(world: World) -> None:
    for _ in range(3):
        assert b"content" == world.requests.send(GET).body
    assert ["GET /1"] * 3 == world.asked
    world.lifetime = 0
    world.requests.send(pb.ObjectRequest(method=pb.OBJECT_METHOD_GET, uri="s3://b/own/b"))
    world.requests.send(pb.ObjectRequest(method=pb.OBJECT_METHOD_GET, uri="s3://b/own/b"))
    assert ["GET /2", "GET /3"] == world.asked[3:]


def test_a_store_that_is_away_for_a_while_is_asked_again(world: World) -> None:
    world.answers = [(503, b"slow down"), (500, b"internal"), "cut", (200, b"late")]
    assert b"late" == world.requests.send(GET).body
    assert 4 == len(world.asked)


def test_a_trainer_that_is_away_for_a_while_is_asked_again(world: World) -> None:
    world.signing = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert b"content" == world.requests.send(GET).body


def test_a_request_that_expired_on_its_way_is_signed_again_once(world: World) -> None:
    world.answers = [(403, b"expired"), (200, b"renewed")]
    assert b"renewed" == world.requests.send(GET).body
    assert ["GET /1", "GET /2"] == world.asked
    world.answers = [(403, b"no"), (403, b"no"), (200, b"never")]
    with pytest.raises(PermissionError, match="403"):
        world.requests.send(GET)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, PermissionError),
        (grpc.StatusCode.FAILED_PRECONDITION, PermissionError),
        (grpc.StatusCode.INVALID_ARGUMENT, PermissionError),
    ],
)
def test_a_refusal_of_the_trainer_is_final(
    world: World, code: grpc.StatusCode, error: type[Exception]
) -> None:
    world.signing = [code]
    with pytest.raises(error, match=code.name):
        world.requests.send(GET)
    assert [] == world.asked


def test_an_absent_object_and_a_wrong_request_are_told_apart(world: World) -> None:
    world.answers = [(404, b"")]
    with pytest.raises(FileNotFoundError):
        world.requests.send(GET)
    world.answers = [(400, b"BadDigest")]
    with pytest.raises(OSError, match="BadDigest") as caught:
        world.requests.send(GET)
    assert not isinstance(caught.value, FileNotFoundError | PermissionError)


def test_what_stays_away_is_given_up(world: World) -> None:
    world.requests.retry_seconds = 0.5
    world.answers = [(503, b"")] * 100
    with pytest.raises(OSError, match="503"):
        world.requests.send(GET)
    world.signing = [grpc.StatusCode.UNAVAILABLE] * 100
    with pytest.raises(OSError, match="signs requests does not answer"):
        world.requests.send(pb.ObjectRequest(method=pb.OBJECT_METHOD_GET, uri="s3://b/own/b"))


CREATED = b'<R xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><UploadId>u1</UploadId></R>'


def upload(world: World, write: Callable[[Writer], None]) -> list[str]:
    """The methods that a write needs, by name."""
    writer = Writer(world.requests, Uploads(world.requests), URI)
    write(writer)
    return methods_of(world)


def methods_of(world: World) -> list[str]:
    return [pb.ObjectMethod.Name(one.method).removeprefix("OBJECT_METHOD_") for one in world.signed]


def test_a_small_file_is_one_request(world: World) -> None:
    def write(writer: Writer) -> None:
        for part in (b"a", b"", b"bc"):
            writer.write(part)
        writer.close()
        writer.close()

    assert ["PUT"] == upload(world, write)
    assert [b"abc"] == world.bodies


PIECES = [[PART_BYTES], [1, PART_BYTES - 1], [3, PART_BYTES, 5], [2 * PART_BYTES + 9]]


@pytest.mark.parametrize("pieces", PIECES)
def test_a_large_file_is_sent_in_parts_of_equal_size(world: World, pieces: list[int]) -> None:
    content = bytes(range(256)) * (sum(pieces) // 256 + 1)
    world.answers = [(200, CREATED)]

    def write(writer: Writer) -> None:
        at = 0
        for size in pieces:
            writer.write(content[at : at + size])
            at += size
        writer.close()

    methods = upload(world, write)
    sizes = [len(body) for body in world.bodies[1:-1]]
    assert all(size == PART_BYTES for size in sizes[:-1])
    assert content[: sum(pieces)] == b"".join(world.bodies[1:-1])
    assert ["CREATE_UPLOAD", *["UPLOAD_PART"] * len(sizes), "COMPLETE_UPLOAD"] == methods
    assert list(range(1, len(sizes) + 1)) == [one.part_number for one in world.signed[1:-1]]
    assert {"u1"} == {one.upload_id for one in world.signed[1:]}


def test_an_upload_that_fails_removes_its_parts(world: World) -> None:
    world.answers = [(200, CREATED), (400, b"no space")]

    def write(writer: Writer) -> None:
        with pytest.raises(OSError, match="no space"):
            writer.write(bytes(PART_BYTES))
        writer.close()

    assert ["CREATE_UPLOAD", "UPLOAD_PART", "ABORT_UPLOAD"] == upload(world, write)


def test_a_file_whose_write_failed_or_that_is_dropped_does_not_appear(world: World) -> None:
    def fail(writer: Writer) -> None:
        writer.write(b"begin")
        with pytest.raises(TypeError):
            writer.write("text")
        with pytest.raises(OSError, match="an earlier write failed"):
            writer.write(b"a footer")
        writer.close()

    assert [] == upload(world, fail)
    assert [] == upload(world, lambda writer: writer.write(b"begin"))
    assert [] == world.bodies


def test_a_dropped_upload_removes_its_parts(world: World) -> None:
    world.answers = [(200, CREATED)]
    upload(world, lambda writer: writer.write(bytes(PART_BYTES + 1)))
    assert ["CREATE_UPLOAD", "UPLOAD_PART", "ABORT_UPLOAD"] == methods_of(world)


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_predictions_that_end_too_early_do_not_appear(world: World, error: type[BaseException]) -> None:
    output = Output(fs.PyFileSystem(GrantedFiles(world.requests)), "s3://b/own/")
    batch = pa.record_batch({"n": range(1 << 17)})

    def ends() -> Iterator[pa.RecordBatch]:
        yield batch
        raise error

    def write() -> None:
        with pytest.raises(error):
            output.write(Partition(0, "t", 0, 1, 1), batch.schema, ends())

    write()
    assert [] == methods_of(world)


def test_an_upload_whose_completion_fails_in_the_body_is_an_error(world: World) -> None:
    world.answers = [(200, CREATED), (200, b""), (200, b"<Error><Code>InternalError</Code></Error>")]

    def write(writer: Writer) -> None:
        writer.write(bytes(PART_BYTES))
        with pytest.raises(OSError, match="InternalError"):
            writer.close()

    upload(world, write)


def test_small_pieces_of_a_file_are_read_together(world: World) -> None:
    content = bytes(range(250)) * 4000  # 1 MB
    reader = Reader(world.requests, URI, len(content))
    world.answers = [(206, content[10 : 10 + WINDOW_BYTES])]
    reader.seek(10)
    pieces = [reader.read(100) for _ in range(1000)]
    assert content[10:100_010] == b"".join(pieces)
    reader.seek(10)
    assert content[10:20] == reader.read(10)
    assert 1 == len(world.asked)
    world.answers = [(206, content[-100:])]
    reader.seek(-100, 2)
    assert (content[-100:], b"") == (reader.read(), reader.read(5))
    world.answers = [(206, content[100 : 100 + WINDOW_BYTES])]
    reader.seek(100)
    assert content[100 : 100 + WINDOW_BYTES] == reader.read(WINDOW_BYTES)
    assert len(content) == reader.seek(0, 2)
    assert 3 == len(world.asked)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(world: World) -> None:
    world.answers = [(206, b"abc")]
    with pytest.raises(OSError, match="3 bytes instead of 5"):
        Reader(world.requests, URI, 5).read()


def test_a_small_file_is_opened_and_read_with_one_request(world: World) -> None:
    world.answers = [(206, b"whole file", "bytes 0-9/10")]
    reader = Reader.open(world.requests, URI)
    assert (10, 0) == (reader.seek(0, 2), reader.seek(0))
    assert (b"whole", b" file", b"") == (reader.read(5), reader.read(), reader.read(1))
    assert ["GET /1"] == world.asked


def test_the_end_of_a_large_file_is_read_when_it_is_opened(world: World) -> None:
    content = bytes(range(250)) * 4000  # 1 MB
    start = len(content) - WINDOW_BYTES
    world.answers = [(206, content[start:], f"bytes {start}-{len(content) - 1}/{len(content)}")]
    reader = Reader.open(world.requests, URI)
    reader.seek(-100, 2)
    assert content[-100:] == reader.read()
    assert 1 == len(world.asked)
    world.answers = [(206, content[10 : 10 + WINDOW_BYTES])]
    reader.seek(10)
    assert content[10:20] == reader.read(10)
    assert 2 == len(world.asked)


@pytest.mark.parametrize("answer", [(416, b"InvalidRange"), (206, b"", "bytes */0")])
def test_an_empty_file_is_read(world: World, answer: Answer) -> None:
    world.answers = [answer, (200, b"")]
    assert b"" == Reader.open(world.requests, URI).read()


def test_a_store_that_does_not_name_the_range_is_asked_for_the_size(world: World) -> None:
    world.answers = [(200, b"0123456789"), (200, b"01234"), (206, b"0123")]
    reader = Reader.open(world.requests, URI)
    assert ["GET", "HEAD"] == [
        pb.ObjectMethod.Name(one.method).removeprefix("OBJECT_METHOD_") for one in world.signed
    ]
    assert 5 == reader.seek(0, 2)


def test_an_absent_file_is_not_opened(world: World) -> None:
    world.answers = [(404, b"")]
    with pytest.raises(FileNotFoundError):
        Reader.open(world.requests, URI)
