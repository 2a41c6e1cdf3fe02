"""Jobs without a cluster: launch specifications, and a driver whose only rank runs in the test's process."""

from __future__ import annotations

from typing import Any

from pyarrow import fs

from flywheel_job import objects
from flywheel_job.driver import run
from flywheel_job.launch import DataSet, LaunchSpec
from flywheel_job.outcome import Outcome
from flywheel_job.recipes.tabular.spec import CHECK, EXPORT, TRAIN, TabularSpec
from flywheel_job.worker import call


def launch_spec(function: str, **fields: Any) -> LaunchSpec:
    """A job whose files are under `s3://b/`."""
    return LaunchSpec(
        job="projects/p/jobs/j",
        run="projects/p/runs/r",
        function=function,
        output_uri="s3://b/artifacts",
        outcome_uri="s3://b/outcome.json",
        checkpoint_uri="s3://b/checkpoints",
        **fields,
    )


def tabular_job(spec: TabularSpec) -> LaunchSpec:
    return launch_spec(
        TRAIN,
        check=CHECK,
        export=EXPORT,
        params=spec.params(),
        models=spec.models(),
        data={"train": DataSet(spec.uri, spec.training_set, spec.columns)},
        workers=spec.workers,
        seed=spec.hyperparameters.seed,
    )


def run_here(spec: LaunchSpec, store: fs.FileSystem) -> Outcome:
    """The outcome of a job whose only rank runs in this process."""

    def group(one: LaunchSpec) -> None:
        outcome = call(one.function, one, store)
        objects.write(store, one.result_uri, outcome.to_json())

    status = run(spec, store, group)
    outcome = Outcome.from_json(objects.read(store, spec.outcome_uri))
    assert status == (0 if outcome.succeeded else 1)
    objects.delete(store, spec.checkpoint_uri)
    return outcome
