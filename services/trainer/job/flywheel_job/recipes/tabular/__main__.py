"""Driver of a TRAIN job, which Ray starts as `python -m flywheel_job.recipes.tabular SPEC_URI`."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from typing import Any

from flywheel_common.errors import FlywheelError
from flywheel_job import objects
from flywheel_job.errors import TrainingFailed
from flywheel_job.outcome import Outcome
from flywheel_job.recipes.tabular.preparation import check_training_set
from flywheel_job.recipes.tabular.spec import TabularSpec


def main(spec_uri: str) -> int:
    """Run the job of this specification and return the exit status."""
    store = objects.open_store()
    return run(TabularSpec.from_json(objects.read(store, spec_uri)), store)


def run(spec: TabularSpec, store: Any) -> int:
    """Run the workers and return the exit status; if they fail, write an outcome with the cause.

    Rank 0 writes the outcome of a success.
    """
    try:
        check_training_set(spec, store)
        run_group(spec)
        return 0
    except Exception as error:  # noqa: BLE001 - the outcome contains every failure
        traceback.print_exc()
        objects.write(store, spec.outcome_uri, Outcome.failed(failure_of(error)).to_json())
        return 1


def run_group(spec: TabularSpec) -> None:
    """Run a group of DDP workers, which Ray places together or not at all."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from flywheel_job.recipes.tabular.training import run_worker

    ray.init(log_to_driver=True, logging_level="warning")
    gpus = spec.gpus_per_worker
    with tempfile.TemporaryDirectory(prefix="flywheel-train-") as folder:
        TorchTrainer(
            run_worker,
            train_loop_config={"spec": spec.to_json().decode()},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=spec.workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": spec.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
            ),
            run_config=RunConfig(name=spec.job.rsplit("/", 1)[-1], storage_path=folder),
        ).fit()


def failure_of(error: BaseException) -> FlywheelError:
    """The error that the outcome reports: the cause if it has a reason of its own, else TrainingFailed."""
    cause = root_cause(error)
    if isinstance(cause, FlywheelError):
        return cause
    return TrainingFailed(f"{type(cause).__name__}: {str(cause).strip()}"[:2000])


def root_cause(error: BaseException) -> BaseException:
    """The exception of the worker inside the exceptions that Ray wraps around it.

    The causes of an error that has a reason are details of it.
    """
    seen: set[int] = set()
    while id(error) not in seen and not isinstance(error, FlywheelError):
        seen.add(id(error))
        failures = getattr(error, "worker_failures", None)
        inner = next(iter(failures.values()), None) if failures else None
        inner = inner or getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            return error
        error = inner
    return error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
