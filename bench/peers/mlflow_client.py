"""MLflow's side of the comparisons; runs in the environment of MLflow and imports nothing of ours.

    mlflow_client.py COMMAND JSON     prints its answer as JSON

The arguments of a command are those of the function of its name; `url` is the address of the server.
"""

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric

PROCESSES = 4
START_SECONDS = 120
POINTS_PER_BATCH = 1000
"""The server refuses larger batches."""


def log(clients: int, points: int, batched: bool) -> float:
    """Metrics per second of clients that log to a run each, from one start to the last end; the clients are
    threads of up to PROCESSES processes."""
    experiment = mlflow.set_experiment("bench-log").experiment_id
    runs = [MlflowClient().create_run(experiment).info.run_id for _ in range(clients)]
    context = multiprocessing.get_context("fork")
    # A writer that has died before its start would hold the others.
    start = context.Barrier(clients + 1, timeout=START_SECONDS)
    processes = min(clients, PROCESSES)
    parts = [runs[place::processes] for place in range(processes)]
    writers = [context.Process(target=_log_runs, args=(part, points, batched, start)) for part in parts]
    for writer in writers:
        writer.start()
    start.wait()
    began = time.perf_counter()
    for writer in writers:
        writer.join()
    spent = time.perf_counter() - began
    assert all(writer.exitcode == 0 for writer in writers)
    assert len(MlflowClient().get_metric_history(runs[-1], "loss")) == points
    return clients * points / spent


def _log_runs(runs: list, points: int, batched: bool, start) -> None:
    with ThreadPoolExecutor(len(runs)) as pool:
        for done in [pool.submit(_log_run, run, points, batched, start) for run in runs]:
            done.result()


def _log_run(run: str, points: int, batched: bool, start) -> None:
    if not batched:
        with mlflow.start_run(run_id=run):
            start.wait()
            for step in range(points):
                mlflow.log_metric("loss", 0.5, step=step)
        return
    client = MlflowClient()
    start.wait()
    for first in range(0, points, POINTS_PER_BATCH):
        steps = range(first, min(first + POINTS_PER_BATCH, points))
        now = int(time.time() * 1000)
        client.log_batch(run, metrics=[Metric("loss", 0.5, now, step) for step in steps])


def search_runs(where: str, order: str, limit: int, repeat: int) -> dict:
    """Median time in ms, and the names of the runs found."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("bench-search").experiment_id

    def search():
        return client.search_runs([experiment], where, max_results=limit, order_by=[order])

    found = [run.info.run_name for run in search()]
    return {"ms": _p50(search, repeat), "found": found}


def search_versions(where: str, order: str, limit: int, repeat: int) -> dict:
    """Median time in ms of a search for versions by metric: by the runs that have the metric, as versions
    have none; and the `model/version` found."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("bench-search").experiment_id

    def search():
        runs = [run.info.run_id for run in client.search_runs([experiment], where, 1, limit, [order])]
        ids = ", ".join(f"'{run}'" for run in runs)
        versions = {v.run_id: v for v in client.search_model_versions(f"run_id IN ({ids})")}
        return [versions[run] for run in runs]

    found = [f"{version.name}/{version.version}" for version in search()]
    return {"ms": _p50(search, repeat), "found": found}


def search_by_tag(where: str, limit: int, repeat: int) -> dict:
    """Median time in ms of a search for versions by what MLflow can search for in one call."""
    client = MlflowClient()
    found = client.search_model_versions(where, max_results=limit)
    return {
        "ms": _p50(lambda: client.search_model_versions(where, max_results=limit), repeat),
        "found": len(found),
    }


def create_versions(model: str, during: float) -> float:
    """Versions per second of one client."""
    client = MlflowClient()
    # A version names the run whose folder has its files.
    run = client.create_run(mlflow.set_experiment("bench-versions").experiment_id)
    source = f"{run.info.artifact_uri}/model"
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < during:
        client.create_model_version(model, source, run.info.run_id, tags={"team": "a"})
        count += 1
    return count / (time.perf_counter() - began)


def upload(size: int) -> float:
    """Bytes per second of an upload through the server."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.bin"
        file.write_bytes(os.urandom(size))
        experiment = mlflow.set_experiment("bench-upload").experiment_id
        client = MlflowClient()
        run = client.create_run(experiment).info.run_id
        began = time.perf_counter()
        client.log_artifact(run, str(file))
        return size / (time.perf_counter() - began)


def _p50(call, repeat: int) -> float:
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


COMMANDS = (log, search_runs, search_versions, search_by_tag, create_versions, upload)


def main() -> None:
    arguments = json.loads(sys.argv[2])
    url = arguments.pop("url")
    mlflow.set_tracking_uri(url)
    command = {command.__name__: command for command in COMMANDS}[sys.argv[1]]
    print(json.dumps(command(**arguments)))


if __name__ == "__main__":
    main()
