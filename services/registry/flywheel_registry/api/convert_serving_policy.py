"""Serving policies ↔ protobuf."""

from __future__ import annotations

from flywheel_protos.registry.v1 import model_pb2 as pb
from flywheel_registry.api.convert import to_duration, to_seconds
from flywheel_registry.releases.serving_policy import Placement, RealTimeRule, ServingCost, ServingPolicy


def serving_policy(message: pb.Release) -> ServingPolicy | None:
    """The serving policy of a release; None without one."""
    if not message.HasField("serving_policy"):
        return None
    policy = message.serving_policy
    placement, cost = policy.placement, policy.cost
    delay = placement.max_queue_delay
    return ServingPolicy(
        Placement(placement.kind, placement.instance_count, placement.max_batch_rows, to_seconds(delay))
        if policy.HasField("placement")
        else None,
        tuple(map(_rule, policy.cost_mode.real_time)) if policy.HasField("cost_mode") else None,
        ServingCost(cost.unit, cost.per_answer, cost.per_model_second) if policy.HasField("cost") else None,
    )


def _rule(message: pb.RealTimeRule) -> RealTimeRule:
    return RealTimeRule(
        message.field,
        message.min if message.HasField("min") else None,
        message.max if message.HasField("max") else None,
        tuple(message.values),
    )


def serving_policy_to_proto(value: ServingPolicy) -> pb.ServingPolicy:
    message = pb.ServingPolicy()
    message.SetInParent()
    if (placement := value.placement) is not None:
        message.placement.SetInParent()
        message.placement.kind = placement.kind  # type: ignore[assignment]
        message.placement.instance_count = placement.instances
        message.placement.max_batch_rows = placement.max_batch_rows
        if placement.max_queue_delay_seconds:
            delay = to_duration(placement.max_queue_delay_seconds)
            assert delay is not None
            message.placement.max_queue_delay.CopyFrom(delay)
    if value.real_time is not None:
        message.cost_mode.SetInParent()
        for rule in value.real_time:
            message.cost_mode.real_time.add(
                field=rule.field, min=rule.minimum, max=rule.maximum, values=rule.values
            )
    if value.cost is not None:
        message.cost.CopyFrom(
            pb.ServingCost(
                unit=value.cost.unit,
                per_answer=value.cost.per_answer,
                per_model_second=value.cost.per_model_second,
            )
        )
    return message
