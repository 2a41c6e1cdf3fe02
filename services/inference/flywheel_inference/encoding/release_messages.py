"""Decodes the registry's ServingRelease to a release."""

from __future__ import annotations

import math

import numpy as np

from flywheel_common.names import Pattern
from flywheel_common.scoring.errors import WrongShape
from flywheel_common.scoring.output_values import output_values
from flywheel_common.scoring.rules import scoring_rules
from flywheel_common.signature import OutputKind, OutputSpec, Signature
from flywheel_common.signature_messages import tensor_array
from flywheel_common.tensors import TENSOR_DTYPES
from flywheel_inference.encoding.serving_policy_messages import serving_policy
from flywheel_inference.models.triton_config import model_name
from flywheel_inference.releases.release import ArtifactSpec, FallbackPolicy, GoldenRows, ReleaseSpec
from flywheel_protos.registry.v1 import model_pb2

VERSION_NAME = Pattern("projects/{project}/models/{model}/versions/{version:int}")


def release_spec(message: model_pb2.ServingRelease, digest: str) -> ReleaseSpec:
    """The release of a message with this digest. Raises ValueError or InvalidArgument with the reason why a
    gateway cannot serve it."""
    release, version = message.release, message.model_version
    parts = VERSION_NAME.parse(version.name)
    rules = scoring_rules(release, version.signature)
    signature = rules.signature
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
        calibration=rules.calibration,
        threshold=rules.threshold,
        segment_thresholds=rules.segment_thresholds,
        fallback=_fallback(release.fallback, signature.output),
        segment_keys=rules.segment_keys,
        policies=rules.policies,
        serving=serving,
    )


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
