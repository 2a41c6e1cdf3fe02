"""Rollouts ↔ protobuf."""

from __future__ import annotations

from flywheel_protos.registry.v1 import model_pb2 as pb
from flywheel_protos.registry.v1 import registry_pb2
from flywheel_registry.api.convert import to_duration, to_timestamp
from flywheel_registry.api.convert_policies import rollout_policy_to_proto
from flywheel_registry.api.errors import InvalidVerdict
from flywheel_registry.evidence.names import EvidenceName
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.rollouts.rollout import Rollout
from flywheel_registry.rollouts.state_machine import RolloutState
from flywheel_registry.rollouts.verdict import Decision


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
        generation=value.generation,
        step_entered_at=to_timestamp(value.step_entered_at),
        step_ran=to_duration(value.step_ran_seconds or None),
    )


def _rollout_state(state: RolloutState) -> str:
    return f"ROLLOUT_STATE_{state}"


_VERDICTS = {
    registry_pb2.EXPERIMENT_VERDICT_SHIP: Decision.ADVANCE,
    registry_pb2.EXPERIMENT_VERDICT_ROLL_BACK: Decision.ROLL_BACK,
}


def verdict(number: int) -> Decision:
    """Parse the verdict of an experiment. Raises InvalidVerdict."""
    for value, decision in _VERDICTS.items():
        if value == number:
            return decision
    raise InvalidVerdict(f"verdict {number} ends no A/B test: send SHIP or ROLL_BACK.", field="verdict")
