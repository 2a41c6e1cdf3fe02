"""The state folder, from which a gateway boots without its peers: desired state, contracts and artifacts.

Every file is written under another name and renamed, so a crash leaves the old file or the new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from dataclasses import astuple
from pathlib import Path

from flywheel_inference.models.ports import ArtifactDraft
from flywheel_inference.releases.release import FeatureSetContract, FieldSpec
from flywheel_inference.serving.errors import StateInUse

UNFINISHED = ".new"
"""End of the name of a file that is being written."""


class StateFolder:
    """`serving.DesiredStateStore` and `models.ArtifactCache`. One gateway owns a folder until `close`, or
    until its process ends."""

    def __init__(self, folder: Path) -> None:
        """Raises StateInUse when another gateway owns the folder."""
        self._folder = folder
        self._artifacts = folder / "artifacts"
        self._contracts = folder / "feature_sets"
        for directory in (folder, self._artifacts, self._contracts):
            directory.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise StateInUse(
                f"Another gateway uses the state folder {folder}: give each gateway a folder of its own."
            ) from None
        for left_over in self._artifacts.glob(f"*{UNFINISHED}"):
            left_over.unlink()

    def close(self) -> None:
        """Lets another gateway use the folder."""
        self._lock.close()

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

    def artifact_file(self, sha256: str) -> Path | None:
        file = self._artifacts / sha256
        try:
            with file.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
        except FileNotFoundError:
            return None
        return file if found == sha256 else None

    def draft_artifact(self) -> ArtifactDraft:
        return _Draft(self._artifacts)

    def keep_artifacts(self, wanted: set[str]) -> None:
        for file in self._artifacts.iterdir():
            if file.name not in wanted and not file.name.endswith(UNFINISHED):
                file.unlink(missing_ok=True)

    def save_contract(self, contract: FeatureSetContract) -> None:
        content = {
            "feature_set": contract.feature_set,
            "join_keys": [astuple(field) for field in contract.join_keys],
            "request_fields": [astuple(field) for field in contract.request_fields],
            "features": [astuple(field) for field in contract.features],
        }
        _write(self._contract_file(contract.feature_set), json.dumps(content).encode())

    def load_contract(self, feature_set: str) -> FeatureSetContract | None:
        try:
            content = json.loads(self._contract_file(feature_set).read_bytes())
            return FeatureSetContract(
                feature_set=feature_set,
                join_keys=tuple(FieldSpec(*field) for field in content["join_keys"]),
                request_fields=tuple(FieldSpec(*field) for field in content["request_fields"]),
                features=tuple(FieldSpec(*field) for field in content.get("features", ())),
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _contract_file(self, feature_set: str) -> Path:
        return self._contracts / f"{hashlib.sha256(feature_set.encode()).hexdigest()}.json"


class _Draft:
    """`models.ArtifactDraft`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / f"{secrets.token_hex(6)}{UNFINISHED}"
        self._digest = hashlib.sha256()
        self._opened = self._file.open("wb")

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, piece: bytes) -> None:
        self._digest.update(piece)
        self._opened.write(piece)

    def keep(self) -> Path:
        self._opened.flush()
        os.fsync(self._opened.fileno())
        return self._file.replace(self._file.with_name(self.sha256))

    def discard(self) -> None:
        self._opened.close()
        self._file.unlink(missing_ok=True)


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(6)}{UNFINISHED}")
    with temporary.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    temporary.replace(file)
