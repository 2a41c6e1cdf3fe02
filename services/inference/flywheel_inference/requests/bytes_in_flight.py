"""A limit for the bytes of the requests that are being answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flywheel_inference.requests.errors import TooManyBytes


class BytesInFlight:
    """Counts the bytes of running requests up to a limit. Used from one event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Counts a request of `size` bytes while it runs; one that is larger than the limit runs alone.
        Raises ResourceExhausted OVERLOADED."""
        if self.held and self.held + size > self._limit:
            raise TooManyBytes(
                f"Requests with {self.held} bytes are in flight: retry after the delay, with backoff.",
                retry_after_seconds=0.1,
            )
        self.held += size
        try:
            yield
        finally:
            self.held -= size
