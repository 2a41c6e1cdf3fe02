"""A new stream source beside 200 others: when its first event is online, and the lag of the others."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import flywheel as fw
from bench import measure
from bench.feature.deployment import FeatureDeployment
from flywheel.tables import to_dict

SOURCES = 200
NEW_SOURCES = 5
LOADED = 4
"""Sources whose lag is measured meanwhile."""
PROJECT = "many"
SCHEMA = {"rider": fw.STRING, "at": fw.TIMESTAMP}


def run(deployment: FeatureDeployment) -> Iterable[measure.Row]:
    workers = [deployment.start_worker() for _ in range(2)]
    try:
        first, before, during = asyncio.run(_measure(deployment.address))
    finally:
        for worker in workers:
            worker.stop()
    what = f"beside {SOURCES} sources, two workers"
    bound = measure.at_most(2.0, of_value=True)
    yield measure.row(f"first event of a new source, {what}", statistics.median(first), "s", bound)
    yield measure.row(f"slowest first event of {NEW_SOURCES}, {what}", max(first), "s", bound)
    yield measure.row("longest lag of the others before", max(before), "s", bound)
    yield measure.row("longest lag of the others while sources are added", max(during), "s", bound)


async def _measure(address: str) -> tuple[list[float], list[float], list[float]]:
    """Seconds from push to answer: of new sources, of others before, of others meanwhile."""
    async with fw.Client(PROJECT, feature=address, timeout=300.0) as client:
        names = [f"source{i}" for i in range(SOURCES)]
        await client.apply(_definitions(names))
        for low in range(0, SOURCES, 20):
            await asyncio.gather(*(_until_online(client, n, 1) for n in names[low : low + 20]))
        lags: list[float] = []

        async def load() -> None:
            number = LOADED
            while True:
                lags.append(await _until_online(client, names[number % LOADED], number // LOADED + 1))
                number += 1

        loading = asyncio.create_task(load())
        first: list[float] = []
        await asyncio.sleep(5)
        before = len(lags)
        for i in range(NEW_SOURCES):
            names.append(f"new{i}")
            await client.apply(_definitions(names))
            first.append(await _until_online(client, names[-1], 1))
        loading.cancel()
        with suppress(asyncio.CancelledError):
            await loading
        return first, lags[:before], lags[before:]


def _definitions(names: list[str]) -> Any:
    rider = fw.Entity("rider", {"rider": fw.STRING})
    items: list[Any] = []
    for name in names:
        source = fw.StreamSource(name, SCHEMA, timestamp="at")
        items += [
            fw.StreamView(f"of_{name}", rider, source, [fw.count("1d", name="n")], tile="1h"),
            fw.FeatureSet(f"set_{name}", [f"of_{name}:n"]),
        ]
    return fw.compile_definitions(items, PROJECT)


async def _until_online(client: fw.Client, name: str, number: int) -> float:
    """Push event `number` of a source; seconds until the answers count it."""
    started, at = time.perf_counter(), datetime.now(UTC)
    await client.push(name, {"rider": ["r"], "at": [at]}, SCHEMA, ids=[f"{name}-{number}"])
    while True:
        answer = await client.online_features(f"set_{name}", {"rider": ["r"]}, as_of=at)
        if to_dict(answer.features)[f"of_{name}__n"] == [number]:
            return time.perf_counter() - started
        await asyncio.sleep(0.01)
