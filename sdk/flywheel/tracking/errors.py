"""Errors of tracking that have their cause in this process."""

from __future__ import annotations


class TrackingError(ValueError):
    """A value that cannot be logged, or a run that cannot take it."""


class RunFinished(TrackingError):
    """The run has been finished: nothing more can be logged to it."""


class SpoolFull(TrackingError):
    """The files that wait for the trainer have reached their bound in bytes."""
