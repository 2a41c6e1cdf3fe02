"""Errors of records of checkpoints."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument


class InvalidCheckpoint(InvalidArgument):
    """A record of a checkpoint is of another job's files, or has a number that no checkpoint has."""

    reason = "INVALID_CHECKPOINT"
    remedy = "Only attempts of a job record its checkpoints; use the same version of them and of the trainer."
