"""Errors about rows and events that do not fit their schema."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument


class WrongType(InvalidArgument):
    """A column or field holds values of another type than its definition declares."""

    reason = "WRONG_TYPE"
    remedy = "Send values of the declared type."


class InvalidColumn(InvalidArgument):
    """A column is malformed: it appears twice, has no values, or its lengths disagree."""

    reason = "INVALID_COLUMN"
    remedy = "Send every column once, with one value or null per row."


class RowCountMismatch(InvalidArgument):
    """Parts of one request have different numbers of rows."""

    reason = "ROW_COUNT_MISMATCH"
    remedy = "Send the same number of rows in every column and list of the request."


class PartialRow(InvalidArgument):
    """A row lacks a field, or has null in a field that must have a value."""

    reason = "PARTIAL_ROW"
    remedy = "Send every field of the schema; join keys and event times must not be null."


class ValueOutOfRange(InvalidArgument):
    """A value is NaN, infinite, too large, or a time outside the accepted range."""

    reason = "OUT_OF_RANGE"
    remedy = "Correct the value in the column that the message names, or send null."


class MalformedBatch(InvalidArgument):
    """An event with several rows does not have one event id per row."""

    reason = "MALFORMED_EVENT"
    remedy = "Produce the event again with one event id per row."
