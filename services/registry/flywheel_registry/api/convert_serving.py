"""Desired state, serving history and gateway reports ↔ protobuf."""

from __future__ import annotations

import hashlib
from datetime import UTC

from flywheel_protos.registry.v1 import model_pb2 as pb
from flywheel_protos.registry.v1 import registry_pb2
from flywheel_registry.api.convert import to_timestamp
from flywheel_registry.api.convert_models import version_to_proto
from flywheel_registry.api.convert_releases import release_to_proto
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.variant import Variant
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.releases.errors import WrongModel
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.releases.release import Release
from flywheel_registry.rollouts.names import RolloutName
from flywheel_registry.serving.desired_state import ServedRelease, ServingChange, ServingModel
from flywheel_registry.serving.gateways import Gateway, ObservedModel
from flywheel_registry.serving.history import ServingSpan


def spec(release: Release, version: ModelVersion) -> bytes:
    """The specification of a release: only what never changes, so that its digest stays."""
    whole = version_to_proto(version)
    message = pb.ServingRelease(
        release=release_to_proto(release),
        model_version=pb.ModelVersion(
            name=whole.name,
            feature_set=whole.feature_set,
            signature=whole.signature,
            artifacts=whole.artifacts,
            golden_rows=whole.golden_rows,
        ),
    )
    return message.SerializeToString(deterministic=True)


def spec_digest(release: Release, version: ModelVersion) -> str:
    """The digest by which gateways know a specification."""
    return hashlib.sha256(spec(release, version)).hexdigest()


def change_to_proto(value: ServingChange) -> registry_pb2.WatchServingResponse:
    return registry_pb2.WatchServingResponse(
        models=map(_serving_to_proto, value.models), removed_models=value.removed, snapshot=value.snapshot
    )


def _serving_to_proto(value: ServingModel) -> pb.ServingModel:
    return pb.ServingModel(
        model=value.model,
        generation=value.generation,
        champion=_reference(value.model, value.champion),
        challenger=_reference(value.model, value.challenger),
        rollout=RolloutName.of(value.model, value.rollout),
        shadow_percent=value.shadow_percent,
        challenger_percent=value.challenger_percent,
        variants=[
            pb.ServingVariant(
                name=one.variant.name,
                release=_reference(value.model, one.served),
                percent=one.variant.percent,
                shadow_percent=one.variant.shadow_percent,
            )
            for one in value.variants
        ],
        warm=[message for item in value.warm if (message := _reference(value.model, item)) is not None],
        warm_since=[time for when in value.warm_since if (time := to_timestamp(when)) is not None],
    )


def variant(message: pb.Variant, model: str) -> Variant:
    """Parse a variant. Raises WrongModel for a release of another model."""
    release = ReleaseName.parse(message.release)
    if release.parent != model:
        raise WrongModel(f"{release} is not a release of {model}.")
    return Variant(message.name, release.number, message.percent, message.shadow_percent)


def _reference(model: str, served: ServedRelease | None) -> pb.ServingReference | None:
    if served is None:
        return None
    return pb.ServingReference(release=ReleaseName.of(model, served.release), digest=served.digest)


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
