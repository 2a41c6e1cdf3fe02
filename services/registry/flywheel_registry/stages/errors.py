"""Errors of stage transitions."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition


class IllegalTransition(FailedPrecondition):
    """The version's stage does not allow the requested transition."""

    reason = "ILLEGAL_TRANSITION"
    remedy = "Choose one of the stages in the `legal` metadata; replace a champion by StartRollout."
