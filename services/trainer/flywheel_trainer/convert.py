"""Protobuf ↔ domain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.errors import InvalidArgument
from flywheel_protos.events.v1.lifecycle_pb2 import DriftDetected
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from flywheel_trainer import jobs, pipelines, policies, retraining, runs
from flywheel_trainer.names import ExperimentName, PolicyName
from flywheel_trainer.recipes.outcome import Produced
from flywheel_trainer.recipes.tabular.spec import Hyperparameters

_DEFAULTS = Hyperparameters()


def timestamp(value: datetime | None) -> Timestamp | None:
    """None stays unset."""
    if value is None:
        return None
    message = Timestamp()
    message.FromDatetime(value.astimezone(UTC))
    return message


def duration(value: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(value)
    return message


def experiment_to_proto(value: runs.Experiment) -> pb.Experiment:
    return pb.Experiment(
        name=str(value.name),
        description=value.description,
        tags=value.tags,
        created_at=timestamp(value.created_at),
    )


def produced_from(artifacts: Iterable[pb.RunArtifact]) -> tuple[Produced, ...]:
    return tuple(Produced(a.name, a.size_bytes, a.sha256, a.uri) for a in artifacts)


def run_from_proto(request: pb.CreateRunRequest, name: object) -> runs.Run:
    """The run to create; its name is given by the use case."""
    run = request.run
    lease = (
        request.lease.ToTimedelta().total_seconds()
        if request.HasField("lease")
        else runs.DEFAULT_LEASE_SECONDS
    )
    return runs.Run(
        name=name,  # type: ignore[arg-type]
        experiment=experiment_id(run.experiment),
        params=dict(run.params),
        tags=dict(run.tags),
        artifacts=produced_from(run.artifacts),
        code_version=run.code_version,
        environment=dict(run.environment),
        training_set=run.training_set,
        job=run.job,
        lease_seconds=lease,
    )


def experiment_id(text: str) -> str:
    """The id in an experiment's name; an id alone is accepted too."""
    return ExperimentName.parse(text).experiment if "/" in text else text


def run_to_proto(run: runs.Run) -> pb.Run:
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
    )


def run_update_from(request: pb.UpdateRunRequest) -> runs.RunUpdate:
    state = None
    if request.state != pb.RUN_STATE_UNSPECIFIED:
        state = runs.RunState(pb.RunState.Name(request.state).removeprefix("RUN_STATE_"))
    return runs.RunUpdate(
        dict(request.params),
        dict(request.tags),
        produced_from(request.artifacts),
        state,
        request.error_message,
    )


def train_from(spec: pb.TrainSpec) -> jobs.TrainSpec:
    """Zero values become defaults. InvalidArgument INVALID_NAME."""
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
    )
    return jobs.TrainSpec(
        experiment=experiment_id(spec.experiment),
        training_set=spec.training_set,
        hyperparameters=hyper,
        warm_start=recipe.warm_start,
        workers=spec.workers or 1,
        gpus_per_worker=spec.gpus_per_worker,
    )


def train_to_proto(spec: jobs.TrainSpec, project: str) -> pb.TrainSpec:
    return pb.TrainSpec(
        experiment=str(ExperimentName(project, spec.experiment)),
        training_set=spec.training_set,
        tabular=pb.TabularRecipe(**asdict(spec.hyperparameters), warm_start=spec.warm_start),
        workers=spec.workers,
        gpus_per_worker=spec.gpus_per_worker,
    )


def job_state(state: jobs.JobState) -> str:
    """Enum fields take the value's name too."""
    return f"JOB_STATE_{state}"


def job_to_proto(job: jobs.Job) -> pb.Job:
    return pb.Job(
        name=str(job.name),
        kind=job.kind,
        state=job_state(job.state),
        progress=job_pb2.JobProgress(**job.progress),
        train=train_to_proto(job.spec, job.name.project),
        run=str(job.run),
        error_reason=job.error_reason,
        error_message=job.error_message,
        created_at=timestamp(job.created_at),
        started_at=timestamp(job.started_at),
        ended_at=timestamp(job.ended_at),
        priority=job.priority,
        cancel_requested=job.cancel_requested,
    )


