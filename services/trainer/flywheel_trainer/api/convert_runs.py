"""Conversion of experiments and runs between protobuf and domain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta

from flywheel_job.outcome import Artifact
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.api.convert_times import duration, timestamp
from flywheel_trainer.encoding.spec_fields import experiment_id
from flywheel_trainer.runs.run import (
    DEFAULT_LEASE_SECONDS,
    Experiment,
    ExperimentName,
    Run,
    RunName,
    RunState,
    RunUpdate,
)


def experiment_to_proto(value: Experiment) -> pb.Experiment:
    return pb.Experiment(
        name=str(value.name),
        description=value.description,
        tags=value.tags,
        created_at=timestamp(value.created_at),
    )


def artifacts_from_proto(artifacts: Iterable[pb.RunArtifact]) -> tuple[Artifact, ...]:
    return tuple(Artifact(a.name, a.size_bytes, a.sha256, a.uri) for a in artifacts)


def run_from_proto(request: pb.CreateRunRequest, project: str) -> Run:
    """The run to create; the use case replaces its name."""
    run = request.run
    lease = (
        request.lease.ToTimedelta().total_seconds() if request.HasField("lease") else DEFAULT_LEASE_SECONDS
    )
    return Run(
        name=RunName(project, "new"),
        experiment=experiment_id(run.experiment),
        params=dict(run.params),
        tags=dict(run.tags),
        artifacts=artifacts_from_proto(run.artifacts),
        code_version=run.code_version,
        environment=dict(run.environment),
        training_set=run.training_set,
        job=run.job,
        lease_seconds=lease,
    )


def run_to_proto(run: Run) -> pb.Run:
    return pb.Run(
        name=str(run.name),
        experiment=str(ExperimentName(run.name.project, run.experiment)),
        state=f"RUN_STATE_{run.state}",
        params=run.params,
        metrics=run.metrics,
        tags=run.tags,
        artifacts=[pb.RunArtifact(**asdict(a)) for a in run.artifacts],
        code_version=run.code_version,
        environment=run.environment,
        training_set=run.training_set,
        started_at=timestamp(run.started_at),
        ended_at=timestamp(run.ended_at),
        error_message=run.error_message,
        job=run.job,
        lease=duration(timedelta(seconds=run.lease_seconds)),
        parent_run=run.parent_run,
    )


def run_update_from_proto(request: pb.UpdateRunRequest) -> RunUpdate:
    state = None
    if request.state != pb.RUN_STATE_UNSPECIFIED:
        state = RunState(pb.RunState.Name(request.state).removeprefix("RUN_STATE_"))
    return RunUpdate(
        dict(request.params),
        dict(request.tags),
        artifacts_from_proto(request.artifacts),
        state,
        request.error_message,
    )
