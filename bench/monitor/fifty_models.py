"""How far the consumer is behind a steady stream of 50 models, and how much memory and CPU it needs.

5,000 predictions a second in records of 25 rows, one model a record, over four partitions. The lag of a
moment is the time until all predictions that were sent before it are counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import asyncpg
import numpy as np
from aiokafka import AIOKafkaProducer

from bench import measure
from bench.common.cpu import peak_bytes, tree_seconds
from bench.monitor.stream_events import Stream
from bench.monitor.throughput import consumer, stack
from flywheel_common.kafka import topics
from flywheel_local.backends import Backends

MODELS, RATE, ROWS, SECONDS = 50, 5_000, 25, 30
WARM_SECONDS = 5
"""In these the versions are new: their references are fetched."""


def run(only: str) -> Iterable[measure.Row]:
    name = f"{MODELS} models at {RATE:,} predictions a second"
    if only not in name:
        return
    with stack("monitor-models") as backends, consumer(backends) as process:
        postgres = backends.postgres.process
        assert postgres is not None
        assert process.stdin is not None
        process.stdin.write("start\n")
        process.stdin.flush()
        before = tree_seconds(process.pid), tree_seconds(postgres.pid)
        lags = asyncio.run(_lags(backends))
        cpu = [tree_seconds(p) - b for p, b in zip((process.pid, postgres.pid), before, strict=True)]
        peak = peak_bytes(process.pid) / 2**20
    yield measure.row(
        f"{name}, lag p99", float(np.quantile(lags, 0.99)), "s", measure.at_most(2, of_value=True)
    )
    yield measure.row(f"{name}, peak memory", peak, "MiB", measure.at_most(500, of_value=True))
    for side, seconds in zip(("consumer", "PostgreSQL"), cpu, strict=True):
        yield measure.row(f"{name}, CPU of {side}", seconds / (RATE * SECONDS) * 1e6, "µs/event", None)


async def _lags(backends: Backends) -> list[float]:
    """Send the stream; seconds of lag of each record after the warm-up."""
    per_model = RATE * SECONDS // MODELS
    streams = [
        Stream(per_model, ROWS, hours=SECONDS / 3600, model=f"projects/bench/models/m{m:02d}", seed=m)
        for m in range(MODELS)
    ]
    # In turns, as the records of many models arrive.
    records = [r for turn in zip(*(s.records() for s in streams), strict=True) for r in turn]
    sent: list[float] = []
    counted: list[tuple[float, int]] = []
    producer = AIOKafkaProducer(bootstrap_servers=backends.kafka.bootstrap, linger_ms=5)
    conn = await asyncpg.connect(backends.postgres.dsn("monitor"))
    await producer.start()

    async def send() -> None:
        started = time.perf_counter()
        for number, (partition, value) in enumerate(records):
            due = started + number * ROWS / RATE
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await producer.send(topics.PREDICTION_LOGGED, value, partition=partition)
            sent.append(time.perf_counter())
        await producer.flush()

    async def watch() -> None:
        total = len(records) * ROWS
        while not counted or counted[-1][1] < total:
            found = await conn.fetchval("SELECT coalesce(sum(predictions), 0)::bigint FROM ingest_count")
            counted.append((time.perf_counter(), found))
            await asyncio.sleep(0.05)

    try:
        async with asyncio.timeout(4 * SECONDS), asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            tasks.create_task(watch())
    finally:
        await producer.stop()
        await conn.close()
    times, numbers = (np.array(column) for column in zip(*counted, strict=True))
    reached = times[np.searchsorted(numbers, (np.arange(len(sent)) + 1) * ROWS)]
    late = reached - np.array(sent)
    return late[WARM_SECONDS * RATE // ROWS :].tolist()
