"""Reads of a version, registrations, and searches over 10,000 versions, against asyncpg alone."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta

import asyncpg

import flywheel as fw
from bench import measure
from bench.common.deployment import Deployment
from flywheel_common.postgres.pool import create_pool
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, search_pb2
from flywheel_registry.api.convert_events import to_event
from flywheel_registry.models.model import Model
from flywheel_registry.models.search import MetricBounds, VersionQuery
from flywheel_registry.models.version import Artifact, ModelVersion
from flywheel_registry.store.postgres.statements import SELECT_VERSION
from flywheel_registry.store.postgres.store import PostgresStore

MODELS, VERSIONS = 20, 500
SECONDS = 3.0
ROUNDS = 4
SEARCHES = 200
NAME = "projects/default/models/m0"
PAGE = 10
Call = Callable[[], Awaitable[object]]


def run(deployment: Deployment, only: str) -> Iterator[measure.Row]:
    """Yield the rows whose names contain `only`."""
    reads = {clients: f"read a version, {clients} client{'s' if clients > 1 else ''}" for clients in (1, 16)}
    search = "search 10,000 versions by metric, p50"
    if not any(only in name for name in (*reads.values(), "create a version, 1 client", search)):
        return
    asyncio.run(_fill(deployment.dsn))
    for clients, name in reads.items():
        if only in name:
            pairs = measure.alternating(
                ROUNDS,
                lambda n=clients: asyncio.run(_reads(deployment.address, n)),
                lambda n=clients: asyncio.run(_rows(deployment.dsn, n)),
            )
            yield measure.compared(name, "requests/s", "the row by asyncpg", pairs, None)
    if only in "create a version, 1 client":
        rate = asyncio.run(creations(deployment.address, "projects/default/models/m1"))
        yield measure.row("create a version, 1 client", rate, "requests/s", None)
    if only in search:
        pairs = measure.alternating(
            ROUNDS,
            lambda: asyncio.run(_searches(deployment.address)),
            lambda: asyncio.run(_queries(deployment.dsn)),
        )
        yield measure.compared(search, "ms", "the statement by asyncpg", pairs, None)


async def _fill(dsn: str) -> None:
    """Store MODELS × VERSIONS versions with one metric that orders them."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    async with create_pool(dsn) as pool:
        store = PostgresStore(pool, to_event)
        for i in range(MODELS):
            async with store.transaction() as records:
                name = f"projects/default/models/m{i}"
                await records.add_model(Model(name, created_at=at))
                for j in range(VERSIONS):
                    await records.add_version(
                        ModelVersion(
                            name,
                            metrics={"auc": (i * VERSIONS + j * 7919) % 10_007 / 10_007, "rows": 1000.0},
                            tags={"team": "ab"[j % 2]},
                            artifacts=(Artifact("model.onnx", 1, f"{i:032x}{j:032x}"),),
                            registered_at=at + timedelta(seconds=j),
                        )
                    )
        await pool.execute("ANALYZE")


async def _rate(call: Call, clients: int) -> float:
    """Calls per second of `clients` callers."""
    counts = [0] * clients
    end = time.perf_counter() + SECONDS

    async def loop(place: int) -> None:
        while time.perf_counter() < end:
            await call()
            counts[place] += 1

    await asyncio.gather(*map(loop, range(clients)))
    return sum(counts) / SECONDS


async def _reads(address: str, clients: int) -> float:
    request = registry_pb2.GetModelVersionRequest(name=f"{NAME}/versions/1")
    async with fw.Client(registry=address) as client:
        return await _rate(lambda: client.registry.GetModelVersion(request), clients)


async def _rows(dsn: str, clients: int) -> float:
    async with asyncpg.create_pool(dsn, min_size=clients, max_size=clients) as pool:
        return await _rate(lambda: pool.fetchrow(SELECT_VERSION, NAME, 1), clients)


async def creations(address: str, model: str) -> float:
    """Versions per second that one client creates of a model."""
    declared = model_pb2.ModelVersion(metrics={"auc": 0.5})
    declared.artifacts.add(name="model.onnx", size_bytes=1, sha256="ab" * 32)
    request = registry_pb2.CreateModelVersionRequest(parent=model, model_version=declared)
    async with fw.Client(registry=address) as client:
        return await _rate(lambda: client.registry.CreateModelVersion(request), 1)


async def p50(call: Call) -> float:
    """Median of SEARCHES calls, in ms."""
    times = []
    for _ in range(SEARCHES):
        start = time.perf_counter()
        await call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


async def _searches(address: str) -> float:
    request = search_pb2.SearchModelVersionsRequest(
        parent="projects/default",
        metrics=[search_pb2.MetricBounds(metric="auc", max=0.9)],
        tags={"team": "a"},
        order_by_metric="auc",
        descending=True,
        page_size=PAGE,
    )
    async with fw.Client(registry=address) as client:
        found = await client.registry.SearchModelVersions(request)
        assert len(found.model_versions) == PAGE
        return await p50(lambda: client.registry.SearchModelVersions(request))


async def _queries(dsn: str) -> float:
    query = VersionQuery(
        "default",
        metrics=(MetricBounds("auc", high=0.9),),
        tags={"team": "a"},
        order_by="auc",
        descending=True,
    )
    async with create_pool(dsn) as pool, PostgresStore(pool, to_event).reading() as records:
        return await p50(lambda: records.search_versions(query, PAGE))
