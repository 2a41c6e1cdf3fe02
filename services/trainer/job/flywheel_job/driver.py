"""Runs a job: check, a group of ranks on Ray, export; and writes its outcome, the only process that does."""

from __future__ import annotations

import math
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pyarrow import fs

from flywheel_common.errors import FlywheelError
from flywheel_job import objects
from flywheel_job.errors import TrainingFailed, WorkerLost
from flywheel_job.job_logs.storing import output_copied_to, stored_log
from flywheel_job.launch import WORKER_PYTHON_VARIABLE, LaunchSpec, Resources
from flywheel_job.outcome import Outcome

LOST_WORKER = frozenset(
    {
        "ActorDiedError",
        "ActorUnavailableError",
        "NodeDiedError",
        "OutOfMemoryError",
        "OwnerDiedError",
        "RayActorError",
        "WorkerCrashedError",
        "WorkerHealthCheckTimeoutError",
    }
)
"""Names of Ray's exceptions for a worker whose process or machine is gone."""

Group = Callable[[LaunchSpec], None]
"""Runs all ranks; returns when all have ended, and raises if one failed."""


def run(spec: LaunchSpec, store: fs.FileSystem, group: Group | None = None) -> int:
    """Run the job, write its outcome, and return the exit status.

    Rank 0 leaves its result after all ranks have returned from the function, so a failure after that does not
    undo the success.
    """
    try:
        outcome = execute(spec, store, group or run_on_ray)
    except Exception as error:  # noqa: BLE001 - the outcome contains every failure
        traceback.print_exc()
        failure = Outcome.failed(failure_of(error))
        objects.write(store, spec.failure_uri or spec.outcome_uri, failure.to_json())
        return 1
    objects.write(store, spec.outcome_uri, outcome.to_json())
    return 0


def execute(spec: LaunchSpec, store: fs.FileSystem, group: Group) -> Outcome:
    """Check, train and export; returns the outcome of a success."""
    if spec.check:
        _call_here(spec.check, spec, store)
    try:
        group(spec)
    except Exception:
        if not objects.files_under(store, spec.result_uri):
            raise
        # All ranks had called the function to its end: what failed was the end of a process.
        traceback.print_exc()
    outcome = Outcome.from_json(objects.read(store, spec.result_uri))
    if spec.export:
        exported = _call_here(spec.export, spec, store)
        outcome = replace(
            outcome,
            artifacts=outcome.artifacts + exported.artifacts,
            points=outcome.points + exported.points,
        )
    return outcome


def _call_here(name: str, spec: LaunchSpec, store: fs.FileSystem) -> Outcome:
    """Call a function of the job in this process, which imports what ranks need only then."""
    from flywheel_job.worker import call

    return call(name, spec, store)


def run_on_ray(spec: LaunchSpec) -> None:
    """Run a group of workers, which Ray places together or not at all."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    needed = spec.resources
    per_worker = {"CPU": needed.cpus}
    if needed.gpus:
        per_worker["GPU"] = needed.gpus
    if needed.memory_bytes:
        per_worker["memory"] = needed.memory_bytes
    connect(needed)
    with tempfile.TemporaryDirectory(prefix="flywheel-train-") as folder:
        TorchTrainer(
            run_rank,
            train_loop_config={"spec": spec.to_json().decode()},
            torch_config=TorchConfig(backend=backend_of(needed)),
            scaling_config=ScalingConfig(
                num_workers=spec.workers,
                use_gpu=needed.gpus > 0,
                resources_per_worker=per_worker,
                accelerator_type=needed.accelerator_type or None,
            ),
            run_config=RunConfig(name=spec.job.rsplit("/", 1)[-1], storage_path=folder),
        ).fit()


def backend_of(needed: Resources) -> str:
    """The backend of collectives; NCCL refuses ranks that share a GPU."""
    return "nccl" if needed.gpus >= 1 else "gloo"


def connect(needed: Resources) -> None:
    """Connect this process to the cluster, unless it is one of its workers; workers get the variables."""
    import ray

    if not ray.is_initialized():
        environment: dict[str, Any] = {}
        if needed.environment:
            environment["env_vars"] = dict(needed.environment)
        if python := os.environ.get(WORKER_PYTHON_VARIABLE):
            environment["py_executable"] = python
        ray.init(log_to_driver=True, logging_level="warning", runtime_env=environment or None)


def run_rank(config: dict[str, str]) -> None:
    """Entry point of every Ray Train worker; rank 0 leaves its result for the driver."""
    import ray.train
    import ray.train.torch
    import torch.distributed as dist

    from flywheel_job.system_use import system_use_reported
    from flywheel_job.worker import call

    spec = LaunchSpec.from_json(config["spec"].encode())
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    store = objects.open_store()
    device = ray.train.torch.get_device()
    with stored_output(spec, store, rank), system_use_reported(spec, rank):
        outcome = call(spec.function, spec, store, rank=rank, world_size=world, device=device)
        if dist.is_initialized():
            dist.barrier()
        if rank == 0:
            objects.write(store, spec.result_uri, outcome.to_json())


@contextmanager
def stored_output(spec: LaunchSpec, store: fs.FileSystem, rank: int) -> Iterator[None]:
    """Store what this rank writes as its own log stream."""
    if not spec.log_uri:
        yield
        return
    folder = f"{objects.path_of(spec.log_uri)}/rank-{rank}"
    with stored_log(store, folder, spec.attempt, last_flush_seconds=5) as log, output_copied_to(log):
        yield


def failure_of(error: BaseException) -> FlywheelError:
    """The error that the outcome reports: the cause if it has a reason of its own, else TrainingFailed."""
    cause = root_cause(error)
    if isinstance(cause, FlywheelError):
        return cause
    if _is_loss(cause):
        return WorkerLost(f"A worker was lost: {str(cause).strip()}"[:2000])
    return TrainingFailed(f"{type(cause).__name__}: {str(cause).strip()}"[:2000])


def root_cause(error: BaseException) -> BaseException:
    """The exception of the worker inside the exceptions that Ray wraps around it.

    Of several failed workers, one whose process is gone is the cause, else the one that failed first: the
    others lost their peer. The causes of an error that has a reason are details of it.
    """
    seen: set[int] = set()
    while id(error) not in seen and not isinstance(error, FlywheelError):
        seen.add(id(error))
        inner = _first_failure(getattr(error, "worker_failures", None) or {})
        inner = inner or getattr(error, "health_check_failure", None)
        inner = inner or getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            return error
        error = inner
    return error


def _first_failure(failures: dict[int, Any]) -> BaseException | None:
    causes = [root_cause(one) for one in failures.values()]
    return min(causes, key=lambda one: (not _is_loss(one), getattr(one, "failed_at", math.inf)), default=None)


def _is_loss(error: BaseException) -> bool:
    return type(error).__name__ in LOST_WORKER and type(error).__module__.startswith("ray.")
