"""Errors about ranges of event time."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument


class InvalidTimeRange(InvalidArgument):
    """The end of the time range is not later than its start."""

    reason = "INVALID_TIME_RANGE"
    remedy = "Give an end_time later than start_time, or leave one of them unset."
