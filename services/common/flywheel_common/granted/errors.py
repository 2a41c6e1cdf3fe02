"""Errors of requests to the object store that a service signs."""

from __future__ import annotations

from typing import Self

from flywheel_common.errors import FailedPrecondition, InvalidArgument, PermissionDenied


class AttemptEnded(FailedPrecondition):
    """The attempt of a job that sends this has ended: the job has another attempt, or has ended."""

    reason = "ATTEMPT_ENDED"
    remedy = "Stop the processes of this attempt."

    @classmethod
    def of(cls, attempt: str) -> Self:
        return cls(f"Attempt {attempt!r} has ended: what it sends is refused.")


class ForeignObject(PermissionDenied):
    """An attempt asks for an object that is neither an input nor a file of its job."""

    reason = "FOREIGN_OBJECT"
    remedy = "Read inputs that the specification of the job names, and write below the addresses of the job."


class InvalidObjectRequest(InvalidArgument):
    """A request to the object store that an attempt wants signed is not well formed."""

    reason = "INVALID_OBJECT_REQUEST"
    remedy = "Run the job with packages of the version of the service that signs its requests."
