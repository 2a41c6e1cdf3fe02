"""Gate policies and rollout policies ↔ protobuf."""

from __future__ import annotations

from flywheel_protos.registry.v1 import experiment_rule_pb2 as rule_pb
from flywheel_protos.registry.v1 import model_pb2 as pb
from flywheel_registry.api.convert import to_duration, to_seconds
from flywheel_registry.policies.errors import InvalidPolicy
from flywheel_registry.policies.gate_policy import (
    ExperimentRequirement,
    ExperimentRule,
    GatePolicy,
    MetricThreshold,
)
from flywheel_registry.policies.rollout_policy import RolloutPolicy, StepOverride

_REQUIREMENT = "EXPERIMENT_REQUIREMENT_"


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
        message.min_approvals,
        _experiment_rule(message.experiment),
    )


def _experiment_rule(message: rule_pb.ExperimentRule) -> ExperimentRule | None:
    unset = rule_pb.EXPERIMENT_REQUIREMENT_UNSPECIFIED
    if message.requirement == unset and not message.experiment:
        return None
    if message.requirement == unset or message.requirement not in rule_pb.ExperimentRequirement.values():
        raise InvalidPolicy("gate_policy.experiment.requirement is not set or unknown.")
    name = rule_pb.ExperimentRequirement.Name(message.requirement)
    return ExperimentRule(ExperimentRequirement(name.removeprefix(_REQUIREMENT)), message.experiment)


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
    return pb.GatePolicy(
        offline=thresholds,
        min_evaluation_rows=policy.min_evaluation_rows,
        min_approvals=policy.min_approvals,
        experiment=_experiment_rule_to_proto(policy.experiment),
    )


def _experiment_rule_to_proto(rule: ExperimentRule | None) -> rule_pb.ExperimentRule | None:
    if rule is None:
        return None
    return rule_pb.ExperimentRule(
        requirement=f"{_REQUIREMENT}{rule.requirement}",
        experiment=rule.experiment,
    )


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
        max_step_seconds=_duration(message, "max_step"),
        alpha=message.alpha,
        min_wall_bake_seconds=_duration(message, "min_wall_bake"),
        load_timeout_seconds=_duration(message, "load_timeout"),
        steps=tuple(map(_step, message.steps)),
        until_verdict=message.until_verdict,
    )


def _step(message: pb.RolloutStepPolicy) -> StepOverride:
    def value(field: str) -> float | None:
        return getattr(message, field) if message.HasField(field) else None

    samples = (
        _count(message.min_samples, "rollout_policy.steps.min_samples")
        if message.HasField("min_samples")
        else None
    )
    return StepOverride(
        percent=message.percent,
        min_bake_seconds=_duration(message, "min_bake"),
        min_wall_bake_seconds=_duration(message, "min_wall_bake"),
        max_step_seconds=_duration(message, "max_step"),
        min_samples=samples,
        max_log_loss_delta=value("max_log_loss_delta"),
        max_error_rate=value("max_error_rate"),
        max_p99_ms=value("max_p99_ms"),
        max_score_shift=value("max_score_shift"),
    )


def _duration(message: pb.RolloutPolicy | pb.RolloutStepPolicy, field: str) -> float | None:
    """Return a duration in seconds, None when it is not set."""
    return to_seconds(getattr(message, field)) if message.HasField(field) else None


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
        min_wall_bake=to_duration(policy.min_wall_bake_seconds),
        load_timeout=to_duration(policy.load_timeout_seconds),
        steps=[
            pb.RolloutStepPolicy(
                percent=step.percent,
                min_bake=to_duration(step.min_bake_seconds),
                min_wall_bake=to_duration(step.min_wall_bake_seconds),
                max_step=to_duration(step.max_step_seconds),
                min_samples=step.min_samples,
                max_log_loss_delta=step.max_log_loss_delta,
                max_error_rate=step.max_error_rate,
                max_p99_ms=step.max_p99_ms,
                max_score_shift=step.max_score_shift,
            )
            for step in policy.steps
        ],
        until_verdict=policy.until_verdict,
    )
