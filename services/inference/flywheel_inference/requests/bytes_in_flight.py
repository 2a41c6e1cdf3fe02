"""A limit for the bytes of requests that are being answered, and of answers that clients have not read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flywheel_inference.requests.errors import TooManyBytes


class BytesInFlight:
    """Counts calls and the bytes that they hold, up to a limit of both. Used from one event loop only."""

    def __init__(self, limit: int, max_calls: int) -> None:
        self.limit = limit
        self.total = 0
        self._max_calls = max_calls
        self._calls = 0

    @contextmanager
    def call(self) -> Iterator[HeldBytes]:
        """The bytes of one call, none at first; what it still holds at its end is given back. Raises
        ResourceExhausted OVERLOADED."""
        if self._calls >= self._max_calls:
            raise TooManyBytes(
                f"{self._max_calls} calls are in flight: retry after the delay, with backoff.",
                retry_after_seconds=0.1,
            )
        held = HeldBytes(self)
        self._calls += 1
        try:
            yield held
        finally:
            self._calls -= 1
            held.add(-held.size)


class HeldBytes:
    """The bytes that one call holds."""

    def __init__(self, of: BytesInFlight) -> None:
        self._of = of
        self.size = 0

    def take(self, size: int) -> None:
        """Adds a request, also one above the limit while nothing else is held. Raises ResourceExhausted
        OVERLOADED."""
        if self._of.total and self._of.total + size > self._of.limit:
            raise TooManyBytes(
                f"{self._of.total} bytes of requests are in flight: retry after the delay, with backoff.",
                retry_after_seconds=0.1,
            )
        self.add(size)

    def add(self, size: int) -> None:
        """Adds bytes of an answer, whatever the limit; a negative size gives bytes back."""
        self.size += size
        self._of.total += size
