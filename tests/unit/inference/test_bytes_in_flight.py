"""The limit of bytes in flight, for calls and for streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, nullcontext
from typing import cast

import pytest

from flywheel_common.context import ANONYMOUS, Call, Principal, current_call
from flywheel_common.errors import FlywheelError
from flywheel_common.grpc.answer_stream import answered_in_order, answered_when_ready
from flywheel_inference.api.counted_stream import counted_stream
from flywheel_inference.prediction.bulk import BulkPredictor
from flywheel_inference.prediction.errors import TooManyPredictions
from flywheel_inference.prediction.predictor import Predictor
from flywheel_inference.requests.bytes_in_flight import BytesInFlight
from flywheel_inference.requests.errors import TooManyBytes
from flywheel_protos.inference.v1 import inference_pb2 as pb
from tests.support.builders.feature_units import run_event_loop


def test_bytes_above_the_limit_are_refused_until_others_end() -> None:
    budget = BytesInFlight(100, 9)
    with budget.call() as first:
        first.take(60)
        with budget.call() as second:
            with pytest.raises(TooManyBytes):
                second.take(41)
            second.take(40)
        first.add(50)
        assert budget.total == 110
    assert budget.total == 0
    with budget.call() as alone:
        alone.take(1_000)
        assert budget.total == 1_000
    assert budget.total == 0


def test_calls_above_the_limit_are_refused_until_others_end() -> None:
    budget = BytesInFlight(100, 2)
    with budget.call(), budget.call(), pytest.raises(TooManyBytes), budget.call():
        raise AssertionError("a third call began")
    with budget.call(), budget.call():
        pass


@contextmanager
def caller(subject: str) -> Iterator[None]:
    """Runs as a call of an authenticated caller; of `anonymous` in open mode."""
    token = current_call.set(Call(principal=ANONYMOUS if subject == "anonymous" else Principal(subject)))
    try:
        yield
    finally:
        current_call.reset(token)


@pytest.mark.parametrize(("subject", "limited"), [("ann", True), ("anonymous", False)])
def test_one_caller_leaves_bytes_and_calls_to_others(subject: str, limited: bool) -> None:
    budget = BytesInFlight(100, 4, 0.5)
    refusal = pytest.raises(TooManyBytes, match=subject) if limited else nullcontext()
    with caller(subject), budget.call() as first:
        first.take(50)
        with budget.call() as second:
            with refusal:
                second.take(1)
            with refusal, budget.call():
                pass
            with caller("bob"), budget.call() as other:
                other.take(49)
    with caller(subject), budget.call() as again, budget.call():
        again.take(50)
    assert budget.total == 0


@pytest.mark.parametrize(("subject", "limited"), [("ann", True), ("anonymous", False)])
async def test_one_caller_leaves_batches_to_others(subject: str, limited: bool) -> None:
    bulk = BulkPredictor(cast("Predictor", None), max_batches=4, max_batches_per_caller=2)
    refusal = pytest.raises(TooManyPredictions, match=subject) if limited else nullcontext()
    with caller(subject), bulk.batch(1), bulk.batch(1):
        with refusal, bulk.batch(1):
            pass
        with caller("bob"), bulk.batch(1), bulk.batch(1), pytest.raises(TooManyPredictions), bulk.batch(1):
            pass
    with caller(subject), bulk.batch(1), bulk.batch(1):
        pass


def request(number: int, size: int = 1_000) -> pb.StreamPredictRequest:
    return pb.StreamPredictRequest(id=f"{number:0{size}}")


@pytest.mark.parametrize("answered", [answered_in_order, answered_when_ready])
async def test_a_stream_refuses_requests_above_the_limit_and_goes_on(answered: object) -> None:
    budget = BytesInFlight(3_500, 9)
    gate = asyncio.Event()
    arrived: asyncio.Queue[pb.StreamPredictRequest | None] = asyncio.Queue()

    async def requests() -> AsyncIterator[pb.StreamPredictRequest]:
        while (item := await arrived.get()) is not None:
            yield item

    async def answer(
        sent: pb.StreamPredictRequest, refusal: FlywheelError | None
    ) -> pb.StreamPredictResponse:
        if refusal is None:
            await gate.wait()
        return pb.StreamPredictResponse(id="refused" if refusal is not None else "answered")

    for number in range(5):
        arrived.put_nowait(request(number))
    stream = counted_stream(requests(), answer, budget, answered=answered, in_flight=8)  # type: ignore[arg-type]
    first = asyncio.ensure_future(anext(stream))
    await run_event_loop()
    assert 3_000 < budget.total < 3_500
    gate.set()
    ids = [(await first).id, *[(await anext(stream)).id for _ in range(4)]]
    assert sorted(ids) == ["answered"] * 3 + ["refused"] * 2
    arrived.put_nowait(request(5))
    assert (await anext(stream)).id == "answered"
    arrived.put_nowait(None)
    assert [a async for a in stream] == []
    assert budget.total == 0


async def test_a_closed_stream_gives_its_bytes_back() -> None:
    budget = BytesInFlight(10_000, 9)

    async def requests() -> AsyncIterator[pb.StreamPredictRequest]:
        for number in range(6):
            yield request(number)

    async def answer(sent: pb.StreamPredictRequest, refusal: FlywheelError | None) -> pb.StreamPredictRequest:
        if sent.id.endswith("3"):
            await asyncio.Event().wait()
        return sent

    stream = counted_stream(requests(), answer, budget, answered=answered_when_ready, in_flight=8)
    async with aclosing(stream):
        await anext(stream)
        await run_event_loop()
        assert budget.total > 5_000
    assert budget.total == 0
