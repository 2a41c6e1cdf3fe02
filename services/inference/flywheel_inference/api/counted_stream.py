"""A stream of answers that counts requests until they are answered and answers until they are sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from flywheel_common.errors import FlywheelError
from flywheel_inference.requests.bytes_in_flight import BytesInFlight


async def counted_stream(
    requests: AsyncIterable[Any],
    answer: Callable[[Any, FlywheelError | None], Awaitable[Any]],
    budget: BytesInFlight,
    *,
    answered: Callable[..., AsyncGenerator[Any, None]],
    in_flight: int,
) -> AsyncGenerator[Any, None]:
    """The answers to the messages `requests`. `answer` gets a request and why it must be refused, if it must.
    `answered`: a function of `answer_stream`."""
    with budget.call() as held:

        async def counted(request: Any) -> Any:
            size, refusal = request.ByteSize(), None
            try:
                held.take(size)
            except FlywheelError as error:
                size, refusal = 0, error
            response = await answer(request, refusal)
            held.add(response.ByteSize() - size)
            return response

        # Closed before the bytes are given back: no request may still add to them afterwards.
        async with aclosing(answered(requests, counted, in_flight=in_flight)) as answers:
            async for response in answers:
                yield response
                held.add(-response.ByteSize())
