"""What lies on disk is used only while it is whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

from flywheel_inference.release import Contract, FieldSpec
from flywheel_inference.store.disk import StateFolder


def test_what_was_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    contract = Contract(
        "projects/p/featureSets/f/versions/2", (FieldSpec("tail", 5),), (FieldSpec("miles", 4),)
    )
    folder = StateFolder(tmp_path)
    folder.save_desired(b"wanted")
    folder.save_contract(contract)
    folder.save_artifact(hashlib.sha256(b"onnx").hexdigest(), b"onnx")
    again = StateFolder(tmp_path)
    assert again.load_desired() == b"wanted"
    assert again.load_contract(contract.feature_set) == contract
    assert again.load_artifact(hashlib.sha256(b"onnx").hexdigest()) == b"onnx"
    assert again.gateway_id("one") == StateFolder(tmp_path).gateway_id("two") == "one"


def test_what_is_damaged_or_absent_is_not_used(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    assert folder.load_desired() is None
    folder.save_desired(b"wanted")
    file = tmp_path / "desired.pb"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert folder.load_desired() is None
    digest = hashlib.sha256(b"onnx").hexdigest()
    assert folder.load_artifact(digest) is None
    folder.save_artifact(digest, b"other")
    assert folder.load_artifact(digest) is None
    assert folder.load_contract("never seen") is None


def test_only_wanted_artifacts_stay(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    digests = [hashlib.sha256(b).hexdigest() for b in (b"a", b"b")]
    for digest, content in zip(digests, (b"a", b"b"), strict=True):
        folder.save_artifact(digest, content)
    folder.keep_artifacts({digests[1]})
    assert [folder.load_artifact(d) for d in digests] == [None, b"b"]
