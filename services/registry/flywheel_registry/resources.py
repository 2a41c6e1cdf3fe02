"""What the registry holds, as values. Times are UTC wall time; names are full resource names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from flywheel_registry.policy import GatePolicy, RolloutPolicy
from flywheel_registry.rollout import Decision, Progress
from flywheel_registry.stages import Stage


@dataclass(frozen=True, slots=True)
class Model:
    """`production_release` and `production_version` are numbers, None before the first promotion."""

    name: str
    description: str = ""
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    gate_policy: GatePolicy = field(default_factory=GatePolicy)
    rollout_policy: RolloutPolicy = field(default_factory=RolloutPolicy)
    production_release: int | None = None
    production_version: int | None = None
    created_at: datetime | None = None
    revision: int = 1

    @property
    def etag(self) -> str:
        return f"r{self.revision}"

    @property
    def project(self) -> str:
        return self.name.split("/")[1]


@dataclass(frozen=True, slots=True)
class SignatureInput:
    """`data_type` is the number of `types.v1.DataType`."""

    name: str
    data_type: int
    vocabulary: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class GoldenRows:
    """Little-endian float32: `inputs` [row_count, inputs] row by row, `scores` [row_count]."""

    row_count: int = 0
    inputs: bytes = b""
    scores: bytes = b""
    tolerance: float = 0.0


class ArtifactState(StrEnum):
    PENDING = "PENDING"
    READY = "READY"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A declared file; `sha256` is lower-case hex; `stored` once its bytes matched it."""

    name: str
    size_bytes: int
    sha256: str
    stored: bool = False


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """`number` 0: not registered yet."""

    model: str
    number: int = 0
    stage: Stage = Stage.NONE
    training_run: str = ""
    framework: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    feature_set: str = ""
    training_dataset: str = ""
    signature: Sequence[SignatureInput] = ()
    artifacts: Sequence[Artifact] = ()
    golden_rows: GoldenRows = field(default_factory=GoldenRows)
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    parent_version: str = ""
    cause_alert: str = ""
    pipeline_run: str = ""
    registered_at: datetime | None = None
    registered_by: str = ""
    promoted_at: datetime | None = None
    promoted_by: str = ""

    @property
    def name(self) -> str:
        return f"{self.model}/versions/{self.number}"

    @property
    def artifact_state(self) -> ArtifactState:
        return ArtifactState.READY if all(a.stored for a in self.artifacts) else ArtifactState.PENDING


@dataclass(frozen=True, slots=True)
class Platt:
    """p = 1 / (1 + exp(-(slope * logit(score) + intercept)))."""

    slope: float
    intercept: float


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Piecewise linear through (x, y), constant outside."""

    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True)
class FeatureUse:
    """A model version that was trained on a feature set, or is released with it."""

    model: str
    number: int
    stage: Stage
    feature_set: str


@dataclass(frozen=True, slots=True)
class Release:
    """`version` is the number of a version of the same model; None of a calibration: identity; `cached_max_age_seconds`
    None: no cached answers."""

    model: str
    version: int
    number: int = 0
    feature_set: str = ""
    calibration: Platt | Isotonic | None = None
    threshold: float = 0.0
    default_score: float | None = None
    cached_max_age_seconds: float | None = None
    has_fallback: bool = False
    segment_keys: Sequence[str] = ()
    created_at: datetime | None = None
    created_by: str = ""

    @property
    def name(self) -> str:
        return f"{self.model}/releases/{self.number}"


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """One change of a rollout; `evidence` is a number or None; `entered_at` is wall time."""

    state: str
    challenger_percent: float
    entered_at: datetime
    reason: str
    evidence: int | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """`champion` and `challenger` are release numbers; `step_started_at` is event time, None until it is known."""

    model: str
    challenger: int
    challenger_version: int
    champion: int | None = None
    number: int = 0
    progress: Progress = field(default_factory=Progress)
    policy: RolloutPolicy = field(default_factory=RolloutPolicy)
    step_started_at: datetime | None = None
    last_decision: Decision | None = None
    reason: str = ""
    history: Sequence[RolloutStep] = ()
    created_at: datetime | None = None
    ended_at: datetime | None = None
    created_by: str = ""

    @property
    def name(self) -> str:
        return f"{self.model}/rollouts/{self.number}"

    def at(self, progress: Progress) -> Rollout:
        return replace(self, progress=progress)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Frozen proof of one decision; `kind` is OFFLINE, SHADOW or CANARY."""

    model: str
    kind: str
    version: int
    values: Mapping[str, float]
    findings: Sequence[str]
    passed: bool
    number: int = 0
    created_at: datetime | None = None

    @property
    def name(self) -> str:
        return f"{self.model}/evidence/{self.number}"


@dataclass(frozen=True, slots=True)
class ServedRelease:
    """A release with its version."""

    release: Release
    version: ModelVersion


@dataclass(frozen=True, slots=True)
class ServingModel:
    """One model's desired state with everything a gateway needs."""

    model: str
    generation: int
    champion: ServedRelease | None
    challenger: ServedRelease | None
    rollout: int | None
    shadow_percent: float
    challenger_percent: float
    warm: Sequence[ServedRelease] = ()

    @property
    def project(self) -> str:
        return self.model.split("/")[1]


@dataclass(frozen=True, slots=True)
class ObservedModel:
    """A gateway's word on one model."""

    model: str
    generation: int
    ready_releases: Sequence[str] = ()
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gateway:
    """`live`: its heartbeat is at most a second old. `project`: what it watches, empty for all."""

    id: str
    last_heartbeat: datetime
    live: bool
    observed: Sequence[ObservedModel]
    project: str = ""


@dataclass(frozen=True, slots=True)
class StageChanged:
    """A version moved; `release` when the move changed what serves."""

    model: str
    version: int
    from_stage: Stage
    to_stage: Stage
    actor: str
    reason: str
    release: int | None = None


@dataclass(frozen=True, slots=True)
class RolloutChanged:
    """A rollout changed its state or its share."""

    rollout: Rollout
    reason: str
