"""The saved state of a gateway, in memory; files of artifacts are written to a temporary folder."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import tempfile
import weakref
from pathlib import Path

from flywheel_inference.models.ports import ArtifactDraft
from flywheel_inference.releases.release import FeatureSetContract


class MemoryState:
    """`serving.DesiredStateStore` and `models.ArtifactCache`."""

    def __init__(self) -> None:
        self._desired: bytes | None = None
        self._artifacts: dict[str, bytes] = {}
        self._contracts: dict[str, FeatureSetContract] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="flywheel-memory-state-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def save_desired(self, content: bytes) -> None:
        self._desired = content

    def load_desired(self) -> bytes | None:
        return self._desired

    def save_artifact(self, sha256: str, content: bytes) -> None:
        self._artifacts[sha256] = content

    def load_artifact(self, sha256: str) -> bytes | None:
        content = self._artifacts.get(sha256)
        return content if content is not None and hashlib.sha256(content).hexdigest() == sha256 else None

    def artifact_file(self, sha256: str) -> Path | None:
        content = self.load_artifact(sha256)
        if content is None:
            return None
        # Renamed, because another load may be reading the file.
        written = self._folder / f"{sha256}.{secrets.token_hex(6)}"
        written.write_bytes(content)
        return written.replace(self._folder / sha256)

    def draft_artifact(self) -> ArtifactDraft:
        return _Draft(self)

    def keep_artifacts(self, wanted: set[str]) -> None:
        self._artifacts = {sha256: content for sha256, content in self._artifacts.items() if sha256 in wanted}

    def save_contract(self, contract: FeatureSetContract) -> None:
        self._contracts[contract.feature_set] = contract

    def load_contract(self, feature_set: str) -> FeatureSetContract | None:
        return self._contracts.get(feature_set)


class _Draft:
    """`models.ArtifactDraft`."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state
        self._content = b""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self._content).hexdigest()

    def write(self, piece: bytes) -> None:
        self._content += piece

    def keep(self) -> Path:
        self._state.save_artifact(self.sha256, self._content)
        kept = self._state.artifact_file(self.sha256)
        assert kept is not None
        return kept

    def discard(self) -> None:
        self._content = b""
