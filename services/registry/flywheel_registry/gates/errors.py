"""Errors of gates."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition


class GateFailed(FailedPrecondition):
    """The version does not pass the offline gate against today's champion and policy."""

    reason = "GATE_FAILED"
    remedy = "Roll out a better version, or start with `override` and a reason."
