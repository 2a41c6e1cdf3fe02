"""Errors of the gRPC edge: malformed requests, and specifications that changed."""

from __future__ import annotations

from flywheel_common.errors import Aborted, InvalidArgument


class InvalidStage(InvalidArgument):
    """The number is not a value of the enum Stage."""

    reason = "INVALID_STAGE"
    remedy = "Send one of the values of the enum Stage, or leave the field unset."


class InvalidVerdict(InvalidArgument):
    """The number is not a verdict that ends an A/B test."""

    reason = "INVALID_VERDICT"
    remedy = "Send EXPERIMENT_VERDICT_SHIP or EXPERIMENT_VERDICT_ROLL_BACK."


class InvalidFilter(InvalidArgument):
    """The list filter contains a condition that this method does not support."""

    reason = "INVALID_FILTER"
    remedy = "Use the conditions that the message lists, joined by AND."


class TargetMissing(InvalidArgument):
    """The first message of an upload does not name the artifact."""

    reason = "TARGET_MISSING"
    remedy = "Send `target` with model_version and artifact in the first message."


class TargetRepeated(InvalidArgument):
    """A message after the first of an upload carries no data."""

    reason = "TARGET_REPEATED"
    remedy = "Send `target` only in the first message, and `data` in all others."


class SpecChanged(Aborted):
    """The specification of the release has another digest at this replica of the registry."""

    reason = "SPEC_CHANGED"
    remedy = "Watch again and fetch the digest of the new snapshot."
