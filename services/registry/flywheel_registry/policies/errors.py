"""Errors of policies."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument


class InvalidPolicy(InvalidArgument):
    """A gate policy or rollout policy has a missing, non-finite or out-of-range value."""

    reason = "INVALID_POLICY"
    remedy = "Correct the field that the message names; the proto comments of the policy give its range."
