"""Errors keep their meaning across the wire."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2

from flywheel_common import errors
from flywheel_common.grpc.error_details import from_rpc_error, to_status, trailing_metadata


class WireError(grpc.RpcError):
    """What a client sees: code, details and trailing metadata."""

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


def every_error() -> list[type[errors.FlywheelError]]:
    return [
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, errors.FlywheelError)
    ]


def test_the_table_names_every_error_class_once() -> None:
    concrete = [cls for cls in every_error() if cls is not errors.FlywheelError]
    assert {cls.code: cls for cls in concrete} == errors.BY_CODE
    assert len({cls.code for cls in concrete}) == len(concrete)
    assert grpc.StatusCode.UNKNOWN not in errors.BY_CODE
    assert grpc.StatusCode.OK not in errors.BY_CODE


@pytest.mark.parametrize(
    "cls", [c for c in every_error() if c is not errors.FlywheelError], ids=lambda c: c.__name__
)
def test_an_error_comes_back_as_it_was_raised(cls: type[errors.FlywheelError]) -> None:
    raised = cls("do this instead", reason="SOME_REASON", field="x", limit=3)
    wire = WireError(raised.code, raised.message, trailing_metadata(raised))
    back = from_rpc_error(wire)
    assert (type(back), back.message, back.reason, back.metadata) == (
        cls,
        "do this instead",
        "SOME_REASON",
        {"field": "x", "limit": "3"},
    )


def test_a_retry_delay_travels_as_retry_info() -> None:
    raised = errors.ResourceExhausted("later", retry_after_seconds=2.5, reason="OVERLOADED")
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
def test_a_peer_that_is_down_or_hangs_is_unavailable_by_its_name_and_one_that_answers_is_heard(
    code: grpc.StatusCode,
) -> None:
    away = from_rpc_error(WireError(code, "ipv4:10.0.0.1:7102: failed"), peer="registry")
    assert (type(away), away.reason) == (errors.Unavailable, "REGISTRY_UNAVAILABLE")
    assert "10.0.0.1" not in away.message
    said = errors.BY_CODE[code]("It does not answer.", reason="OTHERS_FAULT")
    heard = from_rpc_error(WireError(code, said.message, trailing_metadata(said)), peer="registry")
    assert (type(heard), heard.reason) == (type(said), "OTHERS_FAULT")


def test_unknown_never_comes_out_of_a_peer_as_unknown() -> None:
    back = from_rpc_error(WireError(grpc.StatusCode.UNKNOWN, "boom"))
    assert type(back) is errors.Internal


def test_foreign_details_bytes_do_not_hide_the_code() -> None:
    wire = WireError(grpc.StatusCode.NOT_FOUND, "gone", (("grpc-status-details-bin", b"\xff\xff\xff"),))
    assert type(from_rpc_error(wire)) is errors.NotFound


def test_a_subclass_fixes_its_reason() -> None:
    class UnknownView(errors.NotFound):
        reason = "UNKNOWN_VIEW"

    assert UnknownView("x").reason == "UNKNOWN_VIEW"
    assert UnknownView("x", reason="OTHER").reason == "OTHER"
    assert UnknownView.reason == "UNKNOWN_VIEW"
