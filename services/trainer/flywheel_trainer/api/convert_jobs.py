"""Conversion of jobs between protobuf and domain."""

from __future__ import annotations

from dataclasses import asdict

from flywheel_job.recipes.tabular.spec import Hyperparameters
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from flywheel_trainer.api.convert_runs import experiment_id
from flywheel_trainer.api.convert_times import timestamp
from flywheel_trainer.jobs.job import Job, JobState
from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.runs.run import ExperimentName

_DEFAULTS = Hyperparameters()


def train_spec_from_proto(spec: pb.TrainSpec) -> TrainSpec:
    """Zero values become defaults. Raises InvalidName."""
    recipe = spec.tabular
    hyper = Hyperparameters(
        hidden_sizes=tuple(recipe.hidden_sizes) or _DEFAULTS.hidden_sizes,
        epochs=recipe.epochs or _DEFAULTS.epochs,
        batch_size=recipe.batch_size or _DEFAULTS.batch_size,
        learning_rate=recipe.learning_rate or _DEFAULTS.learning_rate,
        weight_decay=recipe.weight_decay,
        dropout=recipe.dropout,
        seed=recipe.seed,
        holdout_fraction=recipe.holdout_fraction or _DEFAULTS.holdout_fraction,
        weight_column=recipe.weight_column,
    )
    return TrainSpec(
        experiment=experiment_id(spec.experiment),
        training_set=spec.training_set,
        hyperparameters=hyper,
        warm_start=recipe.warm_start,
        workers=spec.workers or 1,
        gpus_per_worker=spec.gpus_per_worker,
    )


def train_spec_to_proto(spec: TrainSpec, project: str) -> pb.TrainSpec:
    return pb.TrainSpec(
        experiment=str(ExperimentName(project, spec.experiment)),
        training_set=spec.training_set,
        tabular=pb.TabularRecipe(**asdict(spec.hyperparameters), warm_start=spec.warm_start),
        workers=spec.workers,
        gpus_per_worker=spec.gpus_per_worker,
    )


def job_state_to_proto(state: JobState) -> str:
    """The name of the enum value, which protobuf accepts in constructors."""
    return f"JOB_STATE_{state}"


def job_to_proto(job: Job) -> pb.Job:
    return pb.Job(
        name=str(job.name),
        kind=job.kind,
        state=job_state_to_proto(job.state),
        progress=job_pb2.JobProgress(**job.progress),
        train=train_spec_to_proto(job.spec, job.name.project),
        run=str(job.run),
        error_reason=job.error_reason,
        error_message=job.error_message,
        created_at=timestamp(job.created_at),
        started_at=timestamp(job.started_at),
        ended_at=timestamp(job.ended_at),
        priority=job.priority,
        cancel_requested=job.cancel_requested,
    )
