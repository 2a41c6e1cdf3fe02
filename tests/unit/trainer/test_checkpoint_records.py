"""Records of checkpoints at the edge, and what a job's process reports."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from pyarrow import fs
from torch import nn

from flywheel_common.granted.tokens import AttemptTokens
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_job.context import Context
from flywheel_job.reporting import MetricReporter
from flywheel_protos.trainer.v1 import checkpoint_pb2 as pb
from flywheel_protos.trainer.v1 import trainer_pb2_grpc
from tests.support.builders import trainer as build
from tests.support.builders.trainer import AT
from tests.support.builders.trainer_requests import P
from tests.support.servers.trainer import MemoryTrainer
from tests.support.training_job import launch_spec

OLD_FIELDS = ("step", "attempt", "world", "values", "files")
"""Of a marker before checkpoints were recorded."""
JOB, FOLDER = f"{P}/jobs/job-1", "s3://b/jobs/p/job-1/checkpoints"


@pytest.fixture
async def running(trainer: MemoryTrainer) -> MemoryTrainer:
    """A trainer with two running jobs."""
    supervision = trainer.ports.supervision(1_000_000)
    for number in ("1", "2"):
        job = await trainer.ports.jobs.create(build.job(number), {}, "", b"", AT)
        await supervision.begin_attempt(job.name, AT)
    return trainer


def record(trainer: MemoryTrainer, folder: str = FOLDER, attempt: str = "job-1-1", **fields: Any) -> Any:
    one = {"uri": f"{folder}/000000000003-000001", "step": 3, "attempt": 1, "world_size": 2, "size_bytes": 9}
    message = pb.Checkpoint(**{**one, "metrics": {"loss": 0.5}, **fields})
    message.created_at.FromDatetime(AT)
    request = pb.RecordCheckpointsRequest(parent=JOB, folder_uri=folder, checkpoints=[message])
    token = AttemptTokens(b"k" * 32).issue(attempt) if attempt else ""
    return trainer.stub.RecordCheckpoints(
        request, metadata=[("authorization", f"Bearer {token}")] if attempt else []
    )


async def listed(trainer: MemoryTrainer, parent: str = JOB) -> list[pb.Checkpoint]:
    response = await trainer.stub.ListCheckpoints(pb.ListCheckpointsRequest(parent=parent))
    return list(response.checkpoints)


async def failure(call: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return f"{error.code.name} {error.reason}"


async def test_an_attempt_records_the_checkpoints_of_its_job(running: MemoryTrainer) -> None:
    await record(running)
    trial = f"{FOLDER}/trials/7"
    await record(running, trial)
    first, second = await listed(running)
    assert (first.uri, second.uri) == (f"{FOLDER}/000000000003-000001", f"{trial}/000000000003-000001")
    assert (first.step, first.attempt, first.world_size, first.size_bytes) == (3, 1, 2, 9)
    assert dict(first.metrics) == {"loss": 0.5}
    assert await listed(running, f"{P}/jobs/job-2") == []
    assert await failure(listed(running, f"{P}/jobs/none")) == "NOT_FOUND UNKNOWN_JOB"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"attempt": ""}, "PERMISSION_DENIED FOREIGN_RUN"),
        ({"attempt": "job-2-1"}, "PERMISSION_DENIED FOREIGN_RUN"),
        ({"attempt": "job-1-2"}, "FAILED_PRECONDITION ATTEMPT_ENDED"),
    ],
)
async def test_other_callers_record_nothing(
    running: MemoryTrainer, fields: dict[str, Any], expected: str
) -> None:
    assert await failure(record(running, **fields)) == expected
    assert await listed(running) == []


@pytest.mark.parametrize(
    ("folder", "fields"),
    [
        ("s3://b/jobs/p/job-2/checkpoints", {}),
        (f"{FOLDER}-2", {}),
        (f"{FOLDER}/../../job-2/checkpoints", {}),
        (f"{FOLDER}/trials//7", {}),
        (FOLDER, {"uri": f"{FOLDER}/trials/000000000003-000001"}),
        (FOLDER, {"uri": f"{FOLDER}/latest"}),
        (FOLDER, {"step": -1}),
        (FOLDER, {"world_size": 0}),
        (FOLDER, {"size_bytes": -1}),
        (FOLDER, {"metrics": {"loss": float("nan")}}),
        (FOLDER, {"metrics": {f"m{number}": 0.0 for number in range(101)}}),
    ],
)
async def test_records_that_are_not_valid_are_refused(
    running: MemoryTrainer, folder: str, fields: dict[str, Any]
) -> None:
    assert await failure(record(running, folder, **fields)) == "INVALID_ARGUMENT INVALID_CHECKPOINT"
    assert await listed(running) == []


class Recorder(trainer_pb2_grpc.TrainerServiceServicer):
    """A trainer that keeps what it receives; `refuse` calls are answered UNAVAILABLE first."""

    def __init__(self) -> None:
        self.received: list[pb.RecordCheckpointsRequest] = []
        self.refuse, self.refused = 0, threading.Event()

    def RecordCheckpoints(self, request: Any, context: Any) -> pb.RecordCheckpointsResponse:
        if self.refuse:
            self.refuse -= 1
            self.refused.set()
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        self.received.append(request)
        return pb.RecordCheckpointsResponse()


@pytest.fixture
def recorder() -> Iterator[tuple[Recorder, str]]:
    recorder, server = Recorder(), grpc.server(futures.ThreadPoolExecutor(1))
    trainer_pb2_grpc.add_TrainerServiceServicer_to_server(recorder, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield recorder, address
    server.stop(None)


def train(folder: Path, address: str, steps: list[int], attempt: int) -> None:
    """Save a checkpoint at each step, in an attempt that restores first."""
    store = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
    spec = launch_spec("unused:unused", attempt=attempt)
    torch.manual_seed(1)
    model = nn.Linear(2, 1)
    with MetricReporter(address, spec.run) as reporter:
        ctx = Context(spec, store, reporter)
        ctx.restore(model)
        for step in steps:
            ctx.log({"loss": 1 / step}, step)
            ctx.save(step, model)


def places(request: pb.RecordCheckpointsRequest) -> list[tuple[int, int, float]]:
    return [(one.step, one.attempt, one.metrics["loss"]) for one in request.checkpoints]


def test_saved_checkpoints_are_reported_after_an_outage(
    tmp_path: Path, recorder: tuple[Recorder, str]
) -> None:
    service, address = recorder
    service.refuse = 1
    with MetricReporter(address, "r") as reporter:
        spec = launch_spec("unused:unused")
        ctx = Context(spec, fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), reporter)
        for step in (1, 2, 4):
            ctx.log({"loss": 1 / step}, step)
            ctx.save(step, nn.Linear(2, 1))
        assert service.refused.wait(30)
    last = service.received[-1]
    assert (last.parent, last.folder_uri) == ("projects/p/jobs/j", "s3://b/checkpoints")
    assert places(last) == [(2, 1, 0.5), (4, 1, 0.25)], "only the newest two are kept"
    path = tmp_path / "b/checkpoints/000000000004-000001"
    files = [one for one in path.rglob("*") if one.is_file() and one.name != "complete.json"]
    assert last.checkpoints[1].size_bytes == sum(one.stat().st_size for one in files)
    assert last.checkpoints[1].uri == "s3://b/checkpoints/000000000004-000001"


def test_the_next_attempt_reports_what_one_before_it_did_not(
    tmp_path: Path, recorder: tuple[Recorder, str]
) -> None:
    service, address = recorder
    train(tmp_path, "", [1, 2], attempt=1)  # it died before it reported anything
    train(tmp_path, address, [], attempt=2)
    assert [places(one) for one in service.received] == [[(1, 1, 1.0), (2, 1, 0.5)]]
    train(tmp_path, address, [4], attempt=3)
    assert places(service.received[-1]) == [(2, 1, 0.5), (4, 3, 0.25)]


def test_markers_of_older_versions_are_reported(tmp_path: Path, recorder: tuple[Recorder, str]) -> None:
    service, address = recorder
    train(tmp_path, "", [1], attempt=1)
    [marker] = (tmp_path / "b/checkpoints").rglob("complete.json")
    fields = json.loads(marker.read_text())
    marker.write_text(json.dumps({name: fields[name] for name in OLD_FIELDS}))
    train(tmp_path, address, [], attempt=2)
    [one] = service.received[-1].checkpoints
    assert (one.step, one.attempt, dict(one.metrics)) == (1, 1, {})
    assert one.created_at.seconds > 0


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_marker_that_cannot_be_read_delays_the_records_only(
    tmp_path: Path, recorder: tuple[Recorder, str], content: str
) -> None:
    service, address = recorder
    train(tmp_path, "", [1], attempt=1)
    [marker] = (tmp_path / "b/checkpoints").rglob("complete.json")
    marker.write_text(content)
    spec = launch_spec("unused:unused", attempt=2)
    with MetricReporter(address, spec.run) as reporter:
        ctx = Context(spec, fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), reporter)
        for step in (2, 3):
            ctx.save(step, nn.Linear(2, 1))
    # The second save leaves the newest two, whose markers can be read.
    assert [[one.step for one in request.checkpoints] for request in service.received] == [[2, 3]]
