"""What a release says about computing its answers, decoded from its message."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flywheel_common.scoring.calibration import Calibration, Identity, Isotonic, Platt, Temperature
from flywheel_common.scoring.feature_policy import ALLOW, DEFAULT, FeaturePolicy
from flywheel_common.signature import OutputKind, Signature, problems
from flywheel_common.signature_messages import signature_from_message
from flywheel_common.value import coerce
from flywheel_protos.registry.v1 import model_pb2

_CALIBRATES = {
    "platt": OutputKind.BINARY,
    "isotonic": OutputKind.BINARY,
    "temperature": OutputKind.MULTICLASS,
}
"""Kind of calibration → the kind of output that it is for."""


@dataclass(frozen=True, slots=True)
class ScoringRules:
    """Signature, feature policies, calibration and thresholds of a release."""

    signature: Signature
    calibration: Calibration = field(default_factory=Identity)
    threshold: float = 0.5
    segment_thresholds: Mapping[str, float] = field(default_factory=dict)
    segment_keys: tuple[str, ...] = ()
    policies: tuple[FeaturePolicy, ...] = ()

    @property
    def threshold_keys(self) -> tuple[str, ...]:
        """The segment keys whose values decide which threshold a row has."""
        named = {part.partition("=")[0] for name in self.segment_thresholds for part in name.split(",")}
        return tuple(key for key in self.segment_keys if key in named)


def scoring_rules(release: model_pb2.Release, signature: model_pb2.Signature) -> ScoringRules:
    """The rules of a release of a version with this signature. Raises ValueError or InvalidArgument with the
    reason why nothing can be scored with it."""
    decoded = signature_from_message(signature)
    if not decoded.inputs:
        raise ValueError("its signature has no inputs")
    if found := problems(decoded):
        raise ValueError(" ".join(found))
    return ScoringRules(
        signature=decoded,
        calibration=_calibration(release.calibration, decoded.output.kind),
        threshold=release.threshold,
        segment_thresholds=dict(release.segment_thresholds),
        segment_keys=tuple(release.segment_keys),
        policies=_policies(release.feature_policies, decoded),
    )


def _policies(messages: Iterable[model_pb2.FeaturePolicy], signature: Signature) -> tuple[FeaturePolicy, ...]:
    inputs = {i.name: i for i in signature.inputs}
    policies = []
    for message in messages:
        if (spec := inputs.get(message.feature)) is None:
            raise ValueError(f"its feature policy names {message.feature}, which is no input")
        default = coerce(message.default_value, spec.data_type, "default_value")
        if DEFAULT in (message.missing, message.stale) and (
            default is None or (spec.vector_size and len(default) != spec.vector_size)
        ):
            raise ValueError(f"its feature policy for {message.feature} has no default value of its size")
        policies.append(
            FeaturePolicy(message.feature, message.missing or ALLOW, message.stale or ALLOW, default)
        )
    return tuple(policies)


def _calibration(message: model_pb2.Calibration, output: OutputKind) -> Calibration:
    kind = message.WhichOneof("kind")
    if kind is None:
        return Identity()
    if _CALIBRATES[kind] is not output:
        raise ValueError(f"its {kind} calibration is not for a {output.name} model")
    if kind == "isotonic":
        return Isotonic(tuple(message.isotonic.x), tuple(message.isotonic.y))
    if kind == "temperature":
        return Temperature(message.temperature.temperature)
    if not (math.isfinite(message.platt.slope) and math.isfinite(message.platt.intercept)):
        raise ValueError("its calibration has no finite slope and intercept")
    return Platt(message.platt.slope, message.platt.intercept)
