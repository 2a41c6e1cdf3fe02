"""GetOnlineFeatures compared with its bounds: an echo server with the same interceptors, and Redis alone."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterable
from datetime import timedelta

import numpy as np

import flywheel as fw
from bench import echo, h2load, measure
from bench.feature import definitions as d
from bench.feature.deployment import FeatureDeployment
from flywheel.tables import to_table
from flywheel_local import ports
from flywheel_protos.feature.v1 import feature_pb2 as pb

METHOD = "/flywheel.feature.v1.FeatureService/GetOnlineFeatures"
ROUNDS = 7
THROUGHPUT_ROUNDS = 15
"""Single rounds of 100 entities differ by a fifth."""
CALLS = 6_000
TAIL_CALLS = 20_000
"""More calls for the p99, which four slow batches would decide otherwise."""
STORED = 2_000


class Request:
    """A serialized request, and its correct answer."""

    def __init__(self, answer: bytes, request: pb.GetOnlineFeaturesRequest) -> None:
        self.message = request.SerializeToString()
        self.answer = answer

    def load(self, address: str, method: str = METHOD, *, concurrent: int, calls: int) -> h2load.Load:
        """Send it `calls` times; every answer must have the size of the correct one."""
        return h2load.load(
            address, method, self.message, len(self.answer), concurrent=concurrent, calls=calls
        )


def run(deployment: FeatureDeployment) -> Iterable[measure.Row]:
    h2load.require()
    by_name = deployment.call(requests)
    answers = []
    for name, request in by_name.items():
        path = deployment.folder / f"{name}.answer"
        path.write_bytes(request.answer)
        answers.append(f"{name}={path}")
    address = f"127.0.0.1:{ports.free(['echo'])['echo']}"
    deployment.start("echo", ["-m", "bench.echo", address, *answers], address=address)

    def ours(name: str, concurrent: int, calls: int) -> h2load.Load:
        return by_name[name].load(deployment.address, concurrent=concurrent, calls=calls)

    def theirs(name: str, concurrent: int, calls: int) -> h2load.Load:
        method = f"/{echo.SERVICE}/{name}"
        return by_name[name].load(address, method, concurrent=concurrent, calls=calls)

    for name in by_name:  # warm up
        ours(name, 16, 1000)
        theirs(name, 16, 1000)
    yield from _throughput(ours, theirs)
    yield from _latency(ours, theirs)
    yield _beside_redis(deployment, ours)


def _throughput(ours, theirs) -> Iterable[measure.Row]:  # type: ignore[no-untyped-def]
    for entities, bound in ((1, 0.7), (100, 0.5)):
        name = f"fifty_{entities}"
        pairs = measure.alternating(
            THROUGHPUT_ROUNDS,
            lambda name=name: ours(name, 16, CALLS).per_second,
            lambda name=name: theirs(name, 16, CALLS).per_second,
        )
        label = "entity" if entities == 1 else "entities"
        yield measure.compared(
            f"GetOnlineFeatures, 50 features, {entities} {label}, 16 concurrent",
            "requests/s",
            "echo of equal bytes, same interceptors",
            pairs,
            measure.at_least(bound),
        )


def _latency(ours, theirs) -> Iterable[measure.Row]:  # type: ignore[no-untyped-def]
    at_4 = [(ours("mixed_1", 4, 3000), theirs("mixed_1", 4, 3000)) for _ in range(ROUNDS)]
    at_16 = [(ours("mixed_1", 16, TAIL_CALLS), theirs("mixed_1", 16, TAIL_CALLS)) for _ in range(ROUNDS)]
    what = "three views and an on-demand view, 50 features"
    p99_at_4 = [(a.p99, b.p99) for a, b in at_4]
    yield measure.compared(
        f"p99 at 4 concurrent, {what}", "ms", "echo", p99_at_4, measure.at_most(5.0, of_value=True)
    )
    p99_at_16 = [(a.p99, b.p99) for a, b in at_16]
    yield measure.compared(f"p99 at 16 concurrent, {what}", "ms", "echo", p99_at_16, measure.at_most(1.5))
    rates = [(a.per_second, b.per_second) for a, b in at_16]
    yield measure.compared(f"requests/s at 16 concurrent, {what}", "requests/s", "echo", rates, None)


def _beside_redis(deployment: FeatureDeployment, ours) -> measure.Row:  # type: ignore[no-untyped-def]
    redis = deployment.redis()
    key = next(iter(redis.scan_iter(match=f"default/fifty@*{d.drivers(1)[0]}*", count=10_000)))

    def mget() -> float:
        found = []
        for _ in range(2000):
            started = time.perf_counter()
            (value,) = redis.mget([key])
            found.append(time.perf_counter() - started)
            assert value
        return float(np.percentile(found, 50)) * 1e3

    pairs = measure.alternating(ROUNDS, lambda: ours("fifty_1", 1, 2000).p50, mget)
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    return measure.Row(
        name="p50 of 1 entity, 1 concurrent",
        value=a,
        unit="ms",
        against="redis-py MGET of the same bytes",
        against_value=b,
        ratio=a / b,
        target="≤ + 1 ms",
        holds=a - b <= 1.0,
    )


async def requests(
    client: fw.Client, names: Iterable[str] = ("fifty_1", "fifty_100", "mixed_1")
) -> dict[str, Request]:
    """The requests with these names, and their answers."""
    found = {}
    ids = d.drivers(STORED)
    for name, feature_set, entities, fields in (
        ("fifty_1", "fifty_set", ids[:1], None),
        ("fifty_100", "fifty_set", ids[:100], None),
        ("mixed_1", "mixed_set", ids[:1], {"price": [12.5]}),
    ):
        if name not in names:
            continue
        request = pb.GetOnlineFeaturesRequest(
            feature_set=client.path("featureSets", feature_set),
            entities=to_table({"driver": entities}, {"driver": fw.STRING}),
        )
        if fields is not None:
            request.request_fields.CopyFrom(to_table(fields, {"price": fw.FLOAT64}))
        answer = await client.feature.GetOnlineFeatures(request)
        if set(answer.statuses) != {1}:
            raise RuntimeError(f"{name}: not every value is PRESENT ({sorted(set(answer.statuses))})")
        found[name] = Request(answer.SerializeToString(), request)
    return found


def fill(deployment: FeatureDeployment) -> None:
    """Apply the definitions, materialize the rows of all drivers and push rides of each driver."""
    deployment.write_table(d.WIDE_URI + "part.parquet", d.wide_rows(STORED))
    worker = deployment.start_worker()

    async def work(client: fw.Client) -> None:
        await client.apply(d.definitions())
        for view in ("fifty", "first", "second"):
            await client.materialize(view)
        events = d.ride_rows(0, 20 * STORED, STORED, d.NOW - timedelta(hours=20), timedelta(seconds=1.7))
        await client.push("rides", events, d.EVENT_SCHEMA)
        # Every driver also has a ride in the last hour.
        recent = d.ride_rows(1, STORED, STORED, d.NOW, timedelta(0)) | {"driver": d.drivers(STORED)}
        pushed = await client.push("rides", recent, d.EVENT_SCHEMA)
        await client.wait_applied(pushed.offsets, within=60)
        await asyncio.sleep(0.5)

    deployment.call(work)
    worker.stop()
