"""Errors about rows that do not fit their schema; WrongType and InvalidColumn are in flywheel_common."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument


class RowCountMismatch(InvalidArgument):
    """Parts of one request have different numbers of rows."""

    reason = "ROW_COUNT_MISMATCH"
    remedy = "Send the same number of rows in every column and list of the request."


class PartialRow(InvalidArgument):
    """A row lacks a field, or has null in a field that must have a value."""

    reason = "PARTIAL_ROW"
    remedy = "Send every field of the schema; join keys and event times must not be null."


class ValueOutOfRange(InvalidArgument):
    """A value is outside its accepted range, for example NaN, a time after 2100 or more than 256 KiB."""

    reason = "OUT_OF_RANGE"
    remedy = "Correct the value in the column that the message names, or send null."
