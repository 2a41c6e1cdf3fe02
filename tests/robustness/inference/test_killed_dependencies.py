"""kill -9 of each dependency of a gateway under load: callers get labelled answers within their deadline.

The load generator, the gateway and its dependencies share two cores here.
"""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from tests.robustness.inference.conftest import Platform
from tests.support.eventually import eventually
from tests.support.prediction_load import Call, PredictionLoad, outcomes, per_second

RATE = 500.0
LEAST_RATE = 400.0
"""Fewer calls before a fault prove nothing."""
DEADLINE_SECONDS = 1.0
DOWN_SECONDS = 3.0
DEPENDENCIES = ("registry", "kafka", "redis", "feature", "triton")
DEGRADES = {"feature", "triton"}

pytestmark = pytest.mark.timeout(400)


async def kill_and_restart(platform: Platform, name: str) -> None:
    """Kills a dependency; it is down for some seconds."""
    if name in platform.peers:
        platform.peers[name].process.kill()
        await asyncio.sleep(DOWN_SECONDS)
        platform.peers[name].start()
        return
    backend = getattr(platform.backends, name)
    await asyncio.to_thread(backend.kill)
    await asyncio.sleep(DOWN_SECONDS)
    await asyncio.to_thread(backend.restart)


def model_answers(calls: list[Call], seconds: float) -> bool:
    """Whether the model gave every answer of the last seconds."""
    recent = [call for call in calls if call.sent > time.monotonic() - seconds]
    return len(recent) > 0.5 * RATE * seconds and all(call.outcome == "model" for call in recent)


async def test_predictions_are_answered_while_each_dependency_is_killed(platform: Platform) -> None:
    gateway = await platform.gateway()
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        load = PredictionLoad([channel], rate=RATE, deadline=DEADLINE_SECONDS)
        running = asyncio.create_task(load.run())
        try:
            for name in DEPENDENCIES:
                await eventually(lambda: model_answers(load.calls, 1.0), within=60)
                healthy = [call for call in load.calls if call.sent > time.monotonic() - 1.0]
                assert per_second(healthy) >= LEAST_RATE
                first = len(load.calls)
                await kill_and_restart(platform, name)
                # The answers recover without a restart of the gateway.
                await eventually(lambda: model_answers(load.calls, 2.0), within=60)
                calls = load.calls[first:]
                found = outcomes(calls)
                answered = sum(call.answered for call in calls)
                print(
                    f"{name}: {per_second(calls):.0f}/s, {answered} of {len(calls)} answered, {dict(found)}"
                )
                assert answered >= 0.999 * len(calls), (name, found)
                assert all(call.labelled for call in calls), name
                assert (found["default"] + found["cached"] > 0) == (name in DEGRADES), (name, found)
        finally:
            load.stop()
            await running
    assert gateway.process.running
