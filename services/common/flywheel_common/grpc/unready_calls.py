"""Unary calls to a service of which no replica is ready.

The health check of a channel keeps calls away from replicas that are not ready. When no replica is ready,
gRPC fails the call, with UNAVAILABLE and no reason. Such a call is sent once more without the health check:
the service then answers it, or fails it with its reason (for example POSTGRES_UNAVAILABLE).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

import grpc

from flywheel_common.grpc.error_details import STATUS_DETAILS_KEY

_NOT_SENT = "connections to all backends failing"
"""How gRPC begins the details of the status that it creates when no replica can be picked."""


def was_not_sent(error: grpc.aio.AioRpcError) -> bool:
    """Whether gRPC failed the call because no replica was ready or reachable."""
    return (
        error.code() is grpc.StatusCode.UNAVAILABLE
        and (error.details() or "").startswith(_NOT_SENT)
        and all(key != STATUS_DETAILS_KEY for key, _ in error.trailing_metadata() or ())
    )


class UnaryCall:
    """A call on a channel with a health check, which `unchecked` starts again without it if it was not sent.
    `unchecked` takes the rest of the timeout; `timeout` None has no end."""

    def __init__(self, call: Any, timeout: float | None, unchecked: Callable[[float | None], Any]) -> None:
        self._call = call
        self._unchecked = unchecked
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._call.__await__())
        except grpc.aio.AioRpcError as error:
            left = None if self._deadline is None else self._deadline - time.monotonic()
            if not was_not_sent(error) or (left is not None and left <= 0):
                raise
        self._call = self._unchecked(left)
        return (yield from self._call.__await__())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)
