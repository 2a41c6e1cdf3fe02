"""Errors of writing features: pushes, materialization, stream processing."""

from __future__ import annotations

from flywheel_common.errors import DataLoss, InvalidArgument, Unavailable


class ValidationFailed(InvalidArgument):
    """A row breaks a validation rule whose action is REJECT; nothing was written."""

    reason = "VALIDATION_FAILED"
    remedy = "Correct the row that the message names, or change the rule."


class InvalidRange(InvalidArgument):
    """The start of a time range is not before its end."""

    reason = "INVALID_RANGE"
    remedy = "Send a start_time before end_time, or leave one of them out."


class FilesLeftOut(DataLoss):
    """A materialization left out files that cannot be read or hold invalid values; all others are online."""

    reason = "FILES_LEFT_OUT"
    remedy = "Correct the files that the message names, then materialize again."


class PositionsContested(Unavailable):
    """Other processes moved the positions of a stream source while this one refilled its tiles."""

    reason = "POSITIONS_CONTESTED"
    remedy = "Retry; the other processes finish the same work."
