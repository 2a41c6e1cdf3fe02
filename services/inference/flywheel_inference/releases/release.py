"""A release: feature set, model version, calibration, threshold and fallback as one immutable bundle."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from flywheel_inference.releases.calibration import Calibration, Identity


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """A typed field. `data_type` is the number of a types.v1.DataType. `vector_size`: elements of each
    vector; 0 for other types."""

    name: str
    data_type: int
    vector_size: int = 0


@dataclass(frozen=True, slots=True)
class FeatureSetContract:
    """What a caller must send for a feature set: join keys in key order, and request fields."""

    feature_set: str
    join_keys: tuple[FieldSpec, ...]
    request_fields: tuple[FieldSpec, ...]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One model input. With a vocabulary, the model gets the value's index in it, or -1 for an unknown
    value."""

    name: str
    data_type: int
    vocabulary: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ArtifactSpec:
    """One file of a model version. `sha256` is lower-case hexadecimal."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class GoldenRows:
    """Inputs [rows, inputs] float32 and the raw scores [rows] float32 expected for them, within `tolerance`
    absolute."""

    inputs: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    tolerance: float = 1e-4


@dataclass(frozen=True, slots=True)
class FallbackPolicy:
    """Fallbacks of a release, applied in this order by `fallback.choice`.

    `cached_max_age_seconds`: maximum age of a cached batch prediction; 0 disables it.
    `default_score`: the default answer; None: the request fails.
    """

    default_score: float | None = None
    cached_max_age_seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class ReleaseSpec:
    """Everything needed to serve one release. `digest`: of its whole content. `triton_model` is the name of
    the model version inside Triton."""

    name: str
    digest: str
    model: str
    model_version: str
    triton_model: str
    feature_set: str
    inputs: tuple[InputSpec, ...]
    artifacts: tuple[ArtifactSpec, ...]
    golden: GoldenRows
    calibration: Calibration = field(default_factory=Identity)
    threshold: float = 0.5
    fallback: FallbackPolicy = field(default_factory=FallbackPolicy)
    segment_keys: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the release and its content."""
        return self.name, self.digest
