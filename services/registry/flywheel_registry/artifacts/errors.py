"""Errors of artifact transfer."""

from __future__ import annotations

from flywheel_common.errors import Aborted, DataLoss, DeadlineExceeded, FailedPrecondition, InvalidArgument


class NotDeclared(FailedPrecondition):
    """The version declares no artifact with this name."""

    reason = "NOT_DECLARED"
    remedy = "Name an artifact that GetModelVersion lists for the version."


class DigestMismatch(DataLoss):
    """The uploaded or stored bytes are not the declared ones."""

    reason = "DIGEST_MISMATCH"
    remedy = "Upload the bytes whose size and SHA-256 the version declares."


class InvalidPart(InvalidArgument):
    """The file has no part with this number, or the part's digest is malformed."""

    reason = "INVALID_PART"
    remedy = "Send the parts that GetArtifactUpload counts, each with the SHA-256 of its bytes."


class PartsMissing(FailedPrecondition):
    """Parts of the file have not been stored yet."""

    reason = "PARTS_MISSING"
    remedy = "Send the parts that GetArtifactUpload does not list, then complete the upload again."


class InvalidRange(InvalidArgument):
    """The range begins or ends behind the end of the file."""

    reason = "INVALID_RANGE"
    remedy = "Read within the `size_bytes` that the version declares."


class ArtifactCollected(Aborted):
    """The bytes were collected while they were uploaded."""

    reason = "ARTIFACT_COLLECTED"
    remedy = "Upload the file again."


class StreamIdle(DeadlineExceeded):
    """The caller neither sent nor took data for too long."""

    reason = "STREAM_IDLE"
    remedy = "Call again; a broken upload in parts goes on where it was."
