"""Decodes the registry's WatchServingResponse to the desired state."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from flywheel_common.errors import InvalidArgument
from flywheel_common.names import Pattern
from flywheel_inference.models.triton_config import model_name
from flywheel_inference.releases.calibration import Calibration, Identity, Isotonic, Platt
from flywheel_inference.releases.release import (
    ArtifactSpec,
    FallbackPolicy,
    GoldenRows,
    InputSpec,
    ReleaseSpec,
)
from flywheel_inference.serving.desired_state import DesiredModel, Undecodable
from flywheel_protos.registry.v1 import model_pb2, registry_pb2

VERSION_NAME = Pattern("projects/{project}/models/{model}/versions/{version:int}")


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
        return _release(message)
    except (ValueError, InvalidArgument) as error:
        return Undecodable(message.release.name, f"The release cannot be served: {error}.")


def _release(message: model_pb2.ServingRelease) -> ReleaseSpec:
    release, version = message.release, message.model_version
    parts = VERSION_NAME.parse(version.name)
    inputs = tuple(InputSpec(i.name, i.data_type, tuple(i.vocabulary)) for i in version.signature.inputs)
    if not inputs:
        raise ValueError("its signature has no inputs")
    policy = release.fallback
    return ReleaseSpec(
        name=release.name,
        digest=hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest(),
        model=f"projects/{parts['project']}/models/{parts['model']}",
        model_version=version.name,
        triton_model=model_name(str(parts["project"]), str(parts["model"]), int(parts["version"])),
        feature_set=release.feature_set,
        inputs=inputs,
        artifacts=tuple(ArtifactSpec(a.name, a.size_bytes, a.sha256.lower()) for a in version.artifacts),
        golden=_golden(version.golden_rows, len(inputs)),
        calibration=_calibration(release.calibration),
        threshold=release.threshold,
        fallback=FallbackPolicy(
            default_score=policy.default_score if policy.HasField("default_score") else None,
            cached_max_age_seconds=policy.cached_max_age.ToNanoseconds() / 1e9
            if policy.HasField("cached_max_age")
            else 0.0,
        ),
        segment_keys=tuple(release.segment_keys),
    )


def _golden(message: model_pb2.GoldenRows, inputs: int) -> GoldenRows:
    rows = message.row_count
    if len(message.inputs) != rows * inputs * 4 or len(message.scores) != rows * 4:
        raise ValueError(f"its {rows} golden rows do not have {inputs} inputs and one score each")
    return GoldenRows(
        inputs=np.frombuffer(message.inputs, "<f4").reshape(rows, inputs),
        scores=np.frombuffer(message.scores, "<f4"),
        tolerance=message.tolerance or 1e-4,
    )


def _calibration(message: model_pb2.Calibration) -> Calibration:
    kind = message.WhichOneof("kind")
    if kind == "platt":
        if not (math.isfinite(message.platt.slope) and math.isfinite(message.platt.intercept)):
            raise ValueError("its calibration has no finite slope and intercept")
        return Platt(message.platt.slope, message.platt.intercept)
    if kind == "isotonic":
        return Isotonic(tuple(message.isotonic.x), tuple(message.isotonic.y))
    return Identity()
