"""Decodes the registry's WatchServingResponse and its specifications, and encodes the saved state."""

from __future__ import annotations

from collections.abc import Iterable

from flywheel_common.errors import InvalidArgument
from flywheel_inference.encoding.release_messages import release_spec
from flywheel_inference.releases.release import ReleaseSpec
from flywheel_inference.routing.route import Variant
from flywheel_inference.serving.desired_state import DesiredChange, Reference, RoutedModel, Undecodable
from flywheel_protos.registry.v1 import model_pb2, registry_pb2


def desired_change(content: bytes) -> DesiredChange:
    """The change that a serialized WatchServingResponse describes."""
    response = registry_pb2.WatchServingResponse.FromString(content)
    return DesiredChange(
        models=tuple(map(_routed, response.models)),
        removed=tuple(response.removed_models),
        snapshot=response.snapshot,
    )


def saved_state(models: Iterable[RoutedModel]) -> bytes:
    """A snapshot of these models, which `desired_change` reads."""
    messages = [model_pb2.ServingModel.FromString(model.message) for model in models]
    return registry_pb2.WatchServingResponse(models=messages, snapshot=True).SerializeToString()


def release_of_spec(reference: Reference, content: bytes) -> ReleaseSpec | Undecodable:
    """The release of a serialized ServingRelease."""
    try:
        return release_spec(model_pb2.ServingRelease.FromString(content), reference.digest)
    # FromString raises DecodeError, which is a ValueError.
    except (ValueError, InvalidArgument) as error:
        return Undecodable(reference.release, f"The release cannot be served: {error}.")


def _routed(message: model_pb2.ServingModel) -> RoutedModel:
    return RoutedModel(
        model=message.model,
        generation=message.generation,
        champion=_reference(message.champion),
        challenger=_reference(message.challenger),
        rollout=message.rollout,
        shadow_percent=message.shadow_percent,
        challenger_percent=message.challenger_percent,
        warm=tuple(one for one in map(_reference, message.warm) if one is not None),
        warm_since=tuple(time.ToMicroseconds() / 1e6 for time in message.warm_since),
        variants=tuple(
            Variant(
                one.name, Reference(one.release.release, one.release.digest), one.percent, one.shadow_percent
            )
            for one in message.variants
        ),
        message=message.SerializeToString(),
    )


def _variant(message: model_pb2.ServingVariant) -> Variant[Reference]:
    release = Reference(message.release.release, message.release.digest)
    return Variant(message.name, release, message.percent, message.shadow_percent)


def _reference(message: model_pb2.ServingReference) -> Reference | None:
    return Reference(message.release, message.digest) if message.release else None
