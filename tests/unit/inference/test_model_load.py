"""Signals for scaling: busy share of slots and recent latencies."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from flywheel_inference.batching.batcher import Batcher, Entry
from flywheel_inference.batching.busy_share import BusyShare
from flywheel_inference.prediction.model_load import ModelLoad, RecentLatencies
from flywheel_inference.store.prometheus.metrics import GatewayMetrics


def test_the_busy_share_is_the_exponential_average_of_its_steps() -> None:
    share = BusyShare(10.0)
    steps = [(0.0, 0.0), (100.0, 1.0), (103.0, 0.5), (108.0, 0.0)]
    for now, value in steps:
        share.step(value, now)
    # The integral, as a sum over small steps.
    times = np.arange(100.0, 115.0, 0.001)
    values = np.select([times < 103, times < 108], [1.0, 0.5], 0.0)
    expected = float((values * np.exp((times - 115.0) / 10.0)).sum() * 0.001 / 10.0)
    assert share.at(115.0) == pytest.approx(expected, abs=1e-3)
    assert BusyShare().at(5.0) == 0.0


async def test_a_batcher_whose_slots_are_busy_has_a_growing_utilisation() -> None:
    release = asyncio.Event()

    async def run(batch: list[Entry[int, int]]) -> list[int]:
        await release.wait()
        return [entry.item for entry in batch]

    batcher: Batcher[int, int] = Batcher(run, slots=1, stall_seconds=60.0)
    assert batcher.utilisation == 0.0
    future = batcher.submit(1, asyncio.get_running_loop().time() + 60.0)
    await asyncio.sleep(0.05)
    first = batcher.utilisation
    await asyncio.sleep(0.05)
    assert 0.0 < first < batcher.utilisation < 0.5
    release.set()
    assert await future == 1
    await batcher.close()


def test_p99_is_of_the_last_answers_only() -> None:
    latencies = RecentLatencies(max_count=200, seconds=60.0)
    assert math.isnan(latencies.p99(0.0))
    for i in range(1_000):
        latencies.add(float(i), now=100.0)
    # The last 200 are 800 … 999; 198 of them are at most 997.
    assert latencies.p99(100.0) == 997.0
    latencies.add(5.0, now=190.0)
    assert latencies.p99(191.0) == 5.0
    assert math.isnan(latencies.p99(300.0))


def test_the_gauges_of_a_model_end_when_it_is_not_served_any_more() -> None:
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    loads = [ModelLoad("m", 3, 7, 0.25), ModelLoad("n", 0, 0, 0.0)]
    metrics.watch_models(lambda: loads)
    metrics.answered("m", 1, 1, "", 20.0)
    metrics.answered("n", 1, 1, "", 30.0)

    def gauges() -> set[str]:
        lines = generate_latest(registry).decode().splitlines()
        names = ("queue_depth", "in_flight", "utilisation", "p99_seconds")
        return {line for line in lines if line.startswith(tuple(f"flywheel_inference_{n}{{" for n in names))}

    assert gauges() == {
        'flywheel_inference_queue_depth{model="m"} 3.0',
        'flywheel_inference_queue_depth{model="n"} 0.0',
        'flywheel_inference_in_flight{model="m"} 7.0',
        'flywheel_inference_in_flight{model="n"} 0.0',
        'flywheel_inference_utilisation{model="m"} 0.25',
        'flywheel_inference_utilisation{model="n"} 0.0',
        'flywheel_inference_p99_seconds{model="m"} 0.02',
        'flywheel_inference_p99_seconds{model="n"} 0.03',
    }
    del loads[1]
    assert not any('model="n"' in line for line in gauges())
