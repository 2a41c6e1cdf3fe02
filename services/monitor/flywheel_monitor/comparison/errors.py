"""Errors about comparisons."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument


class InvalidAlpha(InvalidArgument):
    """The significance level is not between 0 and 1."""

    reason = "INVALID_ALPHA"
    remedy = "Give an alpha between 0 and 1, or 0 for the default."


class InvalidReleases(InvalidArgument):
    """The champion and challenger releases are missing or equal."""

    reason = "INVALID_RELEASES"
    remedy = "Give two different releases of the rollout."


class InvalidMode(InvalidArgument):
    """The comparison mode is not set or unknown."""

    reason = "INVALID_MODE"
    remedy = "Use COMPARISON_MODE_SHADOW or COMPARISON_MODE_CANARY."


class InvalidLimit(InvalidArgument):
    """A limit of a step is not a finite number, or a guardrail is not above 0."""

    reason = "INVALID_LIMIT"
    remedy = "Give finite limits, guardrails above 0, or leave the limit unset."
