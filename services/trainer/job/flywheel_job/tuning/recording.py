"""`Trials` through the RPCs of the trainer, with the token of the attempt."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
from pyarrow import fs

from flywheel_job import objects
from flywheel_job.granted import TOKEN_VARIABLE
from flywheel_job.launch import LaunchSpec
from flywheel_job.outcome import MetricPoint, Outcome
from flywheel_job.reporting import AWAY, BATCH_POINTS
from flywheel_job.tuning.launch import trial_run
from flywheel_job.tuning.messages import trial_from_proto, trial_to_proto
from flywheel_job.tuning.trial import Trial
from flywheel_protos.trainer.v1 import checkpoint_pb2, trainer_pb2, trainer_pb2_grpc, tuning_pb2

CALL_SECONDS = 20.0
PAUSE_SECONDS = 1.0


class TrainerTrials:
    """The trials of one job at the trainer. All calls are idempotent, so an outage only delays them."""

    def __init__(self, base: LaunchSpec, store: fs.FileSystem) -> None:
        self._base, self._store = base, store
        token = os.environ.get(TOKEN_VARIABLE)
        self._metadata = [("authorization", f"Bearer {token}")] if token else None
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 2000)]
        self._channel = grpc.insecure_channel(base.trainer_address, options=options)
        self._stub = trainer_pb2_grpc.TrainerServiceStub(self._channel)

    def load(self) -> list[Trial]:
        found: list[Trial] = []
        token = ""
        while True:
            page = self._call(
                self._stub.ListTrials,
                tuning_pb2.ListTrialsRequest(parent=self._base.job, page_size=500, page_token=token),
            )
            found += [trial_from_proto(one) for one in page.trials]
            token = page.next_page_token
            if not token:
                return found

    def record(self, trial: Trial, outcome: Outcome | None = None) -> None:
        if outcome is not None:
            self._log(trial_run(self._base.run, trial.number), outcome.points)
        self._call(
            self._stub.RecordTrial,
            tuning_pb2.RecordTrialRequest(
                parent=self._base.job,
                trial=trial_to_proto(trial),
                outcome_json=b"" if outcome is None else replace(outcome, points=()).to_json(),
            ),
        )

    def forget_checkpoints(self, folder: str) -> None:
        uri = f"{self._base.checkpoint_uri}/{folder}"
        objects.delete(self._store, uri)
        request = checkpoint_pb2.RecordCheckpointsRequest(parent=self._base.job, folder_uri=uri)
        with contextlib.suppress(grpc.RpcError):  # records without files harm nothing
            self._call(self._stub.RecordCheckpoints, request)

    def close(self) -> None:
        self._channel.close()

    def _log(self, run: str, points: tuple[MetricPoint, ...]) -> None:
        """Points that have arrived already are not stored twice."""
        for first in range(0, len(points), BATCH_POINTS):
            batch = points[first : first + BATCH_POINTS]
            request = trainer_pb2.LogMetricsRequest(
                run=run,
                keys=[point.key for point in batch],
                steps=[point.step for point in batch],
                values=[point.value for point in batch],
                times=[point.time_us for point in batch],
            )
            self._call(self._stub.LogMetrics, request)

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        while True:
            try:
                return method(request, timeout=CALL_SECONDS, metadata=self._metadata)
            except grpc.RpcError as error:
                if error.code() not in AWAY:
                    raise
                sys.stderr.write(f"the trainer does not answer, trying again: {error.details()}\n")
                time.sleep(PAUSE_SECONDS)
