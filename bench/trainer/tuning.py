"""Seconds of 100 TPE trials of a TUNE job's driver, against Ray Tune with the same sampler and cluster.

Both have two trials at a time, whose code logs three steps of a parabola. Ours stores each trial and its
metrics over gRPC at a trainer with stores in memory, reads the source of the code and writes the outcome; Ray
Tune keeps its state in a folder. The starts of Ray and of the trainer are not measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import ray

from bench import measure
from flywheel_common.granted.tokens import AttemptTokens
from flywheel_job import objects
from flywheel_job.granted import TOKEN_VARIABLE
from flywheel_job.launch import LaunchSpec, Resources, Source
from flywheel_job.reporting import MetricReporter
from flywheel_job.tuning.driver import Study, conclude
from flywheel_job.tuning.launch import TuneLaunch
from flywheel_job.tuning.recording import TrainerTrials
from flywheel_job.tuning.settings import Direction, FloatRange, Objective, Tpe, TuneSettings
from flywheel_job.tuning.workers import RayWorkers
from flywheel_trainer.jobs.job import Job
from tests.support.builders import trainer as build
from tests.support.builders.trainer import AT, EXPERIMENT
from tests.support.jobs_source import archived
from tests.support.servers.trainer import serve_in_memory

TRIALS, AT_ONCE, ROUNDS = 100, 2, 2
STEPS = 3
CODE = f"""
def train(ctx):
    for step in range(1, {STEPS} + 1):
        ctx.log({{"loss": (ctx.params["x"] - 1) ** 2 + ctx.params["y"] ** 2 + 1 / step}}, step)
"""
SETTINGS = TuneSettings(
    {"x": FloatRange(-2, 2), "y": FloatRange(-2, 2)},
    (Objective("loss", Direction.MINIMIZE),),
    Tpe(),
    max_trials=TRIALS,
    parallel_trials=AT_ONCE,
    seed=1,
)


class Trainer:
    """A trainer over stores in memory, in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._started = 0
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._stack = AsyncExitStack()
        self._trainer = self._run(serve_in_memory(self._stack))
        self._run(self._trainer.ports.runs.create_experiment(EXPERIMENT, "", b"", AT))
        self.address = self._trainer.address

    def start_job(self) -> tuple[Job, str]:
        """A new job with an attempt, and the token of the attempt."""
        self._started += 1
        job = build.tune_job(str(self._started))
        self._run(self._trainer.ports.jobs.create(job, {}, "", b"", AT))
        supervision = self._trainer.ports.supervision(self._started)
        attempt = self._run(supervision.begin_attempt(job.name, AT))
        return job, AttemptTokens(b"k" * 32).issue(attempt.engine_id)

    def close(self) -> None:
        self._run(self._stack.aclose())

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def ours(trainer: Trainer) -> float:
    """Seconds of one execution of the driver."""
    store = objects.open_store()
    source, digest = archived({"objective.py": CODE})
    objects.write(store, "s3://b/source", source)
    job, token = trainer.start_job()
    os.environ[TOKEN_VARIABLE] = token
    base = LaunchSpec(
        job=str(job.name),
        run=str(job.run),
        function="objective.py:train",
        output_uri="s3://b/artifacts",
        outcome_uri=f"s3://b/{job.name.job}/outcome.json",
        checkpoint_uri=f"s3://b/{job.name.job}/checkpoints",
        source=Source("s3://b/source", digest),
        resources=Resources(cpus=1),
        trainer_address=trainer.address,
    )
    started = time.perf_counter()
    trials = TrainerTrials(base, store)
    with MetricReporter(base.trainer_address, base.run) as progress:
        outcome = conclude(
            Study(TuneLaunch(base, SETTINGS), trials, RayWorkers(base.job, asks=False), progress)
        )
    seconds = time.perf_counter() - started
    assert outcome.succeeded, outcome.error_message
    assert len(trials.load()) == TRIALS
    trials.close()
    return seconds


def ray_tune(folder: Path) -> float:
    """Seconds of Ray Tune with Optuna's sampler."""
    import optuna
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    def objective(config: dict[str, float]) -> None:
        for step in range(1, STEPS + 1):
            tune.report({"loss": (config["x"] - 1) ** 2 + config["y"] ** 2 + 1 / step})

    started = time.perf_counter()
    search = OptunaSearch(metric="loss", mode="min", sampler=optuna.samplers.TPESampler(seed=1))
    tuner = tune.Tuner(
        tune.with_resources(objective, {"cpu": 1}),
        param_space={"x": tune.uniform(-2, 2), "y": tune.uniform(-2, 2)},
        tune_config=tune.TuneConfig(
            num_samples=TRIALS, search_alg=ConcurrencyLimiter(search, max_concurrent=AT_ONCE)
        ),
        run_config=tune.RunConfig(storage_path=str(folder / "ray-tune"), verbose=0),
    )
    found = tuner.fit()
    assert len(found) == TRIALS
    return time.perf_counter() - started


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A Ray cluster with two CPUs, whose workers have a folder as object store."""
    os.environ[objects.STORE_FOLDER] = str(folder)
    ray.init(
        num_cpus=AT_ONCE,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        object_store_memory=128 * 1024 * 1024,
        runtime_env={"env_vars": {objects.STORE_FOLDER: str(folder)}},
    )
    try:
        yield
    finally:
        ray.shutdown()


def run(only: str) -> Iterable[measure.Row]:
    if only not in "seconds of 100 TPE trials":
        return
    # A process of its own: Ray and its workers end with it.
    command = [sys.executable, "-m", "bench.trainer.tuning"]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    pairs = [tuple(map(float, line.split()[1:])) for line in found.stdout.splitlines() if "PAIR" in line]
    yield measure.compared(
        "seconds of 100 TPE trials, two at a time",
        "s",
        "Ray Tune with OptunaSearch",
        pairs,  # type: ignore[arg-type]
        measure.at_most(1.10),
    )


def main() -> None:
    """Print the seconds of each round."""
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as name, cluster(Path(name)):
        folder, trainer = Path(name), Trainer()
        for mine, theirs in measure.alternating(ROUNDS, lambda: ours(trainer), lambda: ray_tune(folder)):
            print(f"PAIR {mine} {theirs}", flush=True)
        trainer.close()


if __name__ == "__main__":
    main()
