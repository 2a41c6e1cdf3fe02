"""A circuit breaker: pauses calls of a dependency after several failures in a row."""

from __future__ import annotations


class CircuitBreaker:
    """Closed → (`threshold` failures in a row) → open for `open_seconds` → one probe at a time → closed on
    success. Times are seconds on any monotonic clock."""

    __slots__ = ("_failures", "_open_seconds", "_opened_at", "_threshold")

    def __init__(self, *, threshold: int = 5, open_seconds: float = 0.5) -> None:
        self._threshold = threshold
        self._open_seconds = open_seconds
        self._failures = 0
        self._opened_at = 0.0

    @property
    def is_open(self) -> bool:
        return self._failures >= self._threshold

    def allows(self, now: float) -> bool:
        """Whether a call may be made. A probe while open blocks the next one for another `open_seconds`."""
        if self._failures < self._threshold:
            return True
        if now - self._opened_at < self._open_seconds:
            return False
        self._opened_at = now
        return True

    def succeeded(self) -> None:
        """A call succeeded: closes the breaker."""
        self._failures = 0

    def failed(self, now: float) -> None:
        """A call failed: opens the breaker at the threshold."""
        self._failures += 1
        if self._failures >= self._threshold:
            self._opened_at = now
