"""Specifications of SCORE jobs as protobuf messages."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_job.batch_scoring.spec import PARTITION_ROWS
from flywheel_protos.trainer.v1 import scoring_pb2 as pb
from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.jobs.score_spec import ScoreSpec
from flywheel_trainer.runs.run import ExperimentName

_LIMITS = Limits()


def score_spec_from_proto(spec: pb.ScoreSpec, experiment: str) -> ScoreSpec:
    """Zero values become defaults. `experiment` is the id in the name of the experiment."""
    return ScoreSpec(
        experiment=experiment,
        release=spec.release,
        table_uri=spec.table_uri,
        timestamp_field=spec.timestamp_field,
        as_of_micros=spec.as_of.ToMicroseconds(),
        cache_ttl_seconds=_seconds(spec.cache_ttl),
        workers=spec.workers or 1,
        cpus_per_worker=spec.cpus_per_worker,
        partition_rows=spec.partition_rows or PARTITION_ROWS,
        limits=Limits(
            _seconds(spec.timeout) if spec.HasField("timeout") else _LIMITS.timeout_seconds,
            _seconds(spec.stall_timeout) if spec.HasField("stall_timeout") else _LIMITS.stall_seconds,
            spec.max_attempts or _LIMITS.max_attempts,
        ),
    )


def score_spec_to_proto(spec: ScoreSpec, project: str) -> pb.ScoreSpec:
    message = pb.ScoreSpec(
        experiment=str(ExperimentName(project, spec.experiment)),
        release=spec.release,
        table_uri=spec.table_uri,
        timestamp_field=spec.timestamp_field,
        workers=spec.workers,
        cpus_per_worker=spec.cpus_per_worker,
        partition_rows=spec.partition_rows,
        timeout=_duration(spec.limits.timeout_seconds),
        stall_timeout=_duration(spec.limits.stall_seconds),
        max_attempts=spec.limits.max_attempts,
    )
    if spec.as_of_micros:
        as_of = Timestamp()
        as_of.FromMicroseconds(spec.as_of_micros)
        message.as_of.CopyFrom(as_of)
    if spec.cache_ttl_seconds:
        message.cache_ttl.CopyFrom(_duration(spec.cache_ttl_seconds))
    return message


def _seconds(given: Duration) -> float:
    return given.seconds + given.nanos / 1e9


def _duration(seconds: float) -> Duration:
    found = Duration()
    found.FromTimedelta(timedelta(seconds=seconds))
    return found
