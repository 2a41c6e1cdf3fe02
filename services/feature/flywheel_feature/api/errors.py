"""Errors of requests that the gRPC edge refuses itself."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument, NotFound


class InvalidRequest(InvalidArgument):
    """Fields of the request exclude each other."""

    reason = "INVALID_REQUEST"
    remedy = "Set only one of the fields that the message names."


class InvalidFilter(InvalidArgument):
    """The filter of a List call has the wrong form."""

    reason = "INVALID_FILTER"
    remedy = "Use the filter terms that the message lists."


class TooManyRows(InvalidArgument):
    """An online request has more rows than one call may read."""

    reason = "TOO_MANY_ROWS"
    remedy = "Split the request."


class MissingJoinKey(InvalidArgument):
    """The request lacks a join key of the features or of the entity."""

    reason = "MISSING_JOIN_KEY"
    remedy = "Send every join key that the message lists."


class MissingRequestField(InvalidArgument):
    """The request lacks a request field that an on-demand view reads."""

    reason = "MISSING_REQUEST_FIELD"
    remedy = "Send every request field that the message lists."


class NotAStreamSource(InvalidArgument):
    """Rows were pushed to a source that is not a stream source."""

    reason = "NOT_A_STREAM_SOURCE"
    remedy = "Push to a stream source, or to a batch view."


class UnsupportedPushTarget(InvalidArgument):
    """Rows of a stream source cannot be pushed to the online store alone or to the offline store alone."""

    reason = "UNSUPPORTED_PUSH_TARGET"
    remedy = "Leave push_target out, or set PUSH_TARGET_ONLINE_AND_OFFLINE."


class WrongCompute(InvalidArgument):
    """The request names a compute target that does not exist."""

    reason = "WRONG_COMPUTE"
    remedy = "Leave compute out, or set LOCAL or RAY."


class UnknownTrainingSet(NotFound):
    """The project has no training set of this name."""

    reason = "UNKNOWN_TRAINING_SET"
    remedy = "Look the name up with ListTrainingSets."
