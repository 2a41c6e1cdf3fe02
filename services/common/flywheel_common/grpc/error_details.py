"""Conversion of domain errors to and from `google.rpc.Status` with ErrorInfo and RetryInfo."""

from __future__ import annotations

import re

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from flywheel_common.errors import (
    BY_CODE,
    DOMAIN,
    FlywheelError,
    Internal,
    ResourceExhausted,
)
from flywheel_common.grpc.errors import MessageTooLarge, PeerUnavailable

STATUS_DETAILS_KEY = "grpc-status-details-bin"
_TRANSPORT_LIMIT = re.compile(r"larger than max \(\d+ vs\. (\d+)\)")
_NO_RESPONSE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def to_status(error: FlywheelError) -> status_pb2.Status:
    """The status of an error: code, message, one ErrorInfo and, for ResourceExhausted, one RetryInfo."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    status.details.add().Pack(info)
    if isinstance(error, ResourceExhausted):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def trailing_metadata(error: FlywheelError) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries `to_status(error)`."""
    return ((STATUS_DETAILS_KEY, to_status(error).SerializeToString()),)


def from_rpc_error(error: grpc.RpcError, *, peer: str = "") -> FlywheelError:
    """The domain error that a peer raised: same status code, message, reason and metadata.

    A status of the transport (connection refused, deadline exceeded) has no ErrorInfo: its reason is the name
    of its code. A code that no service sends (UNKNOWN) becomes Internal. With `peer` (a service name),
    UNAVAILABLE and DEADLINE_EXCEEDED of the transport become PeerUnavailable: the deadline was that of the
    outgoing call. A message that the transport refuses for its size becomes MessageTooLarge.
    """
    code = _code_of(error)
    message = (error.details() if hasattr(error, "details") else None) or code.name
    reason: str | None = None
    metadata: dict[str, str] = {}
    retry_after = 1.0
    for key, value in _trailing_of(error):
        if key != STATUS_DETAILS_KEY:
            continue
        status = status_pb2.Status()
        try:
            status.ParseFromString(value if isinstance(value, bytes) else value.encode("latin-1"))
        except Exception:  # noqa: BLE001 - not our bytes; the status code is still valid
            break
        for detail in status.details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    if peer and reason is None and code in _NO_RESPONSE:
        return PeerUnavailable(peer)
    if reason is None and code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        limit = _TRANSPORT_LIMIT.search(message)
        return MessageTooLarge(message, **({"limit_bytes": limit[1]} if limit else {}))
    cls = BY_CODE.get(code, Internal)
    result = cls.from_wire(message, reason=reason or cls.reason, metadata=metadata)
    if isinstance(result, ResourceExhausted):
        result.retry_after_seconds = retry_after
    return result


def _code_of(error: grpc.RpcError) -> grpc.StatusCode:
    code = error.code() if hasattr(error, "code") else None
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN


def _trailing_of(error: grpc.RpcError) -> list[tuple[str, str | bytes]]:
    found = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    return [(key, value) for key, value in found] if found else []
