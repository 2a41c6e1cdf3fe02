"""Materialization of fifty features: beside the same rows through a raw pipelined compare-and-set, and what they take in Redis."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import flywheel as fw
from bench import measure
from bench.feature import definitions as d
from bench.feature.room import Room
from flywheel_protos.feature.v1 import feature_pb2 as pb

ROWS = 100_000
ROUNDS = 5
PIPELINE = 2_000
COMPARE_AND_SET = """
local old = redis.call('GETRANGE', KEYS[1], 0, 16)
if #old == 17 then
  local event, created = struct.unpack('<i8i8', old, 2)
  local new_event, new_created = struct.unpack('<i8i8', ARGV[1], 2)
  if new_event < event or (new_event == event and new_created <= created) then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
"""What anybody would write for rows that must not go back in time; kept here, so that the service's own script is measured against it."""


def run(room: Room) -> Iterable[measure.Row]:
    room.write_table(d.WIDE_URI + "part.parquet", d.wide_rows(ROWS))
    redis = room.redis()
    ours(room)  # the first run leaves the rows that the other side writes
    keys = sorted(redis.scan_iter(match="default/fifty@*", count=10_000))
    values = [v for at in range(0, len(keys), PIPELINE) for v in redis.mget(keys[at : at + PIPELINE])]
    assert len(values) == ROWS
    yield _memory(redis, values)
    sha = redis.script_load(COMPARE_AND_SET)
    lifetime = str(int(timedelta(days=180).total_seconds() * 1000))

    def theirs() -> float:
        redis.flushall()
        began = time.perf_counter()
        for at in range(0, ROWS, PIPELINE):
            pipe = redis.pipeline(transaction=False)
            for key, value in zip(keys[at : at + PIPELINE], values[at : at + PIPELINE], strict=True):
                pipe.evalsha(sha, 1, key, value, lifetime)
            assert sum(pipe.execute()) == PIPELINE
        return ROWS / (time.perf_counter() - began)

    assert sha == hashlib.sha1(COMPARE_AND_SET.encode()).hexdigest()
    pairs = measure.alternating(ROUNDS, lambda: ours(room), theirs)
    yield measure.compared(
        "materialize 50 features", "rows/s", "the same rows packed, redis-py pipeline, Lua compare-and-set", pairs,
        measure.at_least(0.6),
    )  # fmt: skip


def ours(room: Room, rows: int = ROWS) -> float:
    """Rows a second of a MATERIALIZE job, from the call to its end, into an empty store."""
    room.redis().flushall()

    async def work(client: fw.Client) -> float:
        request = pb.MaterializeViewRequest(
            view=client.path("views", "fifty"), request_id=str(time.time_ns())
        )
        request.start_time.FromSeconds(1)
        began = time.perf_counter()
        job = (await client.feature.MaterializeView(request)).job
        async for answer in client.feature.WatchJob(pb.WatchJobRequest(name=job.name)):
            job = answer.job
        seconds = time.perf_counter() - began
        if job.progress.done != rows:
            raise RuntimeError(f"the job ended with {job}")
        return rows / seconds

    return room.ask(work)


def _memory(redis: Any, values: list[bytes]) -> measure.Row:
    packed = sum(map(len, values))
    used = redis.info("memory")["used_memory"]
    redis.flushall()
    used -= redis.info("memory")["used_memory"]
    return measure.row(
        "Redis memory of 50 features, keys and TTL included", used / ROWS, "bytes a row", measure.at_most(1.8), "packed value",
        packed / ROWS, used / packed,
    )  # fmt: skip
