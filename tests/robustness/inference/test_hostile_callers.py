"""Healthy callers beside hostile ones: short deadlines, wrong types, large fields, and batches with bad rows.

150 healthy and 100 hostile calls/s are sent to one gateway process; the load generator shares two cores with
it. Only the answers are asserted, with long limits, because the machine may be busy.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import grpc
import pytest

from flywheel_protos.inference.v1 import inference_pb2, inference_pb2_grpc
from flywheel_protos.types.v1.value_pb2 import Value, ValueList
from tests.robustness.inference.conftest import Platform
from tests.support.builders.inference import MODEL
from tests.support.prediction_load import PredictionLoad, outcomes, per_second, predict_request

HEALTHY, HOSTILE = 300.0, 200.0
SECONDS = 10.0
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
        self.stopped = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                if self.stopped:
                    return
                group.create_task(self._send(number))
                await asyncio.sleep(1 / HOSTILE)

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
    async with (
        grpc.aio.insecure_channel(gateway.address) as healthy,
        grpc.aio.insecure_channel(gateway.address, options=options) as other,
    ):
        hostile = Hostile(other)
        running = asyncio.create_task(hostile.run())
        load = PredictionLoad([healthy], rate=HEALTHY, deadline=5.0)
        try:
            calls = await load.run_for(SECONDS)
        finally:
            hostile.stopped = True
            await running
        assert per_second(calls) >= 200.0
        assert outcomes(calls) == {"model": len(calls)}, Counter(call.reason for call in calls)
        # The breakers are closed.
        assert outcomes(await load.run_for(0.5)).keys() == {"model"}
    documented = {"OK", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "batch"}
    assert hostile.ended.keys() <= documented, hostile.ended
    assert hostile.ended["INVALID_ARGUMENT"] > 0 and hostile.ended["batch"] > 0, hostile.ended
    assert hostile.ended.total() > 30 * SECONDS
