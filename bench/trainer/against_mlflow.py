"""Logging and searching beside an MLflow server, with PostgreSQL behind both.

MLflow's clients log as its users do, one `mlflow.log_metric` per point, and for information in its fastest
form: one `log_batch` of 1,000. 16 clients are threads of four processes, on both sides.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterable, Iterator

import asyncpg

import flywheel as fw
from bench import measure
from bench.common.deployment import QUIET, Deployment
from bench.common.peer import output_of
from bench.h2load import ToolMissing
from bench.peers import mlflow_rows
from bench.peers.mlflow_server import MlflowServer, require
from flywheel_protos.trainer.v1 import trainer_pb2

POINTS = 1_000
PEER_POINTS = {1: 200, 16: 20}
"""Points per client of MLflow's log_metric, whose rate does not depend on their number."""
ROUNDS = 2
SEARCHES = 50
PAGE = 10
PEER = "MLflow server"


def run(only: str) -> Iterable[measure.Row]:
    """The rows whose name contains `only`; none without MLflow."""
    names = {
        clients: f"log 1,000 metrics, {clients} client{'s' if clients > 1 else ''}" for clients in (1, 16)
    }
    search = "search 10,000 runs by param and metric, p50"
    if not any(only in name for name in (*names.values(), search)):
        return
    try:
        require()
    except ToolMissing as missing:
        measure.console.print(f"  not compared with MLflow: {missing}")
        return
    with Deployment("trainer", **QUIET) as deployment, peer_of(deployment) as server:
        for clients, name in names.items():
            if only in name:
                yield from _logging(deployment.address, server, clients, name)
        if only in search:
            yield _searching(deployment, server, search)


def peer_of(deployment: Deployment) -> MlflowServer:
    """An MLflow server on the backends of a deployment."""
    return MlflowServer(deployment.backends.postgres, deployment.backends.s3, deployment.folder)


def _logging(address: str, server: MlflowServer, clients: int, name: str) -> Iterator[measure.Row]:
    pairs = measure.alternating(
        ROUNDS, lambda: _log(address, clients), lambda: _peer_log(server, clients, batched=False)
    )
    target = measure.at_least(15 if clients == 1 else 12)
    yield measure.compared(name, "metrics/s", f"{PEER}, log_metric", pairs, target)
    pairs = measure.alternating(
        ROUNDS, lambda: _log(address, clients), lambda: _peer_log(server, clients, batched=True)
    )
    yield measure.compared(f"{name}, beside one batch", "metrics/s", f"{PEER}, log_batch", pairs, None)


def _log(address: str, clients: int) -> float:
    command = [sys.executable, "-m", "bench.trainer.tracking_load", address, str(clients), str(POINTS)]
    return float(output_of("bench.trainer.tracking_load", command, 200))


def _peer_log(server: MlflowServer, clients: int, *, batched: bool) -> float:
    points = POINTS if batched else PEER_POINTS[clients]
    return float(server.client("log", clients=clients, points=points, batched=batched))


def _searching(deployment: Deployment, server: MlflowServer, name: str) -> measure.Row:
    asyncio.run(_fill(deployment.dsn))
    asyncio.run(mlflow_rows.write_runs(server))
    pairs = measure.alternating(
        ROUNDS, lambda: asyncio.run(_search(deployment.address)), lambda: _peer_search(server)
    )
    rates = [(1000 / ours, 1000 / theirs) for ours, theirs in pairs]
    faster = measure.compared(name, "searches/s", PEER, rates, measure.at_least(50))
    for ours, theirs in pairs:
        measure.console.print(f"  p50 {ours:.2f} ms beside {theirs:.1f} ms")
    return faster


_FILL = """
WITH experiment AS (
    INSERT INTO experiment SELECT 'default', $1, '', '{}', now()
), written AS (
    INSERT INTO run (id, project, experiment, state, params, tags, artifacts, code_version, environment,
        training_set, job, lease_seconds, heartbeat_at, started_at, ended_at, display_name)
    SELECT 'run-' || name, 'default', $1, 'SUCCEEDED', params::jsonb, tags::jsonb, '[]', '', '{}', '', '', 60,
        now(), now(), now(), name
    FROM unnest($2::text[], $3::text[], $4::text[]) AS r(name, params, tags)
)
SELECT
"""
_FILL_NUMBERS = """
INSERT INTO run_param_number
SELECT id, key, value::float8 FROM run, jsonb_each_text(params) AS p(key, value) WHERE key <> 'optimizer'
"""
_FILL_METRICS = """
WITH given AS (SELECT 'run-' || name AS id, key, value FROM unnest($1::text[], $2::text[], $3::float8[])
    AS m(name, key, value)), points AS (
    INSERT INTO metric_point (run_id, key, step, value, time_us, attempt)
    SELECT id, key, 0, value, $4, 0 FROM given
)
INSERT INTO run_metric (run_id, key, step, value, attempt, min_value, max_value)
SELECT id, key, 0, value, 0, value, value FROM given
"""


async def _fill(dsn: str) -> None:
    """Write all runs to the database of the trainer, as they are after their calls."""
    rows = list(mlflow_rows.rows())
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            _FILL,
            mlflow_rows.EXPERIMENT,
            [row.name for row in rows],
            [json.dumps(row.params) for row in rows],
            [json.dumps(row.tags) for row in rows],
        )
        await connection.execute(_FILL_NUMBERS)
        metrics = [(row.name, key, value) for row in rows for key, value in row.metrics.items()]
        columns = [list(column) for column in zip(*metrics, strict=True)]
        await connection.execute(_FILL_METRICS, *columns, mlflow_rows.TIME_MS * 1000)
        await connection.execute("ANALYZE")
    finally:
        await connection.close()


def _expected() -> list[str]:
    found = [
        row for row in mlflow_rows.rows() if row.params["optimizer"] == "adam" and row.metrics["auc"] < 0.9
    ]
    return [row.name for row in sorted(found, key=lambda row: -row.metrics["auc"])[:PAGE]]


async def _search(address: str) -> float:
    request = trainer_pb2.ListRunsRequest(
        parent="projects/default",
        filter=f'experiment="{mlflow_rows.EXPERIMENT}" AND params.optimizer=adam AND metrics.auc<0.9',
        order_by="-metrics.auc",
        page_size=PAGE,
    )
    times = []
    async with fw.Client(trainer=address) as client:
        found = (await client.trainer.ListRuns(request)).runs
        assert [run.display_name for run in found] == _expected()
        for _ in range(SEARCHES):
            began = time.perf_counter()
            await client.trainer.ListRuns(request)
            times.append((time.perf_counter() - began) * 1000)
    return sorted(times)[SEARCHES // 2]


def _peer_search(server: MlflowServer) -> float:
    answer = server.client(
        "search_runs",
        where="params.optimizer = 'adam' and metrics.auc < 0.9",
        order="metrics.auc DESC",
        limit=PAGE,
        repeat=SEARCHES,
    )
    assert answer["found"] == _expected()
    return float(answer["ms"])
