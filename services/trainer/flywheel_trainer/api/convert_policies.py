"""Conversion of retraining policies and decisions between protobuf and domain."""

from __future__ import annotations

from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.api.convert_pipelines import pipeline_spec_from_proto, pipeline_spec_to_proto
from flywheel_trainer.api.convert_times import duration, timestamp
from flywheel_trainer.policies.decision import Decision
from flywheel_trainer.policies.errors import InvalidPolicy
from flywheel_trainer.policies.policy import (
    DEFAULT_COOLDOWN,
    DEFAULT_DAILY_BUDGET,
    DEFAULT_HISTORY,
    Policy,
    PolicyName,
)


def policy_from_proto(message: pb.RetrainingPolicy) -> Policy:
    """Unset fields become defaults.

    Raises InvalidPolicy if there is no pipeline, InvalidSpec, InvalidName.
    """
    name = PolicyName.parse(message.name)
    if not message.HasField("pipeline"):
        raise InvalidPolicy("policy.pipeline is missing.", field="policy.pipeline")
    return Policy(
        name=name,
        pipeline=pipeline_spec_from_proto(message.pipeline),
        trigger_kinds=tuple(message.trigger_kinds),
        cooldown=message.cooldown.ToTimedelta() if message.HasField("cooldown") else DEFAULT_COOLDOWN,
        daily_budget=message.daily_budget or DEFAULT_DAILY_BUDGET,
        history=message.history.ToTimedelta() if message.HasField("history") else DEFAULT_HISTORY,
        dry_run=message.dry_run,
        disabled=message.disabled,
    )


def policy_to_proto(policy: Policy) -> pb.RetrainingPolicy:
    return pb.RetrainingPolicy(
        name=str(policy.name),
        pipeline=pipeline_spec_to_proto(policy.pipeline, policy.name.project),
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
