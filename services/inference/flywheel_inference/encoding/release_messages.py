"""Decodes the registry's ServingRelease to a release."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from flywheel_common.names import Pattern
from flywheel_common.signature import OutputKind, OutputSpec, Signature, problems
from flywheel_common.signature_messages import signature_from_message, tensor_array
from flywheel_common.tensors import TENSOR_DTYPES
from flywheel_common.value import coerce
from flywheel_inference.encoding.serving_policy_messages import serving_policy
from flywheel_inference.models.errors import WrongShape
from flywheel_inference.models.output_values import output_values
from flywheel_inference.models.triton_config import model_name
from flywheel_inference.releases.calibration import Calibration, Identity, Isotonic, Platt, Temperature
from flywheel_inference.releases.feature_policy import ALLOW, DEFAULT, FeaturePolicy
from flywheel_inference.releases.release import ArtifactSpec, FallbackPolicy, GoldenRows, ReleaseSpec
from flywheel_protos.registry.v1 import model_pb2

VERSION_NAME = Pattern("projects/{project}/models/{model}/versions/{version:int}")
_CALIBRATES = {
    "platt": OutputKind.BINARY,
    "isotonic": OutputKind.BINARY,
    "temperature": OutputKind.MULTICLASS,
}
"""Kind of calibration → the kind of output that it is for."""


def release_spec(message: model_pb2.ServingRelease, digest: str) -> ReleaseSpec:
    """The release of a message with this digest. Raises ValueError or InvalidArgument with the reason why a
    gateway cannot serve it."""
    release, version = message.release, message.model_version
    parts = VERSION_NAME.parse(version.name)
    signature = signature_from_message(version.signature)
    if not signature.inputs:
        raise ValueError("its signature has no inputs")
    if found := problems(signature):
        raise ValueError(" ".join(found))
    serving = serving_policy(release.serving_policy)
    return ReleaseSpec(
        name=release.name,
        digest=digest,
        model=f"projects/{parts['project']}/models/{parts['model']}",
        model_version=version.name,
        triton_model=model_name(str(parts["project"]), str(parts["model"]), int(parts["version"]))
        + serving.placement.suffix,
        feature_set=release.feature_set,
        signature=signature,
        artifacts=tuple(ArtifactSpec(a.name, a.size_bytes, a.sha256.lower()) for a in version.artifacts),
        golden=_golden(version.golden_rows, signature),
        calibration=_calibration(release.calibration, signature.output.kind),
        threshold=release.threshold,
        segment_thresholds=dict(release.segment_thresholds),
        fallback=_fallback(release.fallback, signature.output),
        segment_keys=tuple(release.segment_keys),
        policies=_policies(release.feature_policies, signature),
        serving=serving,
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


def _golden(message: model_pb2.GoldenRows, signature: Signature) -> GoldenRows:
    tolerance = message.tolerance or 1e-4
    tensors = {tensor.name: tensor_array(tensor) for tensor in message.tensors}
    output = tensor_array(message.output)
    rows = len(output) if output.ndim else 0
    declared = {
        spec.name: ((rows, *spec.shape), TENSOR_DTYPES.get(spec.data_type, np.dtype(object)))
        for spec in signature.input_tensors
    }
    if declared != {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}:
        raise ValueError(f"its {rows} golden rows do not have the tensors of its signature")
    if message.output.name != signature.output.tensor:
        raise ValueError(f"its golden rows have the output {message.output.name}")
    try:
        output_values(signature.output, output, rows)
    except WrongShape as error:
        raise ValueError(f"its golden rows do not fit its signature: {error.message}") from None
    return GoldenRows(tensors, output, tolerance)


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


def _fallback(message: model_pb2.Fallback, output: OutputSpec) -> FallbackPolicy:
    default: tuple[float, ...] | None = tuple(message.default_values) or None
    if output.kind in (OutputKind.BINARY, OutputKind.REGRESSION):
        if default is not None:
            raise ValueError(f"its default_values are not for a {output.kind.name} model")
        default = (message.default_score,) if message.HasField("default_score") else None
    elif message.HasField("default_score"):
        raise ValueError(f"its default_score is not for a {output.kind.name} model")
    if default is not None and (len(default) != output.width or not all(map(math.isfinite, default))):
        raise ValueError(f"its fallback does not have {output.width} finite default values")
    age = message.cached_max_age
    return FallbackPolicy(
        default=default,
        cached_max_age_seconds=age.ToNanoseconds() / 1e9 if message.HasField("cached_max_age") else 0.0,
    )
