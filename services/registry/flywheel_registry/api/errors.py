"""Errors of the gRPC edge: malformed requests."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument


class InvalidText(InvalidArgument):
    """A text in the request contains a NUL character, which PostgreSQL cannot store."""

    reason = "INVALID_TEXT"
    remedy = "Remove the NUL character from the field in the metadata."


class InvalidStage(InvalidArgument):
    """The number is not a value of the enum Stage."""

    reason = "INVALID_STAGE"
    remedy = "Send one of the values of the enum Stage, or leave the field unset."


class InvalidFilter(InvalidArgument):
    """The list filter contains a condition that this method does not support."""

    reason = "INVALID_FILTER"
    remedy = "Use the conditions that the message lists, joined by AND."


class InvalidPageToken(InvalidArgument):
    """The page token was not made by this method for this request."""

    reason = "INVALID_PAGE_TOKEN"
    remedy = "Pass the next_page_token of the previous answer, or leave it empty to start again."


class InvalidGatewayId(InvalidArgument):
    """The gateway id is empty, too long, or contains a NUL character."""

    reason = "INVALID_ID"
    remedy = "Send an id of 1 to 200 characters."


class TargetMissing(InvalidArgument):
    """The first message of an upload does not name the artifact."""

    reason = "TARGET_MISSING"
    remedy = "Send `target` with model_version and artifact in the first message."


class TargetRepeated(InvalidArgument):
    """A message after the first of an upload carries no data."""

    reason = "TARGET_REPEATED"
    remedy = "Send `target` only in the first message, and `data` in all others."
