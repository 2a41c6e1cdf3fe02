"""Errors of SQL expressions."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument


class InvalidExpression(InvalidArgument):
    """A SQL expression cannot be compiled or computed."""

    reason = "INVALID_EXPRESSION"
    remedy = "Correct the expression as the message says."
