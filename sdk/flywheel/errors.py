"""What a call raises: the service's own error, with its status, reason and sentence."""

from __future__ import annotations

from flywheel_common.errors import FlywheelError, NotFound, Unavailable

__all__ = ["FlywheelError", "JobFailedError", "NotFound", "Unavailable"]


class JobFailedError(Exception):
    """A job or pipeline run that was waited for ended without success; `reason` is API."""

    def __init__(self, name: str, reason: str, message: str) -> None:
        super().__init__(f"{name} ended: {reason}: {message}")
        self.name, self.reason = name, reason


class DefinitionError(ValueError):
    """A definition cannot be; the message begins with its file and line."""
