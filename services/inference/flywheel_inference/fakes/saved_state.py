"""The saved state of a gateway, in memory."""

from __future__ import annotations

import hashlib

from flywheel_inference.releases.release import FeatureSetContract


class MemoryState:
    """`serving.DesiredStateStore` and `models.ArtifactCache`."""

    def __init__(self) -> None:
        self._desired: bytes | None = None
        self._artifacts: dict[str, bytes] = {}
        self._contracts: dict[str, FeatureSetContract] = {}

    def save_desired(self, content: bytes) -> None:
        self._desired = content

    def load_desired(self) -> bytes | None:
        return self._desired

    def save_artifact(self, sha256: str, content: bytes) -> None:
        self._artifacts[sha256] = content

    def load_artifact(self, sha256: str) -> bytes | None:
        content = self._artifacts.get(sha256)
        return content if content is not None and hashlib.sha256(content).hexdigest() == sha256 else None

    def keep_artifacts(self, wanted: set[str]) -> None:
        self._artifacts = {sha256: content for sha256, content in self._artifacts.items() if sha256 in wanted}

    def save_contract(self, contract: FeatureSetContract) -> None:
        self._contracts[contract.feature_set] = contract

    def load_contract(self, feature_set: str) -> FeatureSetContract | None:
        return self._contracts.get(feature_set)
