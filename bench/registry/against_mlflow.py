"""The registry beside MLflow's, with the same 10,000 versions, PostgreSQL and S3 behind both.

h2load makes the reads on both sides, so that no Python client is the bottleneck. MLflow's versions have no
metrics: its search by metric is one for runs and one for the versions of these runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import flywheel as fw
from bench import h2load, measure
from bench.common.deployment import Deployment
from bench.peers import mlflow_rows
from bench.peers.mlflow_server import MlflowServer, require
from bench.registry import catalog, uploads
from flywheel_common.postgres.pool import create_pool
from flywheel_protos.registry.v1 import registry_pb2, search_pb2
from flywheel_registry.api.convert_events import to_event
from flywheel_registry.models.model import Model
from flywheel_registry.models.version import Artifact, ModelVersion, Stage
from flywheel_registry.store.postgres.store import PostgresStore

MODELS, VERSIONS = 20, 500
PROJECT = "mlflow"
ROUNDS = 2
SEARCHES = 30
PAGE = 10
READ = "/flywheel.registry.v1.RegistryService/ListModelVersions"
PEER_READ = "/api/2.0/mlflow/registered-models/alias?name=m7&alias=champion"
PEER = "MLflow server"
NAMES = {
    1: "read the production version, 1 client",
    16: "read the production version, 16 clients",
}
CREATE = "create a version, beside MLflow"
SEARCH = "search 10,000 versions by metric, beside MLflow"
TAGS = "search 10,000 versions by tag, beside MLflow"
UPLOAD = "upload a file of 128 MiB, beside MLflow"


def run(deployment: Deployment, only: str) -> Iterator[measure.Row]:
    """Yield the rows whose names contain `only`; none without MLflow."""
    if not any(only in name for name in (*NAMES.values(), CREATE, SEARCH, TAGS, UPLOAD)):
        return
    try:
        require()
    except h2load.ToolMissing as missing:
        measure.console.print(f"  not compared with MLflow: {missing}")
        return
    backends = deployment.backends
    with MlflowServer(backends.postgres, backends.s3, deployment.folder) as server:
        if any(only in name for name in (*NAMES.values(), CREATE, SEARCH, TAGS)):
            asyncio.run(_fill(deployment.dsn))
            asyncio.run(mlflow_rows.write_runs(server))
            asyncio.run(mlflow_rows.write_versions(server, MODELS, VERSIONS))
        yield from _rows(deployment, server, only)


def _rows(deployment: Deployment, server: MlflowServer, only: str) -> Iterator[measure.Row]:
    for clients, bound in ((1, 10), (16, 15)):
        if only in NAMES[clients]:
            try:
                h2load.require()
            except h2load.ToolMissing as missing:
                measure.console.print(f"  {NAMES[clients]}: {missing}")
                continue
            yield _compared(
                NAMES[clients],
                "requests/s",
                [(_reads(deployment.address, clients), _peer_reads(server, clients)) for _ in range(ROUNDS)],
                bound,
            )
    if only in CREATE:
        pairs = measure.alternating(
            ROUNDS,
            lambda: asyncio.run(catalog.creations(deployment.address, f"projects/{PROJECT}/models/m1")),
            lambda: float(server.client("create_versions", model="m1", during=catalog.SECONDS)),
        )
        yield _compared(CREATE, "versions/s", pairs, 10)
    if only in SEARCH:
        pairs = measure.alternating(
            ROUNDS, lambda: asyncio.run(_search(deployment.address)), lambda: _peer_search(server)
        )
        yield _compared(SEARCH, "searches/s", pairs, 50)
    if only in TAGS:
        pairs = measure.alternating(
            ROUNDS, lambda: asyncio.run(_search_tag(deployment.address)), lambda: _peer_search_tag(server)
        )
        yield _compared(TAGS, "searches/s", pairs, None)
    if only in UPLOAD:
        pairs = measure.alternating(
            ROUNDS,
            lambda: asyncio.run(uploads.upload_by_sdk(deployment.address)),
            lambda: float(server.client("upload", size=uploads.SIZE)) / uploads.MIB,
        )
        yield _compared(UPLOAD, "MiB/s", pairs, 2)
        pairs = [(asyncio.run(uploads.bare(deployment.s3)), peer) for _, peer in pairs]
        yield _compared("  the most that the object store takes", "MiB/s", pairs, None)


def _compared(name: str, unit: str, pairs: list[tuple[float, float]], bound: float | None) -> measure.Row:
    target = None if bound is None else measure.at_least(bound)
    return measure.compared(name, unit, PEER, pairs, target)


async def _fill(dsn: str) -> None:
    """Store the versions of mlflow_rows; the last one of each model is in production."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    rows = mlflow_rows.rows()
    async with create_pool(dsn) as pool:
        store = PostgresStore(pool, to_event)
        for i in range(MODELS):
            async with store.transaction() as records:
                name = f"projects/{PROJECT}/models/m{i}"
                await records.add_model(Model(name, created_at=at))
                for j in range(VERSIONS):
                    row = next(rows)
                    last = j + 1 == VERSIONS
                    await records.add_version(
                        ModelVersion(
                            name,
                            metrics=row.metrics,
                            tags=row.tags,
                            training_run=f"projects/{PROJECT}/runs/{row.uuid}",
                            artifacts=(Artifact("model.onnx", 1, f"{i:032x}{j:032x}"),),
                            stage=Stage.PRODUCTION if last else Stage.NONE,
                            registered_at=at + timedelta(seconds=j),
                        )
                    )
        await pool.execute("ANALYZE")