def pipeline_from(spec: pb.PipelineSpec) -> pipelines.PipelineSpec:
    if not spec.HasField("train"):
        raise InvalidArgument("spec.train is missing.", reason="INVALID_SPEC", field="spec.train")
    return pipelines.PipelineSpec(
        model=spec.model,
        feature_set=spec.feature_set,
        spine=MessageToDict(spec.spine),
        train=train_from(spec.train),
        threshold=spec.threshold,
        fallback=MessageToDict(spec.fallback) if spec.HasField("fallback") else None,
        segment_keys=tuple(spec.segment_keys),
        start_rollout=spec.start_rollout,
    )


def pipeline_to_proto(spec: pipelines.PipelineSpec, project: str) -> pb.PipelineSpec:
    message = pb.PipelineSpec(
        model=spec.model,
        feature_set=spec.feature_set,
        train=train_to_proto(spec.train, project),
        threshold=spec.threshold,
        segment_keys=spec.segment_keys,
        start_rollout=spec.start_rollout,
    )
    ParseDict(dict(spec.spine), message.spine)
    if spec.fallback is not None:
        message.fallback.SetInParent()
        ParseDict(dict(spec.fallback), message.fallback)
    return message


def pipeline_run_to_proto(run: pipelines.PipelineRun) -> pb.PipelineRun:
    return pb.PipelineRun(
        name=str(run.name),
        spec=pipeline_to_proto(run.spec, run.name.project),
        state=job_state(run.state),
        steps=[
            pb.PipelineStep(
                step=step.step,
                state=job_state(step.state),
                started_at=timestamp(step.started_at),
                ended_at=timestamp(step.ended_at),
                output=step.output,
                message=step.message,
            )
            for step in run.steps
        ],
        training_set=run.training_set,
        run=run.run,
        model_version=run.model_version,
        release=run.release,
        rollout=run.rollout,
        gate_passed=run.gate_passed,
        error_reason=run.error_reason,
        error_message=run.error_message,
        cause_alert=run.cause_alert,
        created_at=timestamp(run.created_at),
        ended_at=timestamp(run.ended_at),
        cancel_requested=run.cancel_requested,
        event_time=timestamp(run.event_time),
    )


def policy_from(message: pb.RetrainingPolicy) -> retraining.Policy:
    name = PolicyName.parse(message.name)
    if not message.HasField("pipeline"):
        raise InvalidArgument("policy.pipeline is missing.", reason="INVALID_POLICY", field="policy.pipeline")
    defaults = retraining.Policy(name.project, name.policy, {})
    return retraining.Policy(
        project=name.project,
        id=name.policy,
        pipeline=asdict(pipeline_from(message.pipeline)),
        trigger_kinds=tuple(message.trigger_kinds),
        cooldown=message.cooldown.ToTimedelta() if message.HasField("cooldown") else defaults.cooldown,
        daily_budget=message.daily_budget or defaults.daily_budget,
        history=message.history.ToTimedelta() if message.HasField("history") else defaults.history,
        dry_run=message.dry_run,
        disabled=message.disabled,
    )


def policy_to_proto(policy: retraining.Policy) -> pb.RetrainingPolicy:
    return pb.RetrainingPolicy(
        name=str(PolicyName(policy.project, policy.id)),
        pipeline=pipeline_to_proto(pipelines.PipelineSpec.from_row(policy.pipeline), policy.project),
        trigger_kinds=policy.trigger_kinds,
        cooldown=duration(policy.cooldown),
        daily_budget=policy.daily_budget,
        history=duration(policy.history),
        dry_run=policy.dry_run,
        disabled=policy.disabled,
    )


def decision_to_proto(decision: policies.Decision) -> pb.RetrainingDecision:
    return pb.RetrainingDecision(
        alert=decision.alert,
        model=decision.model,
        event_time=timestamp(decision.event_time),
        started=decision.started,
        reason=decision.reason,
        pipeline_run=decision.pipeline_run,
    )


def drift_from(event: DriftDetected) -> retraining.Drift:
    """InvalidArgument MALFORMED_EVENT without an alert or a window."""
    if not event.alert or not event.HasField("window_end"):
        raise InvalidArgument("The drift event names no alert or no window.", reason="MALFORMED_EVENT")
    return retraining.Drift(
        alert=event.alert,
        model=event.model,
        kind=event.kind,
        window_end=event.window_end.ToDatetime(tzinfo=UTC),
        data_quality_cause=event.data_quality_cause,
    )
