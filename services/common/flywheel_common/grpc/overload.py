"""Refusal of calls before they cost anything, by how late the event loop runs (ADR 0076).

A saturated event loop is late: its callbacks run long after they are due. While it is, the number of calls
in flight is reduced until the loop is on time again, and further calls are refused before their message is
received, their caller authenticated, or anything parsed. A dependency that stalls makes calls slow but not
the loop late, so that these calls are not refused but end in their fallback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import grpc

from flywheel_common.grpc.error_details import trailing_metadata
from flywheel_common.grpc.errors import Overloaded

TICK_SECONDS = 0.01
LATE_TICKS = 5
"""The limit falls when so many ticks in a row were late: a single pause is no overload."""
LEAST_CALLS = 48
"""The limit never falls below this: a pause of a process with few calls is no reason to refuse any."""
REFUSE_ALL_AFTER = 4
RETRY_SECONDS = 0.05


class LoadLimit:
    """A limit of calls in flight that follows the lateness of the event loop.

    `max_late_seconds`: the lateness above which the limit falls after LATE_TICKS, to nine tenths of the calls
    in flight; below it the limit grows by a twentieth per tick up to `most_calls`. 0: there is no limit. Used
    from one event loop only.
    """

    def __init__(self, most_calls: int, max_late_seconds: float) -> None:
        self.open = 0
        """Calls in flight."""
        self.limit = most_calls
        self._most = most_calls
        self._max_late = max_late_seconds
        self._late_ticks = 0
        self._waiting_too_long = False

    @property
    def full(self) -> bool:
        return self._max_late > 0 and (self._waiting_too_long or self.open >= self.limit)

    def observe(self, late_seconds: float) -> None:
        """Adjusts the limit to the lateness of one tick."""
        if late_seconds > self._max_late:
            self._late_ticks += 1
            if self._late_ticks >= LATE_TICKS:
                self.limit = max(LEAST_CALLS, min(self.limit, self.open) * 9 // 10)
        else:
            self._late_ticks = 0
            self.limit = min(self._most, self.limit + self.limit // 20)

    def backlog(self, seconds: float) -> None:
        """For `seconds`, more calls have waited to be accepted than could be; 0: none waits now.

        After `max_late_seconds` the limit falls as far as it goes, and after REFUSE_ALL_AFTER times that all
        calls are refused until none waits: refusals alone are fast enough to empty the queue.
        """
        if seconds > self._max_late:
            self.limit = LEAST_CALLS
        self._waiting_too_long = seconds > REFUSE_ALL_AFTER * self._max_late

    def count(self, task: asyncio.Task[Any]) -> None:
        """Counts a call until its task ends."""
        self.open += 1
        task.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[Any]) -> None:
        self.open -= 1

    async def run(self) -> None:
        """Measures the lateness, for as long as the process runs."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self.observe(loop.time() - due)


class CountRefusal(Protocol):
    """Counts a refused call of a method."""

    def __call__(self, method: str) -> None: ...


class LimitedHandlers(grpc.GenericRpcHandler):
    """The handlers of a service; unary calls above the limit get RESOURCE_EXHAUSTED OVERLOADED and RetryInfo.

    `exempt` decides by the metadata of a call that it is never refused here.
    """

    def __init__(
        self,
        service: str,
        handlers: Mapping[str, Any],
        limit: LoadLimit,
        refused: CountRefusal,
        exempt: Callable[[tuple[tuple[str, str | bytes], ...]], bool],
    ) -> None:
        self._handlers = {f"/{service}/{name}": handler for name, handler in handlers.items()}
        self._limit = limit
        self._refused = refused
        self._exempt = exempt
        error = Overloaded(
            "The server is saturated: retry after the delay, with backoff.",
            retry_after_seconds=RETRY_SECONDS,
        )
        # A handler of a request stream starts without receiving the message.
        self._refusal = grpc.stream_unary_rpc_method_handler(_refuse(error))

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None or handler.request_streaming or handler.response_streaming:
            return handler
        if self._limit.full and not self._exempt(handler_call_details.invocation_metadata or ()):
            self._refused(method)
            return self._refusal
        # gRPC looks the handler up in the task of the call. The task ends whatever becomes of the call.
        task = asyncio.current_task()
        if task is not None:
            self._limit.count(task)
        return handler


def _refuse(error: Overloaded) -> Callable[[Any, Any], Awaitable[bytes]]:
    code, message, metadata = error.code, error.message, trailing_metadata(error)

    async def refuse(_: Any, context: Any) -> bytes:
        # Cheaper than an abort, which raises an exception through gRPC's layers.
        context.set_code(code)
        context.set_details(message)
        context.set_trailing_metadata(metadata)
        return b""

    return refuse
