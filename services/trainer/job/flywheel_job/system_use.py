"""Sends the use of the machine by one rank to the trainer service while the rank runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from flywheel_common.system_metrics import SystemMetrics
from flywheel_job.granted import TOKEN_VARIABLE
from flywheel_job.launch import LaunchSpec
from flywheel_protos.trainer.v1 import trainer_pb2, trainer_pb2_grpc

READING_SECONDS = 10.0
CALL_SECONDS = 2.0


@contextmanager
def system_use_reported(spec: LaunchSpec, rank: int) -> Iterator[None]:
    """Log the metrics of the machine every 10 s and at the end, from a thread.

    A reading that the service does not take is lost: the outcome of a job has none of them.
    """
    if not spec.trainer_address:
        yield
        return
    metrics, stop = SystemMetrics(rank), threading.Event()

    def report() -> None:
        token = os.environ.get(TOKEN_VARIABLE)
        metadata = [("authorization", f"Bearer {token}")] if token else None
        with grpc.insecure_channel(spec.trainer_address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            ended = False
            while not ended:
                ended = stop.wait(READING_SECONDS)
                found, now = metrics.read(), time.time_ns() // 1000
                request = trainer_pb2.LogMetricsRequest(
                    run=spec.run,
                    keys=found.keys(),
                    steps=[now // 1_000_000] * len(found),
                    values=found.values(),
                    times=[now] * len(found),
                )
                try:
                    stub.LogMetrics(request, timeout=CALL_SECONDS, metadata=metadata)
                except grpc.RpcError:
                    continue

    thread = threading.Thread(target=report, name="system use", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2 * CALL_SECONDS)
