"""What the servicer's methods share: the store, and mutations that may be repeated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from flywheel_registry import convert
from flywheel_registry.ports import Records, Store

M = TypeVar("M", bound=Message)


class Mutating:
    """Part of the servicer."""

    _store: Store

    async def _mutate(
        self, method: str, request: Any, answer: type[M], effect: Callable[[Records], Awaitable[M]]
    ) -> M:
        """One transaction: the effect, its audit, its events and the answer that a repeat gets."""
        convert.check_text(request)

        async def answered(records: Records) -> bytes:
            return (await effect(records)).SerializeToString()

        body = request.SerializeToString(deterministic=True)
        return answer.FromString(await self._store.once(method, request.request_id, body, answered))