def _reads(address: str, clients: int) -> float:
    request = registry_pb2.ListModelVersionsRequest(
        parent=f"projects/{PROJECT}/models/m7", filter="stage=PRODUCTION", page_size=1
    )
    asyncio.run(_check_read(address, request))
    calls = 2_000 if clients == 1 else 10_000
    return h2load.load(
        address, READ, request.SerializeToString(), None, concurrent=clients, calls=calls
    ).per_second


async def _check_read(address: str, request: registry_pb2.ListModelVersionsRequest) -> None:
    async with fw.Client(registry=address) as client:
        (found,) = (await client.registry.ListModelVersions(request)).model_versions
        assert f"{request.parent}/versions/{VERSIONS}" == found.name


def _peer_reads(server: MlflowServer, clients: int) -> float:
    calls = 200 if clients == 1 else 600
    return h2load.load_http(server.address, PEER_READ, None, concurrent=clients, calls=calls).per_second


def _expected() -> list[str]:
    found = [
        (row.metrics["auc"], f"m{place // VERSIONS}/{place % VERSIONS + 1}")
        for place, row in enumerate(mlflow_rows.rows())
        if row.metrics["auc"] < 0.9 and row.tags["team"] == "a"
    ]
    return [name for _, name in sorted(found, reverse=True)[:PAGE]]


async def _search(address: str) -> float:
    request = search_pb2.SearchModelVersionsRequest(
        parent=f"projects/{PROJECT}",
        metrics=[search_pb2.MetricBounds(metric="auc", max=0.9)],
        tags={"team": "a"},
        order_by_metric="auc",
        descending=True,
        page_size=PAGE,
    )
    async with fw.Client(registry=address) as client:
        found = (await client.registry.SearchModelVersions(request)).model_versions
        names = [version.name.split("/models/")[1].replace("/versions/", "/") for version in found]
        assert _expected() == names
        return 1000 / await catalog.p50(lambda: client.registry.SearchModelVersions(request))


def _peer_search(server: MlflowServer) -> float:
    answer = server.client(
        "search_versions",
        where="metrics.auc < 0.9 and tags.team = 'a'",
        order="metrics.auc DESC",
        limit=PAGE,
        repeat=SEARCHES,
    )
    assert _expected() == answer["found"]
    return 1000 / float(answer["ms"])


async def _search_tag(address: str) -> float:
    request = search_pb2.SearchModelVersionsRequest(
        parent=f"projects/{PROJECT}", tags={"team": "a"}, page_size=PAGE
    )
    async with fw.Client(registry=address) as client:
        assert len((await client.registry.SearchModelVersions(request)).model_versions) == PAGE
        return 1000 / await catalog.p50(lambda: client.registry.SearchModelVersions(request))


def _peer_search_tag(server: MlflowServer) -> float:
    answer = server.client("search_by_tag", where="tags.team = 'a'", limit=PAGE, repeat=SEARCHES)
    assert answer["found"] == PAGE
    return 1000 / float(answer["ms"])
