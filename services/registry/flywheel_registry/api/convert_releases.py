"""Releases ↔ protobuf."""

from __future__ import annotations

from datetime import datetime

from flywheel_common.value import from_python, to_python
from flywheel_protos.registry.v1 import model_pb2 as pb
from flywheel_registry.api.convert import to_duration, to_seconds, to_timestamp
from flywheel_registry.api.convert_serving_policy import serving_policy, serving_policy_to_proto
from flywheel_registry.models.names import VersionName
from flywheel_registry.releases.errors import WrongModel
from flywheel_registry.releases.release import (
    ALLOW,
    Calibration,
    FeaturePolicy,
    Isotonic,
    Platt,
    Release,
    Temperature,
)


def release(message: pb.Release, model_name: str) -> Release:
    version_name = VersionName.parse(message.model_version)
    if version_name.parent != model_name:
        raise WrongModel(f"{version_name} is not a version of {model_name}.")
    calibration: Calibration | None = None
    match message.calibration.WhichOneof("kind"):
        case "platt":
            calibration = Platt(message.calibration.platt.slope, message.calibration.platt.intercept)
        case "isotonic":
            calibration = Isotonic(
                tuple(message.calibration.isotonic.x), tuple(message.calibration.isotonic.y)
            )
        case "temperature":
            calibration = Temperature(message.calibration.temperature.temperature)
    fallback = message.fallback
    return Release(
        model_name,
        version_name.number,
        feature_set=message.feature_set,
        calibration=calibration,
        threshold=message.threshold,
        has_fallback=message.HasField("fallback"),
        default_score=fallback.default_score if fallback.HasField("default_score") else None,
        cached_max_age_seconds=to_seconds(fallback.cached_max_age)
        if fallback.HasField("cached_max_age")
        else None,
        segment_keys=tuple(message.segment_keys),
        segment_thresholds=dict(message.segment_thresholds),
        default_values=tuple(fallback.default_values),
        feature_policies=tuple(map(_policy_from_proto, message.feature_policies)),
        serving=serving_policy(message),
    )


def _policy_from_proto(message: pb.FeaturePolicy) -> FeaturePolicy:
    default = to_python(message.default_value)
    if isinstance(default, datetime):
        default = default.isoformat()
    return FeaturePolicy(message.feature, message.missing or ALLOW, message.stale or ALLOW, default)


def release_to_proto(value: Release) -> pb.Release:
    message = pb.Release(
        name=value.name,
        model_version=VersionName.of(value.model, value.version),
        feature_set=value.feature_set,
        threshold=value.threshold,
        segment_keys=value.segment_keys,
        segment_thresholds=value.segment_thresholds,
        feature_policies=[
            pb.FeaturePolicy(
                feature=policy.feature,
                missing=policy.missing,  # type: ignore[arg-type]
                stale=policy.stale,  # type: ignore[arg-type]
                default_value=from_python(policy.default) if policy.default is not None else None,
            )
            for policy in value.feature_policies
        ],
        created_at=to_timestamp(value.created_at),
        created_by=value.created_by,
    )
    match value.calibration:
        case Platt(slope, intercept):
            message.calibration.platt.CopyFrom(pb.Calibration.Platt(slope=slope, intercept=intercept))
        case Isotonic(x, y):
            message.calibration.isotonic.CopyFrom(pb.Calibration.Isotonic(x=x, y=y))
        case Temperature(temperature):
            message.calibration.temperature.temperature = temperature
    if value.serving is not None:
        message.serving_policy.CopyFrom(serving_policy_to_proto(value.serving))
    if value.has_fallback:
        fallback = pb.Fallback(
            default_score=value.default_score,
            cached_max_age=to_duration(value.cached_max_age_seconds),
            default_values=value.default_values,
        )
        message.fallback.CopyFrom(fallback)
    return message
