"""Requests that come together, in a batch or in a stream: each is answered by the Predictor.

All of them share a part of the Predictor's places, so that large batches leave places to single calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from flywheel_common.context import current_principal, keep_back, left_seconds
from flywheel_common.errors import FlywheelError
from flywheel_common.tasks import TaskGroup
from flywheel_inference.batching.loop_share import LoopShare
from flywheel_inference.prediction.errors import (
    NotReached,
    ResponseTooLarge,
    TooManyPredictions,
    TooManyRequests,
)
from flywheel_inference.prediction.predictor import Answer, Predictor
from flywheel_inference.requests.caller_limit import CallerLimit
from flywheel_inference.requests.request import PredictCall

MAX_REQUESTS = 10_000
"""Largest number of requests of a batch."""
RESERVED_SHARE = 0.05
"""Share of a batch's time that is reserved for its response."""
SHORTEST_SECONDS = 0.01
"""A request of a batch is not begun with less time than this."""
FEWEST_WORKERS = 8
"""Smallest number of requests of a batch that are worked on at once."""
LOOP_SHARE_SECONDS = 0.001
"""For so long the requests of all batches and streams run in one iteration of the event loop; then other
calls have their turn."""

Request = TypeVar("Request")
Result = TypeVar("Result")


class BulkPredictor:
    """Answers the requests of batches and streams: at most `max_in_flight` at once, over all calls.

    At most `max_batches` batches run at once, and `max_batches_per_caller` of one authenticated caller; the
    results of one have at most `max_bytes` together.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        max_in_flight: int = 256,
        max_batches: int = 16,
        max_batches_per_caller: int = 8,
        max_bytes: int = 16 * 1024 * 1024,
        share: LoopShare | None = None,
    ) -> None:
        """`share`: of each iteration of the event loop for all requests; LOOP_SHARE_SECONDS without one."""
        self._predictor = predictor
        self._max_in_flight = max_in_flight
        self._max_batches = max_batches
        self._callers = CallerLimit(max_batches_per_caller)
        self._max_bytes = max_bytes
        self._places = asyncio.Semaphore(max_in_flight)
        self._share = share or LoopShare(LOOP_SHARE_SECONDS)
        self._batches = 0
        self._working = 0

    async def predict(self, make_call: Callable[[], PredictCall]) -> Answer:
        """Waits for a place, then makes the call, so that no more calls exist than places. Raises as
        `make_call` and `Predictor.predict`."""
        async with self._places:
            await self._share.turn()
            answer = await self._predictor.predict(make_call())
            # The answers of a batch come together, and the caller makes a response of each.
            await self._share.turn()
            return answer

    async def turn(self) -> None:
        """Waits for a turn to work on many results at once."""
        await self._share.turn()

    @contextmanager
    def batch(self, requests: int) -> Iterator[None]:
        """Counts a batch while it runs. Raises InvalidArgument TOO_MANY_REQUESTS, ResourceExhausted
        OVERLOADED."""
        if requests > MAX_REQUESTS:
            raise TooManyRequests(
                f"The batch has {requests} requests: send at most {MAX_REQUESTS}.", limit=MAX_REQUESTS
            )
        caller, found = current_principal(), ""
        if self._batches >= self._max_batches:
            found = f"{self._max_batches} batches"
        elif not self._callers.allows(caller):
            found = f"{self._callers.held(caller)} batches of {caller.subject}"
        if found:
            raise TooManyPredictions(
                f"{found} are running: retry after the delay, with backoff.", retry_after_seconds=0.5
            )
        self._batches += 1
        self._callers.add(caller, 1)
        try:
            yield
        finally:
            self._batches -= 1
            self._callers.add(caller, -1)

    async def predict_each(
        self,
        requests: Sequence[Request],
        answer: Callable[[Request], Awaitable[Result]],
        *,
        refusal: Callable[[FlywheelError], Result],
        size_of: Callable[[Result], int],
    ) -> list[Result]:
        """The result of each request, in order. `answer` calls `predict` and returns errors of the request as
        results; `refusal` makes the result of a request that is not begun: the deadline of the call is near,
        or the results so far are too large. Shortens the budget of the calling task by a reserve for the
        response.
        """
        self._working += 1
        try:
            return await self._answered(requests, answer, refusal, size_of)
        finally:
            self._working -= 1

    async def _answered(
        self,
        requests: Sequence[Request],
        answer: Callable[[Request], Awaitable[Result]],
        refusal: Callable[[FlywheelError], Result],
        size_of: Callable[[Result], int],
    ) -> list[Result]:
        reserve = (left_seconds() or 0.0) * RESERVED_SHARE
        results: list[Result | None] = [None] * len(requests)
        waiting = iter(enumerate(requests))
        total = 0

        # The answers come before the reserve, so that the response can still be sent.
        keep_back(reserve)

        async def work() -> None:
            nonlocal total
            for place, request in waiting:
                left = left_seconds()
                if left is not None and left < SHORTEST_SECONDS:
                    error: FlywheelError = NotReached(
                        "The deadline of the batch is near: send fewer requests."
                    )
                    results[place] = refusal(error)
                elif total > self._max_bytes:
                    error = ResponseTooLarge(
                        f"The results before have more than {self._max_bytes} bytes: send smaller batches.",
                        limit_bytes=self._max_bytes,
                    )
                    results[place] = refusal(error)
                else:
                    result = await answer(request)
                    results[place] = result
                    total += size_of(result)

        async with TaskGroup() as group:
            # Many calls at once get their places anyway: fewer tasks each.
            workers = max(FEWEST_WORKERS, self._max_in_flight // self._working)
            for _ in range(min(workers, len(requests))):
                group.create_task(work())
        return [result for result in results if result is not None]
