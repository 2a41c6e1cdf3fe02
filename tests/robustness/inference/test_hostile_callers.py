"""Healthy callers beside hostile ones: short deadlines, wrong types, large fields, and batches with bad rows.

300 healthy and 200 hostile calls/s are sent to one gateway process. Phases with and without the hostile calls
alternate in one run; the p99 of the healthy ones in both is printed. The target is twice the p99 without;
the bound here is wide, because the load generators share two cores with the gateway and its backends.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter

import grpc
import pytest

from flywheel_protos.inference.v1 import inference_pb2, inference_pb2_grpc
from flywheel_protos.types.v1.value_pb2 import Value, ValueList
from tests.robustness.inference.conftest import Platform
from tests.support.builders.inference import MODEL
from tests.support.prediction_load import (
    PredictionLoad,
    outcomes,
    p99_ms,
    per_second,
    predict_request,
    sent_in,
    separate_load,
)

HEALTHY, HOSTILE = 300.0, 200.0
ROUNDS, PHASE_SECONDS = 3, 4.0
WIDE_BOUND = 15.0
SHORT_SECONDS = 0.006
LARGE = "x" * (15 * 1024 * 1024)
BATCH_ROWS = 100

pytestmark = pytest.mark.timeout(300)


class Hostile:
    """Sends one kind of bad call after the other; counts how they end."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self._batch = inference_pb2.BatchPredictRequest(
            model=MODEL, requests=[predict_request(number, "") for number in range(BATCH_ROWS)]
        )
        # One row of a hundred lacks its key.
        self._batch.requests[17].entity_keys.clear()
        self.ended: Counter[str] = Counter()
        self._numbers = itertools.count()
        self.seconds = 0.0
        """How long it has sent calls."""

    async def run_for(self, seconds: float) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for count in range(int(seconds * HOSTILE)):
                group.create_task(self._send(next(self._numbers)))
                await asyncio.sleep(max(0.0, began + count / HOSTILE - time.monotonic()))
        self.seconds += seconds

    async def _send(self, number: int) -> None:
        request = predict_request(number)
        timeout = 5.0
        try:
            if number % 200 == 0:
                request.request_fields["origin"].CopyFrom(Value(string_value=LARGE))
            elif number % 50 == 1:
                batch = await self._stub.BatchPredict(self._batch, timeout=timeout)
                bad = [place for place, one in enumerate(batch.results) if one.HasField("error")]
                self.ended["batch" if bad == [17] else f"batch {bad}"] += 1
                return
            elif number % 2:
                timeout = SHORT_SECONDS
            else:
                ragged = ValueList(values=[Value(double_value=1.0)] * (number % 5))
                request.request_fields["miles"].CopyFrom(Value(list_value=ragged))
            await self._stub.Predict(request, timeout=timeout)
            self.ended["OK"] += 1
        except grpc.aio.AioRpcError as error:
            self.ended[error.code().name] += 1


async def test_healthy_callers_get_answers_of_the_model_beside_hostile_ones(platform: Platform) -> None:
    gateway = await platform.gateway(batch_cap_seconds=2.0, default_budget_seconds=4.0)
    # Without a pool of its own, a channel could share the connection of the other one.
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    alone: list[tuple[float, float]] = []
    together: list[tuple[float, float]] = []
    async with (
        grpc.aio.insecure_channel(gateway.address) as healthy,
        grpc.aio.insecure_channel(gateway.address, options=options) as other,
    ):
        hostile = Hostile(other)
        seconds = ROUNDS * 2 * PHASE_SECONDS + 10.0
        load = asyncio.create_task(
            separate_load(gateway.address, rate=HEALTHY, seconds=seconds, deadline=5.0)
        )
        await asyncio.sleep(3.0)  # its interpreter starts
        for _ in range(ROUNDS):
            began = time.monotonic()
            await asyncio.sleep(PHASE_SECONDS)
            alone.append((began, time.monotonic()))
            began = time.monotonic()
            await hostile.run_for(PHASE_SECONDS)
            together.append((began, began + PHASE_SECONDS))
            await asyncio.sleep(0.2)
        calls = await load
        assert per_second(calls) >= 200.0
        assert outcomes(calls) == {"model": len(calls)}, Counter(call.reason for call in calls)
        # The breakers are closed.
        after = PredictionLoad([healthy], rate=HEALTHY, deadline=5.0)
        assert outcomes(await after.run_for(0.5)).keys() == {"model"}
    without, beside = p99_ms(sent_in(calls, alone)), p99_ms(sent_in(calls, together))
    print(f"p99 alone {without:.1f} ms, beside hostile callers {beside:.1f} ms: {beside / without:.1f} times")
    print(f"hostile calls ended as {dict(hostile.ended)}")
    documented = {"OK", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "batch"}
    assert hostile.ended.keys() <= documented, hostile.ended
    assert hostile.ended["INVALID_ARGUMENT"] > 0 and hostile.ended["batch"] > 0, hostile.ended
    assert hostile.ended.total() > 30 * hostile.seconds
    assert beside <= WIDE_BOUND * without
