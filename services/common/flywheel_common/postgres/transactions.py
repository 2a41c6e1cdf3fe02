"""A store whose rows are reached through transactions alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

R_co = TypeVar("R_co", covariant=True)


class Store(Protocol[R_co]):
    """Where a service's records come from: `R_co` is its port of rows as one transaction sees them."""

    def transaction(self) -> AbstractAsyncContextManager[R_co]:
        """Committed at the end of the block, undone by any exception. Raises Unavailable when the store is down."""
        ...

    def reading(self) -> AbstractAsyncContextManager[R_co]:
        """For reads: every statement sees the newest committed state."""
        ...

    async def once(
        self, method: str, request_id: str, body: bytes, effect: Callable[[R_co], Awaitable[bytes]]
    ) -> bytes:
        """A transaction that its caller may ask for again: effect and answer commit together, and a repeat of method,
        request_id and body gets the first answer without a second effect. Equal calls that come while the first is at work
        wait for it; when it fails, the next takes its place. Ids are apart per caller and method; without one every call has
        its effect. Raises InvalidArgument REQUEST_ID_REUSED (another body), INVALID_REQUEST_ID (too long), and what `effect`
        raises."""
        ...
