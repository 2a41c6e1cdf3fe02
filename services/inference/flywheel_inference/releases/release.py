"""What the gateway knows of a release: the immutable bundle of feature set, model version, calibration and threshold."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from flywheel_inference.releases.calibration import Calibration, Identity


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """A typed field; `data_type` is the number of a types.v1.DataType."""

    name: str
    data_type: int


@dataclass(frozen=True, slots=True)
class Contract:
    """What a caller must send for a feature set: join keys in key order, and request fields."""

    feature_set: str
    join_keys: tuple[FieldSpec, ...]
    request_fields: tuple[FieldSpec, ...]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One model input. With a vocabulary the model sees the value's index in it, -1 when unknown."""

    name: str
    data_type: int
    vocabulary: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ArtifactSpec:
    """One file of a model version; `sha256` is lower-case hex."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class GoldenRows:
    """Inputs [rows, inputs] float32 with the raw scores [rows] float32 they must give, within `tolerance` absolute."""

    inputs: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    tolerance: float = 1e-4


@dataclass(frozen=True, slots=True)
class FallbackPolicy:
    """What answers when the model cannot: a batch prediction at most `cached_max_age_seconds` old (0: none), then
    `default_score` (None: the request fails)."""

    default_score: float | None = None
    cached_max_age_seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class ReleaseSpec:
    """Everything needed to serve one release. `triton_model` is the name of its model version inside Triton."""

    name: str
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
