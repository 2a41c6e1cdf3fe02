"""One law for what a gateway keeps to boot from, in memory and on disk. That it boots so is tested through its RPCs: test_laws_at_the_edge.py."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flywheel_inference.fakes.kept_state import MemoryState
from flywheel_inference.releases.release import Contract, FieldSpec
from flywheel_inference.store.disk.state_folder import StateFolder

CONTRACT = Contract(
    "projects/p/featureSets/f/versions/2",
    (FieldSpec("tail", 5), FieldSpec("day", 2)),
    (FieldSpec("miles", 4),),
)
Boot = Callable[[], Any]


@pytest.fixture(params=["memory", "disk"])
def boot(request: pytest.FixtureRequest, tmp_path: Path) -> Boot:
    """What was kept, as a gateway that starts anew finds it."""
    if request.param == "memory":
        memory = MemoryState()
        return lambda: memory
    return lambda: StateFolder(tmp_path)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_nothing_is_kept_at_first(boot: Boot) -> None:
    kept = boot()
    assert (None, None, None) == (
        kept.load_desired(), kept.load_artifact(digest(b"onnx")), kept.load_contract(CONTRACT.feature_set),
    )  # fmt: skip
    kept.keep_artifacts(set())


def test_what_was_saved_last_is_there_after_a_restart(boot: Boot) -> None:
    other = Contract("projects/p/featureSets/f/versions/3", (), ())
    kept = boot()
    for desired in (b"first", b"", b"wanted"):
        kept.save_desired(desired)
        assert desired == boot().load_desired()
    for contract in (CONTRACT, other):
        kept.save_contract(contract)
    for content in (b"onnx", b""):
        kept.save_artifact(digest(content), content)
    again = boot()
    assert [CONTRACT, other] == [again.load_contract(c.feature_set) for c in (CONTRACT, other)]
    assert [b"onnx", b""] == [again.load_artifact(digest(content)) for content in (b"onnx", b"")]
    assert again.load_contract("projects/p/featureSets/f") is None


def test_an_artifact_that_does_not_have_its_digest_is_not_used_and_can_be_saved_again(boot: Boot) -> None:
    kept = boot()
    kept.save_artifact(digest(b"onnx"), b"other")
    assert boot().load_artifact(digest(b"onnx")) is None
    kept.save_artifact(digest(b"onnx"), b"onnx")
    assert b"onnx" == boot().load_artifact(digest(b"onnx"))


def test_only_wanted_artifacts_stay(boot: Boot) -> None:
    kept = boot()
    contents = [b"a", b"b", b"c"]
    for content in contents:
        kept.save_artifact(digest(content), content)
    kept.keep_artifacts({digest(b"b"), digest(b"never seen")})
    assert [None, b"b", None] == [boot().load_artifact(digest(content)) for content in contents]


def test_of_states_saved_at_once_one_is_there_whole(boot: Boot) -> None:
    states = [bytes([i]) * 100_000 for i in range(16)]
    kept = boot()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(kept.save_desired, states))
        list(threads.map(lambda _: kept.save_artifact(digest(states[0]), states[0]), range(16)))
    assert boot().load_desired() in states
    assert states[0] == boot().load_artifact(digest(states[0]))


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 38])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, damage: bytes) -> None:
    folder = StateFolder(tmp_path)
    folder.save_desired(b"wanted")
    folder.save_contract(CONTRACT)
    folder.save_artifact(digest(b"onnx"), b"onnx")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert 3 == len(files)
    for file in files:
        file.write_bytes(damage)
    again = StateFolder(tmp_path)
    assert (None, None, None) == (
        again.load_desired(), again.load_artifact(digest(b"onnx")), again.load_contract(CONTRACT.feature_set),
    )  # fmt: skip


def test_one_changed_bit_of_the_desired_state_is_noticed(tmp_path: Path) -> None:
    StateFolder(tmp_path).save_desired(b"wanted")
    file = tmp_path / "desired.pb"
    file.write_bytes(file.read_bytes()[:-1] + b"e")
    assert StateFolder(tmp_path).load_desired() is None


def test_a_file_that_a_crash_left_half_written_is_never_read(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.save_desired(b"wanted")
    (tmp_path / "desired.pb.0123456789ab.new").write_bytes(b"half")
    (tmp_path / "artifacts" / f"{digest(b'onnx')}.0123456789ab.new").write_bytes(b"on")
    again = StateFolder(tmp_path)
    assert (b"wanted", None) == (again.load_desired(), again.load_artifact(digest(b"onnx")))
    again.keep_artifacts(set())
    assert [] == list((tmp_path / "artifacts").iterdir())


def test_a_gateway_keeps_its_id(tmp_path: Path) -> None:
    assert "one" == StateFolder(tmp_path).gateway_id("one") == StateFolder(tmp_path).gateway_id("two")
