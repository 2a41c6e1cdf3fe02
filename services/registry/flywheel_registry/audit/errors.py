"""Errors of the audit."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument


class ReasonRequired(InvalidArgument):
    """The request overrides a rule or is final, and gives no reason for the audit."""

    reason = "REASON_REQUIRED"
    remedy = "Set `reason` to a text that explains the change."
