"""Errors of artifact transfer."""

from __future__ import annotations

from flywheel_common.errors import DataLoss, FailedPrecondition


class NotDeclared(FailedPrecondition):
    """The version declares no artifact with this name."""

    reason = "NOT_DECLARED"
    remedy = "Name an artifact that GetModelVersion lists for the version."


class DigestMismatch(DataLoss):
    """The uploaded or stored bytes are not the declared ones."""

    reason = "DIGEST_MISMATCH"
    remedy = "Upload the bytes whose size and SHA-256 the version declares."
