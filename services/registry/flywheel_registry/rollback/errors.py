"""Errors of rollback."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition


class NothingToRollBackTo(FailedPrecondition):
    """No former release can be rolled back to, or the named one never served or serves already."""

    reason = "NOTHING_TO_ROLL_BACK_TO"
    remedy = "Name a release from ListServingHistory in `to_release`, or promote another version."
