"""The ticker's lease for a single process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable


class UncontestedLease:
    """`TickerLease` without other replicas: it is always held."""

    async def run(self, work: Callable[[int], Awaitable[None]]) -> None:
        while True:
            await work(1)
