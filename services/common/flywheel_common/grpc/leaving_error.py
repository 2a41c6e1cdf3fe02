"""The error with which a call, or one request of a batch or stream, answers when an exception ends it."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from flywheel_common.errors import DeadlineExceeded, FlywheelError, Internal
from flywheel_common.grpc.message_limits import unsupported_value
from flywheel_common.ids import new_id
from flywheel_common.telemetry.logs import get_logger

log = get_logger(__name__)


def leaving_error(error: Exception, request: Any) -> FlywheelError:
    """The error that may leave the service. An unexpected exception becomes the refusal of a value of the
    request that no store can hold, or INTERNAL with an error id, and is logged."""
    if isinstance(error, TimeoutError):
        return DeadlineExceeded("The call took longer than its deadline allows.")
    if isinstance(error, FlywheelError):
        if isinstance(error, Internal):
            log.error("internal error", reason=error.reason, exc_info=error)
        return error
    if isinstance(request, Message) and (refusal := unsupported_value(request)) is not None:
        log.warning("unsupported value", reason=refusal.reason, exc_info=error)
        return refusal
    error_id = new_id()
    log.error("unhandled exception", error_id=error_id, exc_info=error)
    return Internal(f"An internal error happened: report error id {error_id}.", error_id=error_id)
