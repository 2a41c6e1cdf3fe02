"""Logging and searching beside an MLflow server, with PostgreSQL behind both.

MLflow's clients log as its users do, one `mlflow.log_metric` per point, and for information in its fastest
form: one `log_batch` of 1,000. 16 clients are threads of four processes, on both sides.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

import flywheel as fw
from bench import measure
from bench.common.deployment import Deployment
from bench.h2load import ToolMissing
from bench.peers import mlflow_rows
from bench.peers.mlflow_server import MlflowServer, require
from flywheel_protos.trainer.v1 import trainer_pb2

POINTS = 1_000
PEER_POINTS = {1: 300, 16: 50}
"""Points per client of MLflow's log_metric, whose rate does not depend on their number."""
ROUNDS = 3
SEARCHES = 50
PAGE = 10
AT_ONCE = 16
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
    with Deployment("trainer") as deployment, peer_of(deployment) as server:
        for clients, name in names.items():
            if only in name:
                yield from _logging(deployment.address, server, clients, name)
        if only in search:
            yield _searching(deployment.address, server, search)


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
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout)


def _peer_log(server: MlflowServer, clients: int, *, batched: bool) -> float:
    points = POINTS if batched else PEER_POINTS[clients]
    return float(server.client("log", clients=clients, points=points, batched=batched))


def _searching(address: str, server: MlflowServer, name: str) -> measure.Row:
    asyncio.run(_fill(address))
    asyncio.run(mlflow_rows.write_runs(server))
    pairs = measure.alternating(ROUNDS, lambda: asyncio.run(_search(address)), lambda: _peer_search(server))
    rates = [(1000 / ours, 1000 / theirs) for ours, theirs in pairs]
    faster = measure.compared(name, "searches/s", PEER, rates, measure.at_least(50))
    for ours, theirs in pairs:
        measure.console.print(f"  p50 {ours:.2f} ms beside {theirs:.1f} ms")
    return faster


async def _fill(address: str) -> None:
    """Log all runs through the trainer."""
    rows = mlflow_rows.rows()
    async with fw.Client(trainer=address) as client:
        parent, experiment = client.parent, client.path("experiments", mlflow_rows.EXPERIMENT)
        await client.trainer.CreateExperiment(
            trainer_pb2.CreateExperimentRequest(parent=parent, experiment_id=mlflow_rows.EXPERIMENT)
        )

        async def write() -> None:
            for row in rows:
                run = trainer_pb2.Run(
                    experiment=experiment, params=row.params, tags=row.tags, display_name=row.name
                )
                created = await client.trainer.CreateRun(trainer_pb2.CreateRunRequest(parent=parent, run=run))
                points = trainer_pb2.LogMetricsRequest(
                    run=created.run.name,
                    keys=list(row.metrics),
                    values=list(row.metrics.values()),
                    steps=[0] * len(row.metrics),
                    times=[mlflow_rows.TIME_MS * 1000] * len(row.metrics),
                )
                await client.trainer.LogMetrics(points)
                ended = trainer_pb2.UpdateRunRequest(
                    name=created.run.name, state=trainer_pb2.RUN_STATE_SUCCEEDED
                )
                await client.trainer.UpdateRun(ended)

        await asyncio.gather(*(write() for _ in range(AT_ONCE)))


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
