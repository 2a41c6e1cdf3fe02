"""Domain errors: what went wrong, and what the caller can do about it.

The gRPC edge turns an error into a status (`grpc.error_details`). The classes of `BY_CODE` fix the status
code. Each reason is a class of its own, in the `errors.py` of the package that raises it:

    class UnknownView(NotFound):
        '''The view does not exist in this project.'''

        reason = "UNKNOWN_VIEW"
        remedy = "Apply its definition first, or look its name up with ListViews."

    raise UnknownView("View 'weather' does not exist: apply it first.", view="weather")

`reason` is part of the API. The message is one sentence about this case; keyword arguments become the
metadata of the ErrorInfo. `docs/reference/errors.md` is generated from the docstring (the meaning) and the
remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import grpc

DOMAIN = "flywheel"
"""The `domain` of every ErrorInfo."""


class FlywheelError(Exception):
    """Base of every error that may leave a service."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    retryable: ClassVar[bool] = False
    reason: str = "INTERNAL"
    remedy: ClassVar[str] = ""
    """What the caller can do, in one sentence."""

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        if "reason" in metadata:
            raise TypeError("a reason is an error class of its own, not a keyword argument")
        self.message = message
        self.metadata: dict[str, str] = {key: str(value) for key, value in metadata.items()}

    @classmethod
    def from_wire(cls, message: str, *, reason: str, metadata: Mapping[str, str] | None = None) -> Self:
        """An error that another process reported; this process need not have a class for its reason."""
        error = cls(message)
        error.reason = reason
        error.metadata = dict(metadata or {})
        return error

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, reason={self.reason!r}, metadata={self.metadata!r})"


class InvalidArgument(FlywheelError):
    """The request is wrong whatever the state of the system."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"
    remedy = "Correct the field that the message names; sending the same request again fails again."


class Unauthenticated(FlywheelError):
    """The call carries no valid credentials."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"
    remedy = "Send a valid bearer token."


class PermissionDenied(FlywheelError):
    """The caller is known but not allowed to do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"
    remedy = "Use an identity that has one of the required roles."


class NotFound(FlywheelError):
    """The named resource does not exist."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"
    remedy = "Check the name with the matching List method."


class AlreadyExists(FlywheelError):
    """A resource of that name exists and differs."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"
    remedy = "Choose another name, or use the existing resource."


class FailedPrecondition(FlywheelError):
    """The system is in a state that does not allow the operation."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"
    remedy = "Change the state that the message names; a retry alone does not help."


class Aborted(FlywheelError):
    """A concurrent change won (etag, serialization, lease)."""

    code = grpc.StatusCode.ABORTED
    reason = "ABORTED"
    remedy = "Read the resource again and retry."
    retryable = True


class ResourceExhausted(FlywheelError):
    """A capacity or quota is used up."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"
    remedy = "Retry after the delay in RetryInfo, with backoff."
    retryable = True

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0, **metadata: object) -> None:
        """`retry_after_seconds` becomes the RetryInfo of the status."""
        super().__init__(message, **metadata)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(FlywheelError):
    """A dependency is down or does not answer in time."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"
    remedy = "Retry with backoff, with the same request_id if the method has one."
    retryable = True


class DeadlineExceeded(FlywheelError):
    """The call took longer than its deadline; its effect may or may not have happened."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"
    remedy = "Retry with a longer deadline, with the same request_id if the method has one."
    retryable = True


class Cancelled(FlywheelError):
    """A peer answered CANCELLED. Services do not raise it."""

    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"
    remedy = "Send the call again if its result is still wanted."


class OutOfRange(FlywheelError):
    """A peer answered OUT_OF_RANGE. Services do not raise it."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = "OUT_OF_RANGE"
    remedy = "Ask for a position inside the sequence."


class Unimplemented(FlywheelError):
    """The method is part of the API but not of this build."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"
    remedy = "Check the service address, or run a version that has the method."


class DataLoss(FlywheelError):
    """Stored bytes are corrupt: their digest does not match."""

    code = grpc.StatusCode.DATA_LOSS
    reason = "DATA_LOSS"
    remedy = "Restore or upload the data again."


class Internal(FlywheelError):
    """A bug: an unexpected exception, or an invariant that does not hold."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"
    remedy = "Report the error id in the message; the service log has the traceback under it."


BY_CODE: dict[grpc.StatusCode, type[FlywheelError]] = {
    cls.code: cls
    for cls in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        Aborted,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        OutOfRange,
        Unimplemented,
        DataLoss,
        Internal,
    )
}
"""Status code → base class. UNKNOWN and OK are missing on purpose: no service answers with them as an
error."""


class InvalidName(InvalidArgument):
    """A resource name does not have the form of its kind."""

    reason = "INVALID_NAME"
    remedy = "Use the form in the metadata field `expected`."


class InvalidId(InvalidArgument):
    """An id contains characters that are not allowed, or is too long."""

    reason = "INVALID_ID"
    remedy = "Start with a lower-case letter; use at most 63 lower-case letters, digits, `_` and `-`."


class InvalidPageSize(InvalidArgument):
    """`page_size` is negative."""

    reason = "INVALID_PAGE_SIZE"
    remedy = "Send 0 for the default size, or a positive number."


class InvalidPageToken(InvalidArgument):
    """`page_token` was changed, or was issued for another request."""

    reason = "INVALID_PAGE_TOKEN"
    remedy = "Pass `next_page_token` with the same parent and filter, or leave it empty to start again."


class InvalidColumn(InvalidArgument):
    """A column is malformed: its lengths, offsets, validity or data type contradict each other."""

    reason = "INVALID_COLUMN"
    remedy = "Build columns with `flywheel_common.columns` or follow the comments of types/v1/column.proto."


class InvalidValue(InvalidArgument):
    """A value has a type that no feature can have."""

    reason = "INVALID_VALUE"
    remedy = "Send a bool, int, float, str, bytes, timestamp or a list of these."


class WrongType(InvalidArgument):
    """A value cannot be converted exactly to the declared data type."""

    reason = "WRONG_TYPE"
    remedy = "Send a value of the type in the metadata field `expected`, or change the definition."


class EventTimeOutOfRange(InvalidArgument):
    """An event time lies after now + max_clock_skew, or was never set."""

    reason = "OUT_OF_RANGE"
    remedy = "Correct the clock of the sender, or send the time of the event."
