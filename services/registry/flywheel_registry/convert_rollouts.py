"""Rollouts → protobuf, and the monitor's comparison that decides them."""

from __future__ import annotations

from flywheel_protos.monitor.v1 import monitor_pb2
from flywheel_protos.registry.v1 import model_pb2 as pb
from flywheel_registry.convert import from_timestamp, to_timestamp
from flywheel_registry.convert_policies import rollout_policy_to_proto
from flywheel_registry.names import EvidenceName, ReleaseName
from flywheel_registry.resources import Rollout
from flywheel_registry.rollout import Comparison, RolloutState, Variant


def rollout_to_proto(value: Rollout) -> pb.Rollout:
    decision = f"ROLLOUT_DECISION_{value.last_decision or 'UNSPECIFIED'}"
    return pb.Rollout(
        name=value.name,
        champion_release=ReleaseName.of(value.model, value.champion),
        challenger_release=ReleaseName.of(value.model, value.challenger),
        state=_rollout_state(value.progress.state),
        challenger_percent=value.progress.challenger_percent,
        policy=rollout_policy_to_proto(value.policy),
        step_started_at=to_timestamp(value.step_started_at),
        last_decision=decision,
        reason=value.reason,
        history=[
            pb.RolloutStep(
                state=_rollout_state(RolloutState(step.state)),
                challenger_percent=step.challenger_percent,
                entered_at=to_timestamp(step.entered_at),
                reason=step.reason,
                evidence=EvidenceName.of(value.model, step.evidence),
            )
            for step in value.history
        ],
        created_at=to_timestamp(value.created_at),
        ended_at=to_timestamp(value.ended_at),
        created_by=value.created_by,
    )


def _rollout_state(state: RolloutState) -> str:
    return f"ROLLOUT_STATE_{state}"


def compare_request(value: Rollout) -> monitor_pb2.CompareVariantsRequest:
    """The question about a rollout's current step."""
    shadow = value.progress.state is RolloutState.SHADOW
    return monitor_pb2.CompareVariantsRequest(
        rollout=value.name,
        champion_release=ReleaseName.of(value.model, value.champion),
        challenger_release=ReleaseName.of(value.model, value.challenger),
        mode=monitor_pb2.COMPARISON_MODE_SHADOW if shadow else monitor_pb2.COMPARISON_MODE_CANARY,
        start_time=to_timestamp(value.step_started_at),
        alpha=value.policy.level,
    )


def comparison(message: monitor_pb2.CompareVariantsResponse) -> Comparison:
    return Comparison(
        champion=_variant(message.champion),
        challenger=_variant(message.challenger),
        first_event=from_timestamp(message.first_event) if message.HasField("first_event") else None,
        last_event=from_timestamp(message.last_event) if message.HasField("last_event") else None,
        labelled=message.labelled,
        log_loss_delta=message.log_loss_delta,
        log_loss_delta_upper=message.log_loss_delta_upper,
        log_loss_delta_lower=message.log_loss_delta_lower,
        score_shift=message.score_shift,
    )


def _variant(message: monitor_pb2.VariantStatistics) -> Variant:
    return Variant(
        message.predictions,
        message.labelled,
        message.error_rate,
        message.latency_p99_ms,
        message.score_mean,
        message.score_stddev,
        message.log_loss if message.HasField("log_loss") else None,
    )
