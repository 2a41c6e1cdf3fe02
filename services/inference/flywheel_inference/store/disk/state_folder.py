"""The state folder, from which a gateway boots without its peers: desired state, contracts and artifacts.

Every file is written under another name and renamed, so a crash leaves the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path

from flywheel_inference.releases.release import FeatureSetContract, FieldSpec


class StateFolder:
    """`serving.DesiredStateStore` and `models.ArtifactCache`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._artifacts = folder / "artifacts"
        self._contracts = folder / "feature_sets"
        for directory in (folder, self._artifacts, self._contracts):
            directory.mkdir(parents=True, exist_ok=True)

    def gateway_id(self, make: str) -> str:
        """The stored gateway id; stores `make` when there is none yet."""
        file = self._folder / "gateway_id"
        if not file.exists():
            _write(file, make.encode())
        return file.read_text().strip()

    def save_desired(self, content: bytes) -> None:
        _write(self._folder / "desired.pb", hashlib.sha256(content).digest() + content)

    def load_desired(self) -> bytes | None:
        try:
            content = (self._folder / "desired.pb").read_bytes()
        except FileNotFoundError:
            return None
        digest, content = content[:32], content[32:]
        return content if hashlib.sha256(content).digest() == digest else None

    def save_artifact(self, sha256: str, content: bytes) -> None:
        _write(self._artifacts / sha256, content)

    def load_artifact(self, sha256: str) -> bytes | None:
        try:
            content = (self._artifacts / sha256).read_bytes()
        except FileNotFoundError:
            return None
        return content if hashlib.sha256(content).hexdigest() == sha256 else None

    def keep_artifacts(self, wanted: set[str]) -> None:
        for file in self._artifacts.iterdir():
            if file.name not in wanted:
                file.unlink(missing_ok=True)

    def save_contract(self, contract: FeatureSetContract) -> None:
        content = {
            "feature_set": contract.feature_set,
            "join_keys": [[f.name, f.data_type] for f in contract.join_keys],
            "request_fields": [[f.name, f.data_type] for f in contract.request_fields],
        }
        _write(self._contract_file(contract.feature_set), json.dumps(content).encode())

    def load_contract(self, feature_set: str) -> FeatureSetContract | None:
        try:
            content = json.loads(self._contract_file(feature_set).read_bytes())
            return FeatureSetContract(
                feature_set=feature_set,
                join_keys=tuple(FieldSpec(str(n), int(t)) for n, t in content["join_keys"]),
                request_fields=tuple(FieldSpec(str(n), int(t)) for n, t in content["request_fields"]),
            )
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def _contract_file(self, feature_set: str) -> Path:
        return self._contracts / f"{hashlib.sha256(feature_set.encode()).hexdigest()}.json"


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(6)}.new")
    with temporary.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    temporary.replace(file)
