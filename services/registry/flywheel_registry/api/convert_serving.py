"""Desired state, serving history and gateway reports ↔ protobuf."""

from __future__ import annotations

from datetime import UTC

from flywheel_protos.registry.v1 import model_pb2 as pb
from flywheel_protos.registry.v1 import registry_pb2
from flywheel_registry.api.convert import to_timestamp
from flywheel_registry.api.convert_models import version_to_proto
from flywheel_registry.api.convert_releases import release_to_proto
from flywheel_registry.models.names import VersionName
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.rollouts.names import RolloutName
from flywheel_registry.serving.desired_state import ServedRelease, ServingModel
from flywheel_registry.serving.gateways import Gateway, ObservedModel
from flywheel_registry.serving.history import ServingSpan


def _served_to_proto(value: ServedRelease | None) -> pb.ServingRelease | None:
    if value is None:
        return None
    return pb.ServingRelease(
        release=release_to_proto(value.release), model_version=version_to_proto(value.version)
    )


def serving_to_proto(value: ServingModel) -> pb.ServingModel:
    return pb.ServingModel(
        model=value.model,
        generation=value.generation,
        champion=_served_to_proto(value.champion),
        challenger=_served_to_proto(value.challenger),
        rollout=RolloutName.of(value.model, value.rollout),
        shadow_percent=value.shadow_percent,
        challenger_percent=value.challenger_percent,
        warm=[message for item in value.warm if (message := _served_to_proto(item)) is not None],
    )


def span_to_proto(model_name: str, span: ServingSpan) -> registry_pb2.ServingSpan:
    message = registry_pb2.ServingSpan(
        release=ReleaseName.of(model_name, span.release),
        model_version=VersionName.of(model_name, span.version),
        until=to_timestamp(span.until),
        reason=span.reason,
    )
    # `from` is a keyword, so the field is not an attribute.
    getattr(message, "from").FromDatetime(span.since.astimezone(UTC))
    return message


def observed(message: pb.ObservedModel) -> ObservedModel:
    return ObservedModel(
        message.model, message.generation, tuple(message.ready_releases), dict(message.failures)
    )


def gateway_to_proto(value: Gateway) -> pb.Gateway:
    return pb.Gateway(
        id=value.id,
        last_heartbeat=to_timestamp(value.last_heartbeat),
        live=value.live,
        observed=[
            pb.ObservedModel(
                model=o.model, generation=o.generation, ready_releases=o.ready_releases, failures=o.failures
            )
            for o in value.observed
        ],
    )
