"""Conversion of retraining policies and decisions between protobuf and domain."""

from __future__ import annotations

from google.protobuf.message import Message

from flywheel_protos.trainer.v1 import origin_pb2, policy_pipeline_pb2, retraining_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.api.convert_graphs import to_json
from flywheel_trainer.api.convert_pipelines import pipeline_spec_from_proto, pipeline_spec_to_proto, struct
from flywheel_trainer.api.convert_times import duration, timestamp
from flywheel_trainer.policies.decision import Decision
from flywheel_trainer.policies.origin import Node
from flywheel_trainer.policies.policy import (
    DEFAULT_COOLDOWN,
    DEFAULT_DAILY_BUDGET,
    DEFAULT_HISTORY,
    Policy,
    PolicyName,
)
from flywheel_trainer.policies.schedule import (
    DEFAULT_CONTINUOUS_BUDGET,
    DEFAULT_GRACE,
    Continuous,
    Misfire,
    Schedule,
)
from flywheel_trainer.policies.stored_pipeline import StoredPipeline

MISFIRE_PREFIX = "MISFIRE_RULE_"


def policy_from_proto(message: pb.RetrainingPolicy) -> Policy:
    """Unset fields become defaults.

    Raises InvalidSpec, InvalidName, InvalidPipeline.
    """
    name = PolicyName.parse(message.name)
    has_pipeline = message.HasField("pipeline")
    return Policy(
        name=name,
        pipeline=pipeline_spec_from_proto(message.pipeline) if has_pipeline else None,
        trigger_kinds=tuple(message.trigger_kinds),
        cooldown=message.cooldown.ToTimedelta() if message.HasField("cooldown") else DEFAULT_COOLDOWN,
        daily_budget=message.daily_budget or DEFAULT_DAILY_BUDGET,
        history=message.history.ToTimedelta() if message.HasField("history") else DEFAULT_HISTORY,
        dry_run=message.dry_run,
        disabled=message.disabled,
        ignore_drift=message.ignore_drift,
        schedule=_schedule_from_proto(message.schedule) if message.HasField("schedule") else None,
        continuous=_continuous_from_proto(message.continuous) if message.HasField("continuous") else None,
        drift_pipeline=_stored_from_proto(message, "drift_pipeline"),
    )


def policy_to_proto(policy: Policy) -> pb.RetrainingPolicy:
    spec, project = policy.pipeline, policy.name.project
    return pb.RetrainingPolicy(
        name=str(policy.name),
        pipeline=None if spec is None else pipeline_spec_to_proto(spec, project),
        trigger_kinds=policy.trigger_kinds,
        cooldown=duration(policy.cooldown),
        daily_budget=policy.daily_budget,
        history=duration(policy.history),
        dry_run=policy.dry_run,
        disabled=policy.disabled,
        ignore_drift=policy.ignore_drift,
        schedule=None if policy.schedule is None else _schedule_to_proto(policy.schedule),
        continuous=None if policy.continuous is None else _continuous_to_proto(policy.continuous),
        drift_pipeline=_stored_to_proto(policy.drift_pipeline),
    )


def decision_to_proto(decision: Decision) -> pb.RetrainingDecision:
    return pb.RetrainingDecision(
        alert=decision.alert,
        model=decision.model,
        event_time=timestamp(decision.event_time),
        started=decision.started,
        reason=decision.reason,
        pipeline_run=decision.pipeline_run,
        trigger=decision.trigger,
        message=decision.message,
    )


def node_to_proto(node: Node) -> origin_pb2.OriginNode:
    return origin_pb2.OriginNode(
        kind=node.kind, name=node.name, detail=node.detail, children=map(node_to_proto, node.children)
    )


def _schedule_from_proto(message: retraining_pb2.RetrainingSchedule) -> Schedule:
    rule = retraining_pb2.MisfireRule.Name(message.misfire or retraining_pb2.MISFIRE_RULE_LATEST)
    grace = message.misfire_grace.ToTimedelta() if message.HasField("misfire_grace") else DEFAULT_GRACE
    return Schedule(
        cron=message.cron,
        time_zone=message.time_zone or "UTC",
        misfire=Misfire(rule.removeprefix(MISFIRE_PREFIX)),
        grace=grace,
        jitter=message.jitter.ToTimedelta(),
        pipeline=_stored_from_proto(message, "pipeline"),
    )


def _schedule_to_proto(schedule: Schedule) -> retraining_pb2.RetrainingSchedule:
    return retraining_pb2.RetrainingSchedule(
        cron=schedule.cron,
        time_zone=schedule.time_zone,
        misfire=f"{MISFIRE_PREFIX}{schedule.misfire}",
        misfire_grace=duration(schedule.grace),
        jitter=duration(schedule.jitter),
        pipeline=_stored_to_proto(schedule.pipeline),
    )


def _continuous_from_proto(message: retraining_pb2.ContinuousRetraining) -> Continuous:
    return Continuous(
        window=message.window.ToTimedelta(),
        delay=message.delay.ToTimedelta(),
        min_rows=message.min_rows,
        daily_budget=message.daily_budget or DEFAULT_CONTINUOUS_BUDGET,
        pipeline=_stored_from_proto(message, "pipeline"),
        new_rows=message.new_rows,
    )


def _continuous_to_proto(continuous: Continuous) -> retraining_pb2.ContinuousRetraining:
    return retraining_pb2.ContinuousRetraining(
        window=duration(continuous.window),
        delay=duration(continuous.delay),
        min_rows=continuous.min_rows,
        daily_budget=continuous.daily_budget,
        pipeline=_stored_to_proto(continuous.pipeline),
        new_rows=continuous.new_rows,
    )


def _stored_from_proto(message: Message, field: str) -> StoredPipeline | None:
    if not message.HasField(field):
        return None
    stored: policy_pipeline_pb2.StoredPipeline = getattr(message, field)
    return StoredPipeline(stored.pipeline, to_json(stored.params))


def _stored_to_proto(stored: StoredPipeline | None) -> policy_pipeline_pb2.StoredPipeline | None:
    if stored is None:
        return None
    return policy_pipeline_pb2.StoredPipeline(pipeline=stored.pipeline, params=struct(stored.params))
