"""Errors of the SDK: those that services report, failed jobs, invalid models and definitions."""

from __future__ import annotations

from flywheel_common.errors import FlywheelError, NotFound, Unavailable

__all__ = [
    "FlywheelError",
    "InvalidModelError",
    "JobFailedError",
    "NotFound",
    "PipelineError",
    "SourceError",
    "Unavailable",
]


class JobFailedError(Exception):
    """A job or pipeline run ended without success. `reason` is part of the API."""

    def __init__(self, name: str, reason: str, message: str) -> None:
        super().__init__(f"{name} ended: {reason}: {message}")
        self.name, self.reason = name, reason


class InvalidModelError(Exception):
    """The registry's check of a version failed; `problems` has one sentence for each problem. The version
    stays, and can be deleted."""

    def __init__(self, name: str, problems: list[str]) -> None:
        super().__init__(f"{name} failed its check: {' '.join(problems)}")
        self.name, self.problems = name, problems


class DefinitionError(ValueError):
    """A definition is invalid; the message begins with its file and line."""


class SourceError(ValueError):
    """The source folder, function or parameters of a training job cannot be submitted."""


class PipelineError(ValueError):
    """A pipeline function builds no valid graph."""
