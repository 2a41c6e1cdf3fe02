"""Limits of jobs."""

from __future__ import annotations

from datetime import timedelta

from flywheel_protos.trainer.v1 import trainer_pb2


def limits_message(
    timeout: timedelta | None, stall_timeout: timedelta | None, max_attempts: int
) -> trainer_pb2.JobLimits:
    """The limits of a job; None and 0 are the defaults of the trainer."""
    message = trainer_pb2.JobLimits(max_attempts=max_attempts)
    if timeout is not None:
        message.timeout.FromTimedelta(timeout)
    if stall_timeout is not None:
        message.stall_timeout.FromTimedelta(stall_timeout)
    return message
