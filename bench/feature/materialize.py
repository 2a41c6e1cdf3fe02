"""Materialization of fifty features, compared with a pipelined compare-and-set; Redis memory of the rows."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import flywheel as fw
from bench import measure
from bench.feature import definitions as d
from bench.feature.deployment import FeatureDeployment
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
"""A simple script that keeps the newest row; it does not change when the service's script does."""


def run(deployment: FeatureDeployment) -> Iterable[measure.Row]:
    deployment.write_table(d.WIDE_URI + "part.parquet", d.wide_rows(ROWS))
    redis = deployment.redis()
    ours(deployment)  # writes the rows that the other side writes again
    keys = sorted(redis.scan_iter(match="default/fifty@*", count=10_000))
    values = [v for at in range(0, len(keys), PIPELINE) for v in redis.mget(keys[at : at + PIPELINE])]
    assert len(values) == ROWS
    yield _memory(redis, values)
    sha = redis.script_load(COMPARE_AND_SET)
    lifetime = str(int(timedelta(days=180).total_seconds() * 1000))

    def theirs() -> float:
        redis.flushall()
        started = time.perf_counter()
        for at in range(0, ROWS, PIPELINE):
            pipe = redis.pipeline(transaction=False)
            for key, value in zip(keys[at : at + PIPELINE], values[at : at + PIPELINE], strict=True):
                pipe.evalsha(sha, 1, key, value, lifetime)
            assert sum(pipe.execute()) == PIPELINE
        return ROWS / (time.perf_counter() - started)

    assert sha == hashlib.sha1(COMPARE_AND_SET.encode()).hexdigest()
    pairs = measure.alternating(ROUNDS, lambda: ours(deployment), theirs)
    yield measure.compared(
        "materialize 50 features",
        "rows/s",
        "the same rows packed, redis-py pipeline, Lua compare-and-set",
        pairs,
        measure.at_least(0.6),
    )


def ours(deployment: FeatureDeployment, rows: int = ROWS) -> float:
    """Rows per second of a MATERIALIZE job into an empty store, from the call to the end of the job."""
    deployment.redis().flushall()

    async def work(client: fw.Client) -> float:
        request = pb.MaterializeViewRequest(
            view=client.path("views", "fifty"), request_id=str(time.time_ns())
        )
        request.start_time.FromSeconds(1)
        started = time.perf_counter()
        job = (await client.feature.MaterializeView(request)).job
        async for answer in client.feature.WatchJob(pb.WatchJobRequest(name=job.name)):
            job = answer.job
        seconds = time.perf_counter() - started
        if job.progress.done != rows:
            raise RuntimeError(f"the job ended with {job}")
        return rows / seconds

    return deployment.call(work)


def _memory(redis: Any, values: list[bytes]) -> measure.Row:
    packed = sum(map(len, values))
    used = redis.info("memory")["used_memory"]
    redis.flushall()
    used -= redis.info("memory")["used_memory"]
    return measure.row(
        "Redis memory of 50 features, keys and TTL included",
        used / ROWS,
        "bytes a row",
        measure.at_most(1.8),
        "packed value",
        packed / ROWS,
        used / packed,
    )
