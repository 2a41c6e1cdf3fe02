"""Domain errors as plain values, on their way from the process of a task to the one that answers for the job."""

from __future__ import annotations

from flywheel_common import errors
from flywheel_common.errors import FlywheelError, Unavailable


def described(error: FlywheelError) -> dict[str, str]:
    return {"class": type(error).__name__, "message": error.message, "reason": error.reason, **error.metadata}


def restored(description: dict[str, str]) -> FlywheelError:
    """The error that `described` described."""
    metadata = dict(description)
    kind, message, reason = (metadata.pop(key) for key in ("class", "message", "reason"))
    made: FlywheelError = getattr(errors, kind, Unavailable)(message, reason=reason, **metadata)
    return made
