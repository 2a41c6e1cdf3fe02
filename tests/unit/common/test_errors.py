"""Conversion of errors to and from the gRPC status."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2

from flywheel_common import errors
from flywheel_common.grpc.error_details import from_rpc_error, to_status, trailing_metadata
from flywheel_common.grpc.errors import Overloaded, PeerUnavailable


class WireError(grpc.RpcError):
    """An RpcError with code, details and trailing metadata."""

    def __init__(
        self, code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, bytes], ...] = ()
    ) -> None:
        self._parts = (code, details, trailing)

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str:
        return self._parts[1]

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._parts[2]


def status_classes() -> list[type[errors.FlywheelError]]:
    """The classes that fix a status code: the direct subclasses of FlywheelError."""
    return [
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type) and errors.FlywheelError in cls.__bases__
    ]


def test_the_table_has_every_status_class_once() -> None:
    concrete = status_classes()
    assert {cls.code: cls for cls in concrete} == errors.BY_CODE
    assert len({cls.code for cls in concrete}) == len(concrete)
    assert all(cls.reason == code.name for code, cls in errors.BY_CODE.items())
    assert grpc.StatusCode.UNKNOWN not in errors.BY_CODE
    assert grpc.StatusCode.OK not in errors.BY_CODE


@pytest.mark.parametrize("base", status_classes(), ids=lambda c: c.__name__)
def test_an_error_survives_the_wire_unchanged(base: type[errors.FlywheelError]) -> None:
    cls = type("Raised", (base,), {"reason": "SOME_REASON"})
    raised = cls("do this instead", field="x", limit=3)
    wire = WireError(raised.code, raised.message, trailing_metadata(raised))
    back = from_rpc_error(wire)
    assert (type(back), back.message, back.reason, back.metadata) == (
        base,
        "do this instead",
        "SOME_REASON",
        {"field": "x", "limit": "3"},
    )


def test_a_retry_delay_is_sent_as_retry_info() -> None:
    raised = Overloaded("later", retry_after_seconds=2.5)
    retry = error_details_pb2.RetryInfo()
    assert to_status(raised).details[1].Unpack(retry)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (2, 500_000_000)
    back = from_rpc_error(WireError(raised.code, "later", trailing_metadata(raised)))
    assert isinstance(back, errors.ResourceExhausted)
    assert back.retry_after_seconds == 2.5


def test_a_status_without_details_keeps_its_code() -> None:
    back = from_rpc_error(WireError(grpc.StatusCode.UNAVAILABLE, "failed to connect"))
    assert (type(back), back.reason, back.message) == (errors.Unavailable, "UNAVAILABLE", "failed to connect")


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_a_peer_that_does_not_answer_is_named(code: grpc.StatusCode) -> None:
    error = from_rpc_error(WireError(code, "ipv4:10.0.0.1:7102: failed"), peer="registry")
    assert (type(error), error.reason) == (PeerUnavailable, "REGISTRY_UNAVAILABLE")
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert "10.0.0.1" not in error.message


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_the_own_error_of_a_peer_is_kept(code: grpc.StatusCode) -> None:
    raised = errors.BY_CODE[code].from_wire("It does not answer.", reason="OTHERS_FAULT")
    error = from_rpc_error(WireError(code, raised.message, trailing_metadata(raised)), peer="registry")
    assert (type(error), error.reason) == (errors.BY_CODE[code], "OTHERS_FAULT")


def test_unknown_from_a_peer_becomes_internal() -> None:
    back = from_rpc_error(WireError(grpc.StatusCode.UNKNOWN, "boom"))
    assert type(back) is errors.Internal


def test_malformed_status_details_keep_the_code() -> None:
    wire = WireError(grpc.StatusCode.NOT_FOUND, "gone", (("grpc-status-details-bin", b"\xff\xff\xff"),))
    assert type(from_rpc_error(wire)) is errors.NotFound


def test_an_error_from_the_wire_keeps_its_reason_and_metadata() -> None:
    metadata = {"message": "m", "reason": "r", "view": "v"}
    error = errors.NotFound.from_wire("gone", reason="UNKNOWN_VIEW", metadata=metadata)
    assert (error.reason, error.metadata, errors.NotFound.reason) == ("UNKNOWN_VIEW", metadata, "NOT_FOUND")


def test_a_class_fixes_its_reason() -> None:
    class UnknownView(errors.NotFound):
        reason = "UNKNOWN_VIEW"

    assert UnknownView("x").reason == "UNKNOWN_VIEW"
