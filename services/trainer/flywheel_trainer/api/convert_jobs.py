"""Conversion of jobs between protobuf and domain."""

from __future__ import annotations

from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from flywheel_trainer.api.convert_times import timestamp
from flywheel_trainer.encoding.specs import job_with_spec
from flywheel_trainer.jobs.attempt import Attempt
from flywheel_trainer.jobs.job import Job, JobState


def job_state_to_proto(state: JobState) -> str:
    """The name of the enum value, which protobuf accepts in constructors."""
    return f"JOB_STATE_{state}"


def job_to_proto(job: Job) -> pb.Job:
    message = pb.Job(
        name=str(job.name),
        kind=job.kind,
        state=job_state_to_proto(job.state),
        progress=job_pb2.JobProgress(**job.progress),
        run=str(job.run),
        error_reason=job.error_reason,
        error_message=job.error_message,
        created_at=timestamp(job.created_at),
        started_at=timestamp(job.started_at),
        ended_at=timestamp(job.ended_at),
        priority=job.priority,
        cancel_requested=job.cancel_requested,
        attempts=[_attempt_to_proto(attempt) for attempt in job.attempts],
        pipeline_run=job.pipeline_run,
    )
    message.MergeFrom(job_with_spec(job.spec, job.name.project))
    return message


def _attempt_to_proto(attempt: Attempt) -> pb.JobAttempt:
    return pb.JobAttempt(
        number=attempt.number,
        engine_id=attempt.engine_id,
        created_at=timestamp(attempt.created_at),
        started_at=timestamp(attempt.started_at),
        ended_at=timestamp(attempt.ended_at),
        error_reason=attempt.error_reason,
        error_message=attempt.error_message,
    )
