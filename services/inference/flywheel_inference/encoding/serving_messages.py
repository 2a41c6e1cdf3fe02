"""Decodes the registry's WatchServingResponse to the desired state."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument
from flywheel_inference.encoding.release_messages import release_spec
from flywheel_inference.releases.release import ReleaseSpec
from flywheel_inference.serving.desired_state import DesiredModel, Undecodable
from flywheel_protos.registry.v1 import model_pb2, registry_pb2


def desired_models(content: bytes) -> list[DesiredModel]:
    """The models of a serialized WatchServingResponse."""
    response = registry_pb2.WatchServingResponse.FromString(content)
    return [
        DesiredModel(
            model=model.model,
            generation=model.generation,
            champion=_spec(model.champion),
            challenger=_spec(model.challenger),
            rollout=model.rollout,
            shadow_percent=model.shadow_percent,
            challenger_percent=model.challenger_percent,
            warm=tuple(s for s in map(_spec, model.warm) if s is not None),
        )
        for model in response.models
    ]


def _spec(message: model_pb2.ServingRelease) -> ReleaseSpec | Undecodable | None:
    if not message.release.name:
        return None
    try:
        return release_spec(message)
    except (ValueError, InvalidArgument) as error:
        return Undecodable(message.release.name, f"The release cannot be served: {error}.")
