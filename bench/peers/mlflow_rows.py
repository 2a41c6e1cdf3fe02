"""The same runs and model versions for both sides of a search; those of MLflow are written to its tables.

MLflow's own API would take minutes for them. The tables are those of the locked version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg

from bench.peers.mlflow_server import MlflowServer

RUNS = 10_000
EXPERIMENT = "bench-search"
SPREAD = 10_007
"""A prime above the number of runs: the values of a metric differ."""
TIME_MS = 1_760_000_000_000


@dataclass(frozen=True)
class Row:
    """A run, or the run of a model version."""

    name: str
    uuid: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


def rows() -> Iterator[Row]:
    """RUNS runs."""
    for i in range(RUNS):
        yield Row(
            f"run-{i:05d}",
            f"{i:032x}",
            {"lr": str((i % 100) / 1000), "depth": str(i % 10), "optimizer": ("adam", "sgd")[i % 2]},
            {"auc": i * 7919 % SPREAD / SPREAD, "loss": i * 104_729 % SPREAD / SPREAD},
            {"team": "ab"[i // 2 % 2]},
        )


async def write_runs(server: MlflowServer) -> None:
    """Write all runs to the database of MLflow."""
    experiment = int(server.post("experiments/create", {"name": EXPERIMENT})["experiment_id"])
    connection = await asyncpg.connect(server.dsn)
    try:
        runs: list[dict[str, Any]] = []
        params: list[dict[str, Any]] = []
        metrics: list[dict[str, Any]] = []
        tags: list[dict[str, Any]] = []
        for row in rows():
            runs.append(
                {
                    "run_uuid": row.uuid,
                    "name": row.name,
                    "source_type": "LOCAL",
                    "user_id": "bench",
                    "status": "FINISHED",
                    "start_time": TIME_MS,
                    "end_time": TIME_MS + 1000,
                    "lifecycle_stage": "active",
                    "artifact_uri": f"mlflow-artifacts:/{experiment}/{row.uuid}/artifacts",
                    "experiment_id": experiment,
                }
            )
            of_run = {"run_uuid": row.uuid}
            named = {**row.tags, "mlflow.runName": row.name}
            params += ({**of_run, "key": key, "value": value} for key, value in row.params.items())
            tags += ({**of_run, "key": key, "value": value} for key, value in named.items())
            metrics += (
                {**of_run, "key": key, "value": value, "timestamp": TIME_MS, "step": 0, "is_nan": False}
                for key, value in row.metrics.items()
            )
        tables = {"runs": runs, "params": params, "tags": tags, "metrics": metrics, "latest_metrics": metrics}
        for table, records in tables.items():
            await _copy(connection, table, records)
        await connection.execute("ANALYZE")
    finally:
        await connection.close()


async def write_versions(server: MlflowServer, models: int, per_model: int) -> None:
    """Write `models` × `per_model` versions, each of the run in the same place; the last one of a model has
    the alias `champion`."""
    connection = await asyncpg.connect(server.dsn)
    try:
        named = [f"m{i}" for i in range(models)]
        for model in named:
            server.post("registered-models/create", {"name": model})
        versions: list[dict[str, Any]] = []
        tags: list[dict[str, Any]] = []
        for place, row in enumerate(rows()):
            model, number = named[place // per_model], place % per_model + 1
            versions.append(
                {
                    "name": model,
                    "version": number,
                    "creation_time": TIME_MS + place,
                    "last_updated_time": TIME_MS + place,
                    "current_stage": "None",
                    "source": f"mlflow-artifacts:/{row.uuid}/model",
                    "storage_location": f"mlflow-artifacts:/{row.uuid}/model",
                    "run_id": row.uuid,
                    "status": "READY",
                }
            )
            of_version = {"name": model, "version": number}
            tags += ({**of_version, "key": key, "value": value} for key, value in row.tags.items())
        await _copy(connection, "model_versions", versions)
        await _copy(connection, "model_version_tags", tags)
        aliases = [{"name": model, "alias": "champion", "version": per_model} for model in named]
        await _copy(connection, "registered_model_aliases", aliases)
        await connection.execute("ANALYZE")
    finally:
        await connection.close()


async def _copy(connection: asyncpg.Connection, table: str, records: list[dict[str, Any]]) -> None:
    columns = list(records[0])
    values = [tuple(record.values()) for record in records]
    await connection.copy_records_to_table(table, records=values, columns=columns)
