"""Sends live metrics and records of checkpoints from a job to the trainer service.

If the service does not answer, they are sent again later; the outcome contains all points in any case, and
the next attempt reports the checkpoints that it finds.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import grpc

from flywheel_job.granted import TOKEN_VARIABLE
from flywheel_job.outcome import MetricPoint
from flywheel_job.saved_checkpoint import Saved
from flywheel_protos.trainer.v1 import checkpoint_pb2, trainer_pb2, trainer_pb2_grpc

FLUSH_SECONDS = 0.5
CALL_SECONDS = 5.0
BATCH_POINTS = 10_000
"""Points per call; the service accepts 100,000."""
SENT_METRICS = 100
"""Metrics of a checkpoint that are sent."""
AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
    }
)
"""Answers after which a call is repeated."""


class MetricReporter:
    """Collects metric points and sends them from a thread, so that training never waits for the network."""

    def __init__(self, address: str, run: str) -> None:
        """`address` is host:port of the trainer service; if it is empty, points are only collected."""
        token = os.environ.get(TOKEN_VARIABLE)
        self.run_ended = threading.Event()
        """Set when the service answers that the run has ended: it was cancelled, or has another attempt."""
        self._metadata = [("authorization", f"Bearer {token}")] if token else None
        self.points: list[MetricPoint] = []
        self._run = run
        self._sent = 0
        self._checkpoints: checkpoint_pb2.RecordCheckpointsRequest | None = None
        self._stop = threading.Event()
        self._channel = (
            grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) if address else None
        )
        self._thread = threading.Thread(target=self._send_until_stopped, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        if self._channel is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._channel is not None:
            self._thread.join(timeout=2 * CALL_SECONDS)
            self._channel.close()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point per metric at `step`."""
        now = time.time_ns() // 1000
        self.points += [MetricPoint(key, step, value, now) for key, value in values.items()]

    def report_checkpoints(self, job: str, folder_uri: str, saved: Sequence[Saved]) -> None:
        """Send the complete checkpoints of a folder soon; replaces an earlier report that was not sent."""
        request = checkpoint_pb2.RecordCheckpointsRequest(parent=job, folder_uri=folder_uri.rstrip("/"))
        for one in saved:
            made = request.checkpoints.add(
                uri=one.uri,
                step=one.step,
                attempt=one.attempt,
                world_size=one.world,
                size_bytes=one.size_bytes,
                metrics=dict(list(one.metrics.items())[:SENT_METRICS]),
            )
            made.created_at.FromMicroseconds(one.time_us or time.time_ns() // 1000)
        self._checkpoints = request

    def _send_checkpoints(self, stub: trainer_pb2_grpc.TrainerServiceStub) -> None:
        request = self._checkpoints
        if request is None:
            return
        try:
            stub.RecordCheckpoints(request, timeout=CALL_SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            if error.code() in AWAY:  # sent again with the next flush
                return
        # Other refusals are final: without a token nothing is recorded, and a later attempt reports its own.
        if self._checkpoints is request:
            self._checkpoints = None

    def _send_until_stopped(self) -> None:
        assert self._channel is not None
        stub = trainer_pb2_grpc.TrainerServiceStub(self._channel)
        while True:
            last = self._stop.wait(FLUSH_SECONDS)
            self._send_checkpoints(stub)
            failed = False
            batch = self.points[self._sent : self._sent + BATCH_POINTS]
            if batch:
                try:
                    stub.LogMetrics(
                        trainer_pb2.LogMetricsRequest(
                            run=self._run,
                            keys=[p.key for p in batch],
                            steps=[p.step for p in batch],
                            values=[p.value for p in batch],
                            times=[p.time_us for p in batch],
                        ),
                        timeout=CALL_SECONDS,
                        metadata=self._metadata,
                    )
                    self._sent += len(batch)
                except grpc.RpcError as error:
                    # Sent again with the next flush; the outcome contains points that never arrive.
                    failed = True
                    if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                        self.run_ended.set()
            if last and (not batch or self._sent == len(self.points) or failed):
                return
