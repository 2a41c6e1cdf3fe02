"""A model version: an immutable trained model with its declared artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from flywheel_common.signature import Signature
from flywheel_common.tensors import Tensor
from flywheel_registry.models.errors import ArtifactsPending, InvalidVersion, VersionNotChecked
from flywheel_registry.stages.transitions import Stage

DEFAULT_TOLERANCE = 1e-4
"""Largest difference between a golden output and a model's output when the golden rows name none."""


@dataclass(frozen=True, slots=True)
class GoldenRows:
    """Rows with known answers: the input tensors and the output tensor before calibration.

    `tolerance` is the largest allowed absolute difference of the output; 0 means DEFAULT_TOLERANCE.
    """

    tensors: Sequence[Tensor] = ()
    output: Tensor | None = None
    tolerance: float = 0.0

    @property
    def row_count(self) -> int:
        """The number of rows; 0 without an output."""
        return self.output.shape[0] if self.output is not None and self.output.shape else 0


class ArtifactState(StrEnum):
    """Whether all bytes of a version are stored and its check has passed."""

    PENDING = "PENDING"
    STORED = "STORED"
    READY = "READY"
    INVALID = "INVALID"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A declared file. `sha256` is lower-case hex; `stored` means that its bytes were uploaded."""

    name: str
    size_bytes: int
    sha256: str
    stored: bool = False


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A model version; `number` is 0 before it is registered.

    `check_problems` is what its check found, empty when it passed, None before the check.
    """

    model: str
    number: int = 0
    stage: Stage = Stage.NONE
    training_run: str = ""
    framework: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    feature_set: str = ""
    training_dataset: str = ""
    signature: Signature = field(default_factory=Signature)
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
    check_problems: Sequence[str] | None = None

    @property
    def name(self) -> str:
        """The full resource name."""
        return f"{self.model}/versions/{self.number}"

    @property
    def artifact_state(self) -> ArtifactState:
        """READY when every declared artifact is stored and the check passed."""
        if not all(a.stored for a in self.artifacts):
            return ArtifactState.PENDING
        if self.check_problems is None:
            return ArtifactState.STORED
        return ArtifactState.INVALID if self.check_problems else ArtifactState.READY


@dataclass(frozen=True, slots=True)
class FeatureUse:
    """A model version that was trained on a feature set, or is released with it."""

    model: str
    number: int
    stage: Stage
    feature_set: str


def require_stored(version: ModelVersion) -> None:
    """Raise ArtifactsPending, naming the missing files, unless every artifact is stored."""
    if version.artifact_state is ArtifactState.PENDING:
        missing = ", ".join(a.name for a in version.artifacts if not a.stored)
        raise ArtifactsPending(f"Bytes of {version.name} are missing: upload {missing} first.")


def require_ready(version: ModelVersion) -> None:
    """Raise ArtifactsPending, VersionNotChecked or InvalidVersion unless the version passed its check."""
    require_stored(version)
    if version.check_problems is None:
        raise VersionNotChecked(f"{version.name} has not been checked: call CheckModelVersion.")
    if version.check_problems:
        raise InvalidVersion(f"{version.name} failed its check. {' '.join(version.check_problems)}")
