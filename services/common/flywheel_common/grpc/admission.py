"""Admission control: refuses calls above a limit instead of queueing them. Health checks are exempt."""

from __future__ import annotations

from flywheel_common.grpc.errors import Overloaded


class Admission:
    """Counts unary and streaming calls in flight; above a limit raises Overloaded with a retry delay.

    Used from one event loop only.
    """

    __slots__ = ("_retry", "streams", "streams_limit", "unary", "unary_limit")

    def __init__(self, unary_limit: int, streams_limit: int, retry_after_seconds: float = 0.1) -> None:
        self.unary_limit = unary_limit
        self.streams_limit = streams_limit
        self.unary = 0
        self.streams = 0
        self._retry = retry_after_seconds

    @property
    def in_flight(self) -> int:
        return self.unary + self.streams

    def enter(self, streaming: bool) -> None:
        """Counts a call that begins. Raises Overloaded."""
        if streaming:
            if self.streams >= self.streams_limit:
                raise self._refusal("streams", self.streams_limit)
            self.streams += 1
        else:
            if self.unary >= self.unary_limit:
                raise self._refusal("calls", self.unary_limit)
            self.unary += 1

    def leave(self, streaming: bool) -> None:
        """Counts a call that has ended."""
        if streaming:
            self.streams -= 1
        else:
            self.unary -= 1

    def _refusal(self, what: str, limit: int) -> Overloaded:
        return Overloaded(
            f"The server has reached its limit of {limit} concurrent {what}: retry with backoff.",
            retry_after_seconds=self._retry,
        )
