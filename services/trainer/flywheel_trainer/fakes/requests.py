"""Idempotent requests in memory: a repeated request id gets the first result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flywheel_common.context import current_principal
from flywheel_common.postgres.errors import RequestIdReused

R = TypeVar("R")


class MemoryRequests:
    """Results by caller, method and request id."""

    def __init__(self) -> None:
        self._results: dict[tuple[str, str, str], tuple[bytes, Any]] = {}

    def replay(self, method: str, request_id: str, body: bytes) -> Any:
        """The first result of an equal request, or None. Raises RequestIdReused for another body."""
        stored = self._results.get((current_principal().subject, method, request_id)) if request_id else None
        if stored is None:
            return None
        if stored[0] != body:
            raise RequestIdReused(f"request_id {request_id!r} was used with another request body.")
        return stored[1]

    def store(self, method: str, request_id: str, body: bytes, result: R) -> R:
        """Store the result that repeated requests get, and return it."""
        if request_id:
            self._results[current_principal().subject, method, request_id] = body, result
        return result

    def once(self, method: str, request_id: str, body: bytes, effect: Callable[[], R]) -> R:
        """The first result of an equal request; `effect` runs and gives the result if there was none."""
        first: R | None = self.replay(method, request_id, body)
        return self.store(method, request_id, body, effect()) if first is None else first


def body_of(*arguments: object) -> bytes:
    """A request body made of a method's arguments."""
    return repr(arguments).encode()
