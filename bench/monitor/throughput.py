"""How many predictions with 20 features the consumer counts per second of CPU.

A backlog waits in Kafka; one consumer process reads it: decoding, repeats, index of labels, panes, hours and
days, archive queue, position, in transactions of PostgreSQL. CPU is that of the consumer and of PostgreSQL
with all its processes, from the first record to the last commit; Kafka's is left out.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from bench import measure
from bench.common.cpu import peak_bytes, tree_seconds
from bench.monitor.stream_events import Stream, send
from flywheel_common.kafka import topics
from flywheel_common.kafka.client import ensure_topics
from flywheel_local.backends import Backends
from flywheel_local.layout import LOCAL

EVENTS = 1_000_000
SIZES = ((500, 250_000), (25, 120_000), (1, 120_000))
"""(rows per record, least events per second of CPU)"""
LONGEST_SECONDS = 240.0


def run(only: str) -> Iterable[measure.Row]:
    for rows, least in SIZES:
        name = f"predictions counted per CPU-second, {rows} rows a record ({EVENTS:,} events, 20 features)"
        if only not in name:
            continue
        with stack("monitor-throughput") as backends:
            found = measured(backends, Stream(EVENTS, rows))
        yield measure.row(name, found.per_cpu_second, "1/s", measure.at_least(least, of_value=True))
        detail = f", {rows} rows a record"
        yield measure.row("  CPU of the consumer" + detail, found.consumer_us, "µs/event", None)
        yield measure.row("  CPU of PostgreSQL" + detail, found.postgres_us, "µs/event", None)
        yield measure.row("  events per second" + detail, found.events / found.seconds, "1/s", None)
        yield measure.row("  peak memory of the consumer" + detail, found.peak_bytes / 2**20, "MiB", None)


@contextmanager
def stack(name: str, kinds: Iterable[str] = ("postgres", "kafka")) -> Iterator[Backends]:
    """New backends with the monitor's database and topics."""
    folder = LOCAL / "bench" / f"{name}-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        with Backends(set(kinds), directory=folder / "data", log=folder / "log") as backends:
            backends.postgres.create_databases(["monitor"])
            if "kafka" in kinds:
                asyncio.run(ensure_topics(backends.kafka.bootstrap, topics.STANDARD))
            yield backends
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Found:
    def __init__(self, events: int, consumer: float, postgres: float, seconds: float, peak: int) -> None:
        self.events, self.seconds, self.peak_bytes = events, seconds, peak
        self.consumer_us, self.postgres_us = consumer / events * 1e6, postgres / events * 1e6

    @property
    def per_cpu_second(self) -> float:
        return 1e6 / (self.consumer_us + self.postgres_us)


@contextmanager
def consumer(backends: Backends, group: str = "bench") -> Iterator[subprocess.Popen[str]]:
    """A consumer process that waits for a line."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "bench.monitor.consumer_process",
            backends.kafka.bootstrap,
            backends.postgres.dsn("monitor"),
            group,
        ],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if "ready\n" not in process.stdout:
            raise RuntimeError("the consumer did not start")
        yield process
        process.stdin.write("stop\n")
        process.stdin.flush()
        process.wait(30)
    finally:
        process.kill()
        process.wait()


def measured(backends: Backends, stream: Stream) -> Found:
    """Count a stream as a backlog."""
    asyncio.run(send(backends.kafka.bootstrap, stream))
    postgres = backends.postgres.process
    assert postgres is not None
    with consumer(backends) as process:
        assert process.stdin is not None
        before = tree_seconds(process.pid), tree_seconds(postgres.pid)
        started = time.perf_counter()
        process.stdin.write("start\n")
        process.stdin.flush()
        asyncio.run(_counted(backends.postgres.dsn("monitor"), stream.events))
        seconds = time.perf_counter() - started
        after = tree_seconds(process.pid), tree_seconds(postgres.pid)
        peak = peak_bytes(process.pid)
    return Found(stream.events, after[0] - before[0], after[1] - before[1], seconds, peak)


async def _counted(dsn: str, events: int) -> None:
    """Wait until so many predictions are counted."""
    conn = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            while (await conn.fetchval("SELECT coalesce(sum(predictions), 0) FROM ingest_count")) < events:
                await asyncio.sleep(0.1)
    finally:
        await conn.close()
