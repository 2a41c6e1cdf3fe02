"""Errors in the form of a request."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument


class InvalidTime(InvalidArgument):
    """A timestamp of the request is not valid."""

    reason = "INVALID_TIME"
    remedy = "Send a google.protobuf.Timestamp with nanos from 0 to 999,999,999."
