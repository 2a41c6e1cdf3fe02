"""Gate policies and rollout policies ↔ protobuf."""

from __future__ import annotations

from flywheel_protos.registry.v1 import model_pb2 as pb
from flywheel_registry.api.convert import to_duration, to_seconds
from flywheel_registry.policies.errors import InvalidPolicy
from flywheel_registry.policies.gate_policy import GatePolicy, MetricThreshold
from flywheel_registry.policies.rollout_policy import RolloutPolicy


def gate_policy(message: pb.GatePolicy) -> GatePolicy:
    def bound(threshold: pb.MetricThreshold, field: str) -> float | None:
        return getattr(threshold, field) if threshold.HasField(field) else None

    return GatePolicy(
        tuple(
            MetricThreshold(
                t.metric, bound(t, "min"), bound(t, "max"), bound(t, "min_delta"), bound(t, "max_delta")
            )
            for t in message.offline
        ),
        _count(message.min_evaluation_rows, "gate_policy.min_evaluation_rows"),
    )


def _count(value: int, field: str) -> int:
    """Return a count that the database can store. Raises InvalidPolicy."""
    if value >= 1 << 53:
        raise InvalidPolicy(f"{field} is {value}, which is too large: the limit is 2^53 - 1.")
    return value


def gate_policy_to_proto(policy: GatePolicy) -> pb.GatePolicy:
    thresholds = [
        pb.MetricThreshold(
            metric=t.metric, min=t.min, max=t.max, min_delta=t.min_delta, max_delta=t.max_delta
        )
        for t in policy.offline
    ]
    return pb.GatePolicy(offline=thresholds, min_evaluation_rows=policy.min_evaluation_rows)


def rollout_policy(message: pb.RolloutPolicy) -> RolloutPolicy:
    return RolloutPolicy(
        canary_percents=tuple(message.canary_percents),
        shadow_percent=message.shadow_percent,
        shadow_min_labelled=_count(message.shadow_min_labelled, "rollout_policy.shadow_min_labelled"),
        shadow_max_log_loss_delta=message.shadow_max_log_loss_delta,
        min_bake_seconds=to_seconds(message.min_bake),
        canary_min_predictions=_count(
            message.canary_min_predictions, "rollout_policy.canary_min_predictions"
        ),
        canary_max_log_loss_delta=message.canary_max_log_loss_delta,
        max_error_rate=message.max_error_rate,
        max_p99_ms=message.max_p99_ms,
        max_score_shift=message.max_score_shift,
        max_step_seconds=to_seconds(message.max_step) if message.HasField("max_step") else None,
        alpha=message.alpha,
    )


def rollout_policy_to_proto(policy: RolloutPolicy) -> pb.RolloutPolicy:
    return pb.RolloutPolicy(
        canary_percents=policy.canary_percents,
        shadow_percent=policy.shadow_percent,
        shadow_min_labelled=policy.shadow_min_labelled,
        shadow_max_log_loss_delta=policy.shadow_max_log_loss_delta,
        min_bake=to_duration(policy.min_bake_seconds or None),
        canary_min_predictions=policy.canary_min_predictions,
        canary_max_log_loss_delta=policy.canary_max_log_loss_delta,
        max_error_rate=policy.max_error_rate,
        max_p99_ms=policy.max_p99_ms,
        max_score_shift=policy.max_score_shift,
        max_step=to_duration(policy.max_step_seconds),
        alpha=policy.alpha,
    )
