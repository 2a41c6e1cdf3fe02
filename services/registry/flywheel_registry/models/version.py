"""A model version: an immutable trained model with its declared artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from flywheel_registry.models.errors import ArtifactsPending
from flywheel_registry.stages.transitions import Stage


@dataclass(frozen=True, slots=True)
class SignatureInput:
    """One input of the model, in tensor order. `data_type` is the number of `types.v1.DataType`."""

    name: str
    data_type: int
    vocabulary: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class GoldenRows:
    """Rows with known scores in little-endian float32: `inputs` [row_count, inputs], `scores` [row_count]."""

    row_count: int = 0
    inputs: bytes = b""
    scores: bytes = b""
    tolerance: float = 0.0


class ArtifactState(StrEnum):
    """Whether all bytes of a version are stored."""

    PENDING = "PENDING"
    READY = "READY"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A declared file. `sha256` is lower-case hex; `stored` means that its bytes were uploaded."""

    name: str
    size_bytes: int
    sha256: str
    stored: bool = False


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A model version; `number` is 0 before it is registered."""

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
        """The full resource name."""
        return f"{self.model}/versions/{self.number}"

    @property
    def artifact_state(self) -> ArtifactState:
        """READY when every declared artifact is stored."""
        return ArtifactState.READY if all(a.stored for a in self.artifacts) else ArtifactState.PENDING


@dataclass(frozen=True, slots=True)
class FeatureUse:
    """A model version that was trained on a feature set, or is released with it."""

    model: str
    number: int
    stage: Stage
    feature_set: str


def require_ready(version: ModelVersion) -> None:
    """Raise ArtifactsPending, naming the missing files, unless every artifact is stored."""
    if version.artifact_state is not ArtifactState.READY:
        missing = ", ".join(a.name for a in version.artifacts if not a.stored)
        raise ArtifactsPending(f"Bytes of {version.name} are missing: upload {missing} first.")
