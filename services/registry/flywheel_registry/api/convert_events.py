"""Domain events → the envelopes of `model.stage_changed` and `rollout.changed`."""

from __future__ import annotations

from datetime import datetime

from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import build_event
from flywheel_protos.events.v1 import lifecycle_pb2
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_registry.audit.chain import AuditHead
from flywheel_registry.events.lifecycle import RolloutChanged, StageChanged
from flywheel_registry.models.names import VersionName
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.rollouts.names import RolloutName

SOURCE = "flywheel-registry"


def to_event(
    event: StageChanged | RolloutChanged, at: datetime, head: AuditHead, *, registry_id: str = ""
) -> tuple[str, Event]:
    """Return (topic, envelope). The key is the model, which keeps a model's events in order."""
    if isinstance(event, StageChanged):
        stage = lifecycle_pb2.ModelStageChanged(
            model_version=VersionName.of(event.model, event.version),
            from_stage=event.from_stage.value,
            to_stage=event.to_stage.value,
            actor=event.actor,
            reason=event.reason,
            release=ReleaseName.of(event.model, event.release),
            audit_sequence=head.sequence,
            audit_hash=head.hash,
            registry_id=registry_id,
        )
        return topics.MODEL_STAGE_CHANGED, build_event(stage, source=SOURCE, key=event.model, event_time=at)
    rollout = lifecycle_pb2.RolloutChanged(
        rollout=RolloutName.of(event.model, event.rollout),
        state=event.state,
        challenger_percent=event.challenger_percent,
        reason=event.reason,
        champion_release=ReleaseName.of(event.model, event.champion),
        challenger_release=ReleaseName.of(event.model, event.challenger),
        alert=event.alert,
        audit_sequence=head.sequence,
        audit_hash=head.hash,
        registry_id=registry_id,
    )
    return topics.ROLLOUT_CHANGED, build_event(rollout, source=SOURCE, key=event.model, event_time=at)
