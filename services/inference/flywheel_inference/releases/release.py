"""A release: feature set, model version, calibration, threshold and fallback as one immutable bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from flywheel_common.arrays import Array, Floats, Mask
from flywheel_common.scoring.calibration import Calibration, Identity
from flywheel_common.scoring.decision import decisions, scores
from flywheel_common.scoring.feature_policy import FeaturePolicy
from flywheel_common.signature import BOOL, FLOAT32, FLOAT32_VECTOR, Signature
from flywheel_inference.releases.serving_policy import ServingPolicy

_EXACT_IN_FLOAT32 = frozenset({BOOL, FLOAT32, FLOAT32_VECTOR})
"""Data types of which float32 holds every value."""


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """A typed field. `data_type` is the number of a types.v1.DataType. `vector_size`: elements of each
    vector; 0 for other types."""

    name: str
    data_type: int
    vector_size: int = 0


@dataclass(frozen=True)
class FeatureSetContract:
    """What a caller must send for a feature set: join keys in key order, and request fields.

    `features`: what it returns, in order; empty if `feature_set` does not name a version, or if the contract
    was saved by a gateway that did not read them.
    """

    feature_set: str
    join_keys: tuple[FieldSpec, ...]
    request_fields: tuple[FieldSpec, ...]
    features: tuple[FieldSpec, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the join keys and request fields, in order."""
        return tuple(spec.name for spec in (*self.join_keys, *self.request_fields))

    @cached_property
    def float32_elements(self) -> int:
        """Elements of a row of all features as float32; 0 if a type is not exact in it."""
        if any(feature.data_type not in _EXACT_IN_FLOAT32 for feature in self.features):
            return 0
        return sum(feature.vector_size or 1 for feature in self.features)


@dataclass(frozen=True, slots=True)
class ArtifactSpec:
    """One file of a model version. `sha256` is lower-case hexadecimal."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class GoldenRows:
    """Input tensors [rows, …] and the output tensor [rows, …], before calibration, that is expected for them
    within `tolerance` absolute."""

    tensors: Mapping[str, Array]
    output: Array
    tolerance: float = 1e-4


@dataclass(frozen=True, slots=True)
class FallbackPolicy:
    """Fallbacks of a release, applied in this order by `fallback.choice`.

    `cached_max_age_seconds`: maximum age of a cached batch prediction; 0 disables it.
    `default`: the values of the default answer, as many as the model's output has; None: the request fails.
    """

    default: tuple[float, ...] | None = None
    cached_max_age_seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class ReleaseSpec:
    """Everything needed to serve one release. `digest`: of its whole content. `triton_model` is the name of
    the model version inside Triton. `segment_thresholds`: thresholds of single segments, in place of
    `threshold`."""

    name: str
    digest: str
    model: str
    model_version: str
    triton_model: str
    feature_set: str
    signature: Signature
    artifacts: tuple[ArtifactSpec, ...]
    golden: GoldenRows
    calibration: Calibration = field(default_factory=Identity)
    threshold: float = 0.5
    segment_thresholds: Mapping[str, float] = field(default_factory=dict)
    fallback: FallbackPolicy = field(default_factory=FallbackPolicy)
    segment_keys: tuple[str, ...] = ()
    policies: tuple[FeaturePolicy, ...] = ()
    serving: ServingPolicy = field(default_factory=ServingPolicy)

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the release and its content."""
        return self.name, self.digest

    def scores(self, values: Floats) -> Floats:
        """[rows, width] calibrated values → the score of each row (`decision.scores`)."""
        return scores(self.signature.output.kind, values)

    def decisions(self, scores: Floats, thresholds: Sequence[float]) -> Mask:
        """The decision of each row from its score and its threshold (`requests.thresholds_of`); empty: the
        release's threshold for all."""
        return decisions(self.signature.output.kind, scores, thresholds or self.threshold)
