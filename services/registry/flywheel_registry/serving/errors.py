"""Errors of what serves."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition, InvalidArgument


class InvalidVariants(InvalidArgument):
    """The variants have equal names, shares out of range, or are too many."""

    reason = "INVALID_VARIANTS"
    remedy = "Send at most 10 variants with names of their own and shares from 0 to 100, one of them above 0."


class VariantNotAllowed(FailedPrecondition):
    """A release cannot be a variant now, or its version cannot be rejected because it is one."""

    reason = "VARIANT_NOT_ALLOWED"
    remedy = "Use a release of a gated version with the champion's output, and wait for the end of a rollout."
