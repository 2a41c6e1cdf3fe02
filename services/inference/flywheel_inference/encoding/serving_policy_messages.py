"""Decodes the serving policy of a release."""

from __future__ import annotations

from flywheel_inference.releases.serving_policy import (
    MAX_BATCH_ROWS,
    CostMode,
    Placement,
    RealTimeRule,
    ServingCost,
    ServingPolicy,
)
from flywheel_protos.registry.v1 import model_pb2 as pb


def serving_policy(message: pb.ServingPolicy) -> ServingPolicy:
    """Raises ValueError with the reason why a gateway cannot serve it."""
    placement, cost = message.placement, message.cost
    if placement.kind not in (
        pb.INSTANCE_KIND_UNSPECIFIED,
        pb.INSTANCE_KIND_CPU,
        pb.INSTANCE_KIND_GPU,
    ):
        raise ValueError("its model needs a kind of instance that this gateway does not know")
    return ServingPolicy(
        Placement(
            gpu=placement.kind == pb.INSTANCE_KIND_GPU,
            instances=placement.instance_count,
            max_batch_rows=min(placement.max_batch_rows or MAX_BATCH_ROWS, MAX_BATCH_ROWS),
            max_queue_delay_micros=placement.max_queue_delay.ToMicroseconds(),
        ),
        CostMode(tuple(map(_rule, message.cost_mode.real_time))) if message.HasField("cost_mode") else None,
        ServingCost(cost.per_answer, cost.per_model_second) if message.HasField("cost") else None,
    )


def _rule(message: pb.RealTimeRule) -> RealTimeRule:
    return RealTimeRule(
        message.field,
        message.min if message.HasField("min") else None,
        message.max if message.HasField("max") else None,
        frozenset(message.values),
    )
