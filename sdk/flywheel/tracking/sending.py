"""Sends the records of a spool to the trainer, in order, until each is answered."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from flywheel.tracking.endpoint import Endpoint
from flywheel.tracking.spool import Kind, Record, Spool
from flywheel_common.errors import (
    AlreadyExists,
    FailedPrecondition,
    FlywheelError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_protos.trainer.v1 import tracking_pb2, trainer_pb2, trainer_pb2_grpc

CALL_SECONDS = 20.0
UPLOAD_SECONDS = 3600.0
FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 0.1, 5.0
CHUNK_BYTES = 512 * 1024
MAX_PROBLEMS = 20
_FINAL = (AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied)
"""Answers that do not change when the same request is sent again; any other failure is one of the trainer or
of the way to it."""


class Sender:
    """Sends one spool; used by one thread. `run` is the resource name of its run."""

    def __init__(self, spool: Spool, endpoint: Endpoint, run: str, heartbeat_seconds: float) -> None:
        self._spool, self._run, self._heartbeat_seconds = spool, run, heartbeat_seconds
        self._endpoint, self._channel = endpoint, endpoint.channel()
        self._stub = trainer_pb2_grpc.TrainerServiceStub(self._channel)
        self._last_answer = time.monotonic()
        self._backoff = FIRST_BACKOFF_SECONDS
        self.stop = threading.Event()
        """Set to end `send_until_stopped` after the call in progress."""
        self.first_try = threading.Event()
        """Set after the first answer or failure."""
        self.refusal: FlywheelError | None = None
        """Why the trainer refused to create or continue the run; then nothing can be sent."""
        self.problems: list[str] = []
        """Sentences about records that were refused or changed nothing, at most MAX_PROBLEMS."""
        self.problem_count = 0
        self.ignored_points = 0
        """Points whose (key, step) has another value, which is kept."""

    def send_until_stopped(self, wake: threading.Event) -> None:
        """Send records and heartbeats until `stop` is set."""
        while not self.stop.is_set():
            if not self.send_next():
                wake.wait(0.1)
                wake.clear()
                if time.monotonic() - self._last_answer > self._heartbeat_seconds:
                    self._heartbeat()

    def send_next(self) -> bool:
        """Send the first record; False: there is none. After a failure, wait, and leave it in place."""
        record = self._spool.next()
        if record is None:
            return False
        try:
            state = self._send(record)
        except FlywheelError as error:
            if not isinstance(error, _FINAL):
                if isinstance(error, Unauthenticated):
                    # A newer token may be accepted: what was logged waits for it.
                    self._problem(f"The token was not accepted: {error.reason}: {error.message}")
                self.first_try.set()
                self.stop.wait(self._backoff)
                self._backoff = min(self._backoff * 2, LAST_BACKOFF_SECONDS)
                return True
            self._refuse(record, error)
            state = {}
        self._spool.sent(record, **state)
        self._last_answer, self._backoff = time.monotonic(), FIRST_BACKOFF_SECONDS
        self.first_try.set()
        return True

    def drain(self, deadline: float) -> bool:
        """Send until nothing is left or the time (monotonic) has come; whether nothing is left."""
        while time.monotonic() < deadline:
            if not self.send_next():
                return True
        return self._spool.next() is None

    def close(self) -> None:
        self._channel.close()

    def _send(self, record: Record) -> dict[str, Any]:
        """Send a record; returns what the spool has to keep. Raises FlywheelError."""
        if self.refusal is not None:
            return {}
        match record.kind:
            case Kind.CREATE:
                create = trainer_pb2.CreateRunRequest.FromString(record.payload)
                return {"generation": self._create(create).run.generation}
            case Kind.CONTINUE:
                again = tracking_pb2.ContinueRunRequest.FromString(record.payload)
                return {"generation": self._call(self._stub.ContinueRun, again).run.generation}
            case Kind.METRICS:
                points = trainer_pb2.LogMetricsRequest.FromString(record.payload)
                points.generation = self._generation
                ignored = self._call(self._stub.LogMetrics, points).ignored_count
                if ignored:
                    self.ignored_points += ignored
                    self._problem(f"{ignored} points have a step that was logged before with another value.")
            case Kind.UPDATE:
                update = trainer_pb2.UpdateRunRequest.FromString(record.payload)
                update.generation = self._generation
                for param in self._call(self._stub.UpdateRun, update).ignored_params:
                    self._problem(f"The param {param!r} keeps its first value.")
            case Kind.EDIT:
                self._call(self._stub.EditRun, tracking_pb2.EditRunRequest.FromString(record.payload))
            case Kind.ARTIFACT:
                file = json.loads(record.payload)
                if not self._spool.file(file["file"]).exists():
                    self._problem(f"The copy of the artifact {file['name']!r} is gone from the spool.")
                    return {}
                self._call(self._stub.UploadRunArtifact, self._parts(file), UPLOAD_SECONDS)
        return {}

    @property
    def _generation(self) -> int:
        return int(self._spool.state.get("generation", 0))

    def _create(self, request: trainer_pb2.CreateRunRequest) -> trainer_pb2.CreateRunResponse:
        try:
            return self._call(self._stub.CreateRun, request)
        except NotFound as error:
            if error.reason != "UNKNOWN_EXPERIMENT":
                raise
        project, _, experiment = request.run.experiment.partition("/experiments/")
        self._call(
            self._stub.CreateExperiment,
            trainer_pb2.CreateExperimentRequest(
                parent=project, experiment_id=experiment, request_id=f"{request.request_id}-experiment"
            ),
        )
        return self._call(self._stub.CreateRun, request)

    def _parts(self, file: dict[str, Any]) -> Iterator[tracking_pb2.UploadRunArtifactRequest]:
        target = tracking_pb2.UploadRunArtifactRequest.Target(
            run=self._run, artifact=file["name"], sha256=file["sha256"], size_bytes=file["size"]
        )
        yield tracking_pb2.UploadRunArtifactRequest(target=target)
        with self._spool.file(file["file"]).open("rb") as content:
            while chunk := content.read(CHUNK_BYTES):
                yield tracking_pb2.UploadRunArtifactRequest(data=chunk)

    def _call(self, method: Any, request: Any, timeout: float = CALL_SECONDS) -> Any:
        try:
            return method(request, timeout=timeout, metadata=self._endpoint.metadata())
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def _heartbeat(self) -> None:
        self._last_answer = time.monotonic()
        if self.refusal is not None or not self._generation:
            return
        try:
            request = trainer_pb2.UpdateRunRequest(name=self._run, generation=self._generation)
            self._call(self._stub.UpdateRun, request)
        except FlywheelError as error:
            if isinstance(error, _FINAL):
                self._problem(f"A heartbeat was refused: {error.reason}: {error.message}")

    def _refuse(self, record: Record, error: FlywheelError) -> None:
        if record.kind in (Kind.CREATE, Kind.CONTINUE):
            self.refusal = error
        self._problem(f"{record.kind.name} was refused: {error.reason}: {error.message}")

    def _problem(self, sentence: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS and sentence not in self.problems:
            self.problems.append(sentence)
