"""Conversion of pipeline runs between protobuf and domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct

from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.api.convert_jobs import job_state_to_proto
from flywheel_trainer.api.convert_times import timestamp
from flywheel_trainer.encoding.specs import train_spec_from_proto, train_spec_to_proto
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.pipelines.graph import GraphStep
from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineSpec, Step


def check_one_source(request: pb.StartPipelineRunRequest) -> None:
    """Raises InvalidSpec for a run of both a specification and a stored pipeline."""
    if request.pipeline and request.HasField("spec"):
        raise InvalidSpec("Set either spec or pipeline, not both.", field="pipeline")
    if request.HasField("params") and not request.pipeline:
        raise InvalidSpec("params are for a stored pipeline.", field="params")


def pipeline_spec_from_proto(spec: pb.PipelineSpec) -> PipelineSpec:
    """Raises InvalidSpec if there is no train specification, and InvalidName."""
    if not spec.HasField("train"):
        raise InvalidSpec("spec.train is missing.", field="spec.train")
    return PipelineSpec(
        model=spec.model,
        feature_set=spec.feature_set,
        spine=MessageToDict(spec.spine),
        train=train_spec_from_proto(spec.train),
        threshold=spec.threshold,
        fallback=MessageToDict(spec.fallback) if spec.HasField("fallback") else None,
        segment_keys=tuple(spec.segment_keys),
        start_rollout=spec.start_rollout,
        warm_start_from_champion=spec.warm_start_from_champion,
        min_rows=spec.min_rows,
    )


def pipeline_spec_to_proto(spec: PipelineSpec, project: str) -> pb.PipelineSpec:
    message = pb.PipelineSpec(
        model=spec.model,
        feature_set=spec.feature_set,
        train=train_spec_to_proto(spec.train, project),
        threshold=spec.threshold,
        segment_keys=spec.segment_keys,
        start_rollout=spec.start_rollout,
        warm_start_from_champion=spec.warm_start_from_champion,
        min_rows=spec.min_rows,
    )
    ParseDict(dict(spec.spine), message.spine)
    if spec.fallback is not None:
        message.fallback.SetInParent()
        ParseDict(dict(spec.fallback), message.fallback)
    return message


def pipeline_run_to_proto(run: PipelineRun) -> pb.PipelineRun:
    return pb.PipelineRun(
        name=str(run.name),
        spec=None if run.spec is None else pipeline_spec_to_proto(run.spec, run.name.project),
        state=job_state_to_proto(run.state),
        steps=[
            _step_to_proto(definition, step)
            for definition, step in zip(run.graph.steps, run.steps, strict=True)
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
        pipeline=run.pipeline,
        params=struct(run.params),
        rerun_of=run.rerun_of,
        policy=run.policy,
    )


def struct(values: Mapping[str, Any]) -> Struct | None:
    """None for no values, which leaves the field unset."""
    return ParseDict(dict(values), Struct()) if values else None


def _step_to_proto(definition: GraphStep, step: Step) -> pb.PipelineStep:
    waits = definition.kind == "approval" and step.state is JobState.RUNNING and step.approval is None
    return pb.PipelineStep(
        step=step.step,
        state=job_state_to_proto(step.state),
        started_at=timestamp(step.started_at),
        ended_at=timestamp(step.ended_at),
        output=step.output,
        message=step.message or (definition.spec.get("message", "") if waits else ""),
        kind=definition.kind,
        needs=definition.needs,
        attempt=step.attempt,
        outputs=struct(step.outputs),
        error_reason=step.error_reason,
        reused_from=step.reused_from,
        waits_for_approval=waits,
    )
