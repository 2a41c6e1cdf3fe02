"""Conversion of retraining policies and decisions between protobuf and domain."""

from __future__ import annotations

from dataclasses import asdict

from flywheel_common.errors import InvalidArgument
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.api.convert_pipelines import pipeline_from, pipeline_to_proto
from flywheel_trainer.api.convert_times import duration, timestamp
from flywheel_trainer.pipelines.pipeline_run import PipelineSpec
from flywheel_trainer.policies.decision import Decision
from flywheel_trainer.policies.policy import Policy, PolicyName


def policy_from(message: pb.RetrainingPolicy) -> Policy:
    name = PolicyName.parse(message.name)
    if not message.HasField("pipeline"):
        raise InvalidArgument("policy.pipeline is missing.", reason="INVALID_POLICY", field="policy.pipeline")
    defaults = Policy(name.project, name.policy, {})
    return Policy(
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


def policy_to_proto(policy: Policy) -> pb.RetrainingPolicy:
    return pb.RetrainingPolicy(
        name=str(PolicyName(policy.project, policy.id)),
        pipeline=pipeline_to_proto(PipelineSpec.from_row(policy.pipeline), policy.project),
        trigger_kinds=policy.trigger_kinds,
        cooldown=duration(policy.cooldown),
        daily_budget=policy.daily_budget,
        history=duration(policy.history),
        dry_run=policy.dry_run,
        disabled=policy.disabled,
    )


def decision_to_proto(decision: Decision) -> pb.RetrainingDecision:
    return pb.RetrainingDecision(
        alert=decision.alert,
        model=decision.model,
        event_time=timestamp(decision.event_time),
        started=decision.started,
        reason=decision.reason,
        pipeline_run=decision.pipeline_run,
    )
