"""Stream materialization: how fast one worker process takes a backlog of events into tiles and the archive."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterable
from datetime import timedelta

import flywheel as fw
from bench import measure
from bench.feature import definitions as d
from bench.feature.room import Room
from flywheel_feature.store.online_store import position_key

EVENTS = 200_000
PUSHED_TOGETHER = 200
ENTITIES = 2_000
ROUNDS = 3
SPAN = timedelta(hours=20)


def run(room: Room) -> Iterable[measure.Row]:
    rates = [_once(room, number) for number in range(1, ROUNDS + 1)]
    yield measure.row(
        f"stream materialization, two windows, {ENTITIES:,} entities",
        statistics.median(rates), "events/s per process", measure.at_least(20_000, of_value=True),
    )  # fmt: skip


def _once(room: Room, number: int) -> float:
    """Events a second between the first and the last effect of a backlog."""

    step = SPAN / EVENTS
    start = d.NOW - SPAN + number * timedelta(seconds=1)

    async def push(client: fw.Client) -> int:
        end, together = 0, 40 * PUSHED_TOGETHER
        for at in range(0, EVENTS, together):
            many = d.ride_rows(number * EVENTS + at, together, ENTITIES, start + at * step, step)
            parts = [
                {name: column[i : i + PUSHED_TOGETHER] for name, column in many.items()}
                for i in range(0, together, PUSHED_TOGETHER)
            ]
            for pushed in await asyncio.gather(*(client.push("rides", p, d.EVENT_SCHEMA) for p in parts)):
                end = max(end, *(o.next_offset for o in pushed.offsets))
        return end

    end = room.ask(push)
    redis = room.redis()
    key = position_key("default", "rides")

    def applied() -> int:
        return min((int(v.split(b":")[0]) for v in redis.hvals(key)), default=0)

    start = applied()
    worker = room.start_worker()
    began, first = 0.0, start
    deadline = time.monotonic() + 120
    try:
        while (now := applied()) < end:
            if now > first and not began:
                began, first = time.perf_counter(), now
            if time.monotonic() > deadline:
                raise RuntimeError(f"the worker applied {now} of {end} records: {worker.log}")
            time.sleep(0.002)
        seconds = time.perf_counter() - began
    finally:
        worker.stop()
    return (end - first) / (end - start) * EVENTS / seconds
