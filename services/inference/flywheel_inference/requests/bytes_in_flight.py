"""A limit for the bytes of requests that are being answered, and of answers that clients have not read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flywheel_common.context import Principal, current_principal
from flywheel_inference.requests.caller_limit import CallerLimit
from flywheel_inference.requests.errors import TooManyBytes

RETRY_SECONDS = 0.1


class BytesInFlight:
    """Counts calls and the bytes that they hold, up to a limit of both. One authenticated caller may have
    `caller_share` of either. Used from one event loop only."""

    def __init__(self, limit: int, max_calls: int, caller_share: float = 1.0) -> None:
        self.limit = limit
        self.total = 0
        self.bytes_of = CallerLimit(limit * caller_share)
        self._max_calls = max_calls
        self._calls = 0
        self._calls_of = CallerLimit(max_calls * caller_share)

    @contextmanager
    def call(self) -> Iterator[HeldBytes]:
        """The bytes of one call, none at first; what it still holds at its end is given back. Raises
        ResourceExhausted OVERLOADED."""
        caller = current_principal()
        if self._calls >= self._max_calls:
            raise _refused(f"{self._max_calls} calls")
        if not self._calls_of.allows(caller):
            raise _refused(f"{self._calls_of.held(caller)} calls of {caller.subject}")
        held = HeldBytes(self, caller)
        self._calls += 1
        self._calls_of.add(caller, 1)
        try:
            yield held
        finally:
            self._calls -= 1
            self._calls_of.add(caller, -1)
            held.add(-held.size)


class HeldBytes:
    """The bytes that one call holds."""

    def __init__(self, of: BytesInFlight, caller: Principal) -> None:
        self._of = of
        self._caller = caller
        self.size = 0

    def take(self, size: int) -> None:
        """Adds a request, also one above a limit while nothing else is held. Raises ResourceExhausted
        OVERLOADED."""
        of, caller = self._of, self._caller
        if of.total and of.total + size > of.limit:
            raise _refused(f"{of.total} bytes of requests")
        if not of.bytes_of.allows(caller, size):
            raise _refused(f"{of.bytes_of.held(caller)} bytes of requests of {caller.subject}")
        self.add(size)

    def add(self, size: int) -> None:
        """Adds bytes of an answer, whatever the limit; a negative size gives bytes back."""
        self.size += size
        self._of.total += size
        self._of.bytes_of.add(self._caller, size)


def _refused(found: str) -> TooManyBytes:
    return TooManyBytes(
        f"{found} are in flight: retry after the delay, with backoff.", retry_after_seconds=RETRY_SECONDS
    )
