"""The port of a store that is read and written in transactions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

R_co = TypeVar("R_co", covariant=True)


class Store(Protocol[R_co]):
    """A store of records; `R_co` is the port of the records as one transaction sees them."""

    def transaction(self) -> AbstractAsyncContextManager[R_co]:
        """Committed at the end of the block, rolled back by any exception. Raises Unavailable."""
        ...

    def reading(self) -> AbstractAsyncContextManager[R_co]:
        """For reads: each statement sees the latest committed state. Raises Unavailable."""
        ...

    async def once(
        self, method: str, request_id: str, body: bytes, effect: Callable[[R_co], Awaitable[bytes]]
    ) -> bytes:
        """An idempotent transaction: effect and response are committed together.

        A repeat of method, request_id and body gets the first response without a second effect. Equal
        concurrent calls wait for the first one; if it fails, the next one runs. Ids belong to a caller and a
        method; with an empty request_id every call has its effect. Raises RequestIdReused (another body),
        InvalidRequestId (too long), and whatever `effect` raises.
        """
        ...
