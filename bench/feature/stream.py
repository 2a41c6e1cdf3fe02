"""Stream materialization: how fast one worker process applies a backlog to tiles and the archive."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from aiokafka import AIOKafkaProducer

import flywheel as fw
from bench import measure
from bench.feature import definitions as d
from bench.feature.deployment import FeatureDeployment
from flywheel_common.kafka.envelope import build_event
from flywheel_common.kafka.topics import feature_source
from flywheel_common.value import from_python
from flywheel_feature.store.redis.online_store import position_key
from flywheel_protos.events.v1.source_pb2 import SourceEvent

EVENTS = 200_000
SINGLE_EVENTS = 60_000
PUSHED_TOGETHER = 200
ENTITIES = 2_000
ROUNDS = 3
Rows = dict[str, list[Any]]
Send = Callable[[FeatureDeployment, Rows, int], int]
SPAN = timedelta(hours=20)


def run(deployment: FeatureDeployment) -> Iterable[measure.Row]:
    what = f"stream materialization, two windows, {ENTITIES:,} entities"
    for number, (how, send, events) in enumerate(
        (
            (f"pushed {PUSHED_TOGETHER} together", _pushed, EVENTS),
            ("one event a record", _produced, SINGLE_EVENTS),
        )
    ):
        rates = [_once(deployment, number * ROUNDS + i, send, events) for i in range(1, ROUNDS + 1)]
        target = measure.at_least(20_000, of_value=True)
        yield measure.row(f"{what}, {how}", statistics.median(rates), "events/s per process", target)


def _once(deployment: FeatureDeployment, number: int, send: Send, events: int) -> float:
    """Events per second between the first and the last applied event of a backlog."""
    rows = d.ride_rows(number, events, ENTITIES, d.NOW - SPAN + number * timedelta(seconds=1), SPAN / events)
    end = send(deployment, rows, number)
    redis = deployment.redis()
    key = position_key("default", "rides")

    def applied() -> int:
        positions = (v for field, v in redis.hgetall(key).items() if b"/" in field)
        return min((int(v.split(b":")[0]) for v in positions), default=0)

    start = applied()
    worker = deployment.start_worker()
    started, first = 0.0, start
    deadline = time.monotonic() + 120
    try:
        while (now := applied()) < end:
            if now > first and not started:
                started, first = time.perf_counter(), now
            if time.monotonic() > deadline:
                raise RuntimeError(f"the worker applied {now} of {end} records: {worker.log}")
            time.sleep(0.002)
        seconds = time.perf_counter() - started
    finally:
        worker.stop()
    return (end - first) / (end - start) * events / seconds


def _pushed(deployment: FeatureDeployment, rows: Rows, _: int) -> int:
    """Send rows with PushFeatures; returns the offset after the last record."""
    parts = [
        {name: column[i : i + PUSHED_TOGETHER] for name, column in rows.items()}
        for i in range(0, len(rows["at"]), PUSHED_TOGETHER)
    ]

    async def push(client: fw.Client) -> int:
        end = 0
        for at in range(0, len(parts), 40):
            pushes = (client.push("rides", p, d.EVENT_SCHEMA) for p in parts[at : at + 40])
            for pushed in await asyncio.gather(*pushes):
                end = max(end, *(o.next_offset for o in pushed.offsets))
        return end

    return deployment.call(push)


def _produced(deployment: FeatureDeployment, rows: Rows, number: int) -> int:
    """Send one Kafka record per event, as external producers do; returns the offset after the last record."""

    async def produce() -> int:
        producer = AIOKafkaProducer(bootstrap_servers=deployment.backends.kafka.bootstrap, linger_ms=5)
        await producer.start()
        try:
            last: Any = None
            for i, values in enumerate(zip(*rows.values(), strict=True)):
                fields = {name: from_python(v) for name, v in zip(rows, values, strict=True)}
                event = build_event(
                    SourceEvent(source="projects/default/sources/rides", fields=fields),
                    source="bench",
                    key="0",
                    event_time=values[1],
                    event_id=f"single-{number}-{i}",
                )
                last = await producer.send(feature_source("rides"), event.SerializeToString(), partition=0)
            return int((await last).offset) + 1
        finally:
            await producer.stop()

    return asyncio.run(produce())
