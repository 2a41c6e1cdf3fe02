"""Domain events → the envelopes of `model.stage_changed` and `rollout.changed`."""

from __future__ import annotations

from datetime import datetime

from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import build_event
from flywheel_protos.events.v1 import lifecycle_pb2
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_registry.names import ReleaseName, VersionName
from flywheel_registry.resources import RolloutChanged, StageChanged

SOURCE = "flywheel-registry"


def to_event(event: StageChanged | RolloutChanged, at: datetime) -> tuple[str, Event]:
    """(topic, envelope); the key is the model, so that a model's events keep their order."""
    if isinstance(event, StageChanged):
        moved = lifecycle_pb2.ModelStageChanged(
            model_version=VersionName.of(event.model, event.version),
            from_stage=event.from_stage.value,
            to_stage=event.to_stage.value,
            actor=event.actor,
            reason=event.reason,
            release=ReleaseName.of(event.model, event.release),
        )
        return topics.MODEL_STAGE_CHANGED, build_event(moved, source=SOURCE, key=event.model, event_time=at)
    rollout = event.rollout
    changed = lifecycle_pb2.RolloutChanged(
        rollout=rollout.name,
        state=rollout.progress.state.value,
        challenger_percent=rollout.progress.challenger_percent,
        reason=event.reason,
        champion_release=ReleaseName.of(rollout.model, rollout.champion),
        challenger_release=ReleaseName.of(rollout.model, rollout.challenger),
    )
    return topics.ROLLOUT_CHANGED, build_event(changed, source=SOURCE, key=rollout.model, event_time=at)
