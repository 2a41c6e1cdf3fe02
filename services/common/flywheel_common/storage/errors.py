"""Errors of object stores."""

from __future__ import annotations

from flywheel_common.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)


class ObjectNotFound(NotFound):
    """The object store has no object under the key."""

    reason = "OBJECT_NOT_FOUND"
    remedy = "Check whether the object was deleted; the key is in the metadata."


class InvalidObjectKey(InvalidArgument):
    """An object key is empty or too long, or has empty, `.`, `..` or long parts."""

    reason = "INVALID_OBJECT_KEY"
    remedy = "Use a relative key of at most 900 characters, with at most 255 bytes between slashes."


class S3Unavailable(Unavailable):
    """The object store is down or does not answer in time; a change may have happened."""

    reason = "S3_UNAVAILABLE"
    remedy = "Retry with backoff."


class S3Refused(FailedPrecondition):
    """The object store refuses the bucket or the access key."""

    reason = "S3_REFUSED"
    remedy = "Check the bucket and the access key in the settings of the service."


class StreamTooSlow(ResourceExhausted):
    """The bytes of an upload came too slowly while other uploads waited for a buffer."""

    reason = "STREAM_TOO_SLOW"
    remedy = "Retry with backoff; an upload in parts goes on where it was."
