"""Idempotent requests in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flywheel_common.context import current_principal
from flywheel_common.errors import InvalidArgument

A = TypeVar("A")


class MemoryRequests:
    """Request ids that were seen, with what they named."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str, str], tuple[bytes, Any]] = {}

    def replay(self, method: str, request_id: str, body: bytes) -> Any:
        """The first answer to an equal request, None when there was none."""
        stored = self._answers.get((current_principal().subject, method, request_id)) if request_id else None
        if stored is None:
            return None
        if stored[0] != body:
            raise InvalidArgument(
                f"request_id {request_id!r} was used with another request body.", reason="REQUEST_ID_REUSED"
            )
        return stored[1]

    def once(self, method: str, request_id: str, body: bytes, make: Callable[[], A]) -> A:
        """The first answer to an equal request; what `make` answers when there was none."""
        first: A | None = self.replay(method, request_id, body)
        return self.answered(method, request_id, body, make()) if first is None else first

    def answered(self, method: str, request_id: str, body: bytes, name: A) -> A:
        if request_id:
            self._answers[current_principal().subject, method, request_id] = body, name
        return name
