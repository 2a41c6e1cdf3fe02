"""Errors about ranges of event time and stored panes."""

from __future__ import annotations

from flywheel_common.errors import DataLoss, InvalidArgument


class InvalidTimeRange(InvalidArgument):
    """The end of the time range is not later than its start."""

    reason = "INVALID_TIME_RANGE"
    remedy = "Give an end_time later than start_time, or leave one of them unset."


class UnknownLayout(DataLoss):
    """A stored pane has the layout of a newer monitor."""

    reason = "UNKNOWN_LAYOUT"
    remedy = "Start the monitor version that wrote the pane, or a newer one."
