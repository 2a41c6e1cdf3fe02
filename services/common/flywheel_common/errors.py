"""Domain errors: what went wrong, and what the caller can do about it.

A use case raises one of these; the gRPC edge turns it into a status (`grpc.error_details`). The base classes
below fix the status code. Each reason is a class of its own, in the `errors.py` of the package that raises it:

    class UnknownView(NotFound):
        '''The view does not exist in this project.'''

        reason = "UNKNOWN_VIEW"
        remedy = "Apply its definition first, or look its name up with ListViews."

    raise UnknownView("View 'weather' does not exist: apply it first.", view="weather")

`reason` is part of the API. The message is one sentence about this case; keyword arguments become the metadata
of the ErrorInfo. `docs/reference/errors.md` is generated from the docstring (the meaning) and the remedy.
"""

from __future__ import annotations

from typing import ClassVar

import grpc

DOMAIN = "flywheel"
"""The `domain` of every ErrorInfo."""


class FlywheelError(Exception):
    """Base of every error that may leave a service. Only its subclasses below are raised."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    retryable: ClassVar[bool] = False
    reason: str = "INTERNAL"
    remedy: ClassVar[str] = ""
    """What the caller can do, one sentence; empty where the status code says it all."""

    def __init__(self, message: str, *, reason: str | None = None, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.metadata: dict[str, str] = {key: str(value) for key, value in metadata.items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, reason={self.reason!r}, metadata={self.metadata!r})"


class InvalidArgument(FlywheelError):
    """The request is wrong whatever the state of the system."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"


class Unauthenticated(FlywheelError):
    """No valid credentials."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(FlywheelError):
    """Known, but not allowed."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class NotFound(FlywheelError):
    """The named thing is absent."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(FlywheelError):
    """The named thing is there already, and differs."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class FailedPrecondition(FlywheelError):
    """The system is in a state that does not allow it; retrying alone does not help."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class Aborted(FlywheelError):
    """A race was lost (etag, serialization, lease): read again and retry."""

    code = grpc.StatusCode.ABORTED
    reason = "ABORTED"
    retryable = True


class ResourceExhausted(FlywheelError):
    """Over capacity or quota; `retry_after_seconds` becomes RetryInfo."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"
    retryable = True

    def __init__(
        self, message: str, *, retry_after_seconds: float = 1.0, reason: str | None = None, **metadata: object
    ) -> None:
        super().__init__(message, reason=reason, **metadata)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(FlywheelError):
    """A dependency is down; the same request may succeed later."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"
    retryable = True


class DeadlineExceeded(FlywheelError):
    """The budget is used up; the effect may or may not have happened."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"
    retryable = True


class Cancelled(FlywheelError):
    """A peer answered CANCELLED (never raised by our own use cases)."""

    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class OutOfRange(FlywheelError):
    """Past the end of a sequence (never raised by our own use cases)."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = "OUT_OF_RANGE"


class Unimplemented(FlywheelError):
    """The method exists in the API, but not in this build."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


class DataLoss(FlywheelError):
    """Stored bytes are corrupt: a digest does not match."""

    code = grpc.StatusCode.DATA_LOSS
    reason = "DATA_LOSS"


class Internal(FlywheelError):
    """A bug, or an invariant that does not hold."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"


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
"""The one table between domain errors and status codes; UNKNOWN (and OK) are absent on purpose."""
