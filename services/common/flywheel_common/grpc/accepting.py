"""More calls accepted per iteration of the event loop than the one that grpc.aio accepts (ADR 0076).

grpc.aio asks its core for the next call when the one before has arrived: about one call per iteration of
the loop. Under load an iteration takes milliseconds, so that calls wait in the core, where nothing can refuse
them and where their deadlines pass. The core hands out as many calls at once as were asked for.

This uses internal functions of grpcio, which is pinned. Without them, calls are accepted one by one.
"""

# ruff: noqa: SLF001 - there is no public way to accept more than one call

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from grpc._cython import cygrpc

ACCEPTED_AT_ONCE = 64
INTERNAL = ("_RequestCallError", "_handle_rpc", "_schedule_rpc_coro")


def supported() -> bool:
    """Whether this grpcio has the internal functions."""
    return all(hasattr(cygrpc, name) for name in INTERNAL) and hasattr(cygrpc.AioServer, "_request_call")


class Acceptors:
    """Tasks that accept calls of a started server for its `handlers`, until the server shuts down.

    While all of them get a call in each iteration of the loop, more calls wait: `backlog` is called with the
    time in seconds since that began, and with 0 when no more wait.
    """

    def __init__(
        self,
        server: Any,
        handlers: Sequence[Any],
        backlog: Callable[[float], None],
        count: int = ACCEPTED_AT_ONCE,
    ) -> None:
        self._core = server._server
        self._handlers = list(handlers)
        self._backlog = backlog
        self._count = count
        self._accepted = 0
        self._loop = asyncio.get_running_loop()
        self._full_since: float | None = None
        self._tasks = [self._loop.create_task(self._accept()) for _ in range(count)] if supported() else []

    async def _accept(self) -> None:
        while True:
            try:
                state = await self._core._request_call()
            except (cygrpc.BaseError, cygrpc._RequestCallError):
                return  # the server shuts down
            if not self._accepted:
                self._loop.call_soon(self._next_iteration)
            self._accepted += 1
            call = cygrpc._handle_rpc(self._handlers, (), state, self._loop, False)
            self._loop.create_task(cygrpc._schedule_rpc_coro(call, state, self._loop))

    def _next_iteration(self) -> None:
        if self._accepted < self._count:
            self._full_since = None
            self._backlog(0.0)
        else:
            now = self._loop.time()
            self._full_since = self._full_since or now
            self._backlog(now - self._full_since)
        self._accepted = 0

    async def ended(self) -> None:
        """Returns when all tasks have ended, after the shutdown of the server."""
        await asyncio.gather(*self._tasks)
