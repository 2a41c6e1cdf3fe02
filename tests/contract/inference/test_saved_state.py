"""Contract tests of the saved state of a gateway, in memory and on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flywheel_inference.fakes.saved_state import MemoryState
from flywheel_inference.releases.release import FeatureSetContract, FieldSpec
from flywheel_inference.serving.errors import StateInUse
from flywheel_inference.store.disk.state_folder import StateFolder

CONTRACT = FeatureSetContract(
    "projects/p/featureSets/f/versions/2",
    (FieldSpec("tail", 5), FieldSpec("day", 2)),
    (FieldSpec("miles", 4), FieldSpec("embedding", 8, 16)),
    (FieldSpec("v__x", 3), FieldSpec("v__e", 24, 4)),
)
Boot = Callable[[], Any]


@pytest.fixture(params=["memory", "disk"])
def boot(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Boot]:
    """Opens the saved state as a starting gateway does, after the one before has ended."""
    if request.param == "memory":
        memory = MemoryState()
        yield lambda: memory
        return
    opened: list[StateFolder] = []

    def open_folder() -> StateFolder:
        for folder in opened:
            folder.close()
        opened.append(StateFolder(tmp_path))
        return opened[-1]

    yield open_folder
    for folder in opened:
        folder.close()


def test_a_second_gateway_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(StateInUse):
        StateFolder(tmp_path)
    with opened(tmp_path):
        pass


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_new_state_is_empty(boot: Boot) -> None:
    saved = boot()
    assert saved.load_desired() is None
    assert saved.load_artifact(digest(b"onnx")) is None
    assert saved.load_contract(CONTRACT.feature_set) is None
    saved.keep_artifacts(set())


def test_the_value_saved_last_survives_a_restart(boot: Boot) -> None:
    other = FeatureSetContract("projects/p/featureSets/f/versions/3", (), ())
    saved = boot()
    for desired in (b"first", b"", b"wanted"):
        saved.save_desired(desired)
        assert desired == boot().load_desired()
    for contract in (CONTRACT, other):
        saved.save_contract(contract)
    for content in (b"onnx", b""):
        saved.save_artifact(digest(content), content)
    again = boot()
    assert [CONTRACT, other] == [again.load_contract(c.feature_set) for c in (CONTRACT, other)]
    assert [b"onnx", b""] == [again.load_artifact(digest(content)) for content in (b"onnx", b"")]
    assert again.load_contract("projects/p/featureSets/f") is None


def test_an_artifact_with_a_wrong_digest_is_ignored_and_can_be_replaced(boot: Boot) -> None:
    saved = boot()
    saved.save_artifact(digest(b"onnx"), b"other")
    assert boot().load_artifact(digest(b"onnx")) is None
    saved.save_artifact(digest(b"onnx"), b"onnx")
    assert b"onnx" == boot().load_artifact(digest(b"onnx"))


def test_an_artifact_written_in_pieces_is_stored_when_it_is_kept(boot: Boot) -> None:
    saved = boot()
    draft = saved.draft_artifact()
    for piece in (b"on", b"", b"nx"):
        draft.write(piece)
    assert digest(b"onnx") == draft.sha256
    assert saved.artifact_file(digest(b"onnx")) is None
    saved.keep_artifacts(set())  # which another release may need while this one is downloaded
    path = draft.keep()
    draft.discard()
    assert b"onnx" == path.read_bytes() == boot().load_artifact(digest(b"onnx"))
    assert b"onnx" == boot().artifact_file(digest(b"onnx")).read_bytes()


def test_an_artifact_that_is_discarded_is_not_stored(boot: Boot) -> None:
    saved = boot()
    draft = saved.draft_artifact()
    draft.write(b"onnx")
    draft.discard()
    assert boot().artifact_file(digest(b"onnx")) is None


def test_the_file_of_a_damaged_artifact_is_ignored(boot: Boot) -> None:
    saved = boot()
    saved.save_artifact(digest(b"onnx"), b"other")
    assert boot().artifact_file(digest(b"onnx")) is None


def test_what_a_crash_left_half_written_is_deleted_at_the_next_start(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        draft = folder.draft_artifact()
        draft.write(b"onnx")
        assert 1 == len(list((tmp_path / "artifacts").iterdir()))
        draft._opened.close()
    with opened(tmp_path):
        assert [] == list((tmp_path / "artifacts").iterdir())


def test_keep_artifacts_deletes_the_others(boot: Boot) -> None:
    saved = boot()
    contents = [b"a", b"b", b"c"]
    for content in contents:
        saved.save_artifact(digest(content), content)
    saved.keep_artifacts({digest(b"b"), digest(b"never seen")})
    assert [None, b"b", None] == [boot().load_artifact(digest(content)) for content in contents]


def test_concurrent_saves_leave_one_complete_state(boot: Boot) -> None:
    states = [bytes([i]) * 100_000 for i in range(16)]
    saved = boot()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(saved.save_desired, states))
        list(threads.map(lambda _: saved.save_artifact(digest(states[0]), states[0]), range(16)))
    assert boot().load_desired() in states
    assert states[0] == boot().load_artifact(digest(states[0]))


def opened(folder: Path) -> closing[StateFolder]:
    return closing(StateFolder(folder))


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 38])
def test_a_damaged_file_is_ignored(tmp_path: Path, damage: bytes) -> None:
    with opened(tmp_path) as folder:
        folder.save_desired(b"wanted")
        folder.save_contract(CONTRACT)
        folder.save_artifact(digest(b"onnx"), b"onnx")
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "lock"]
    assert 3 == len(files)
    for file in files:
        file.write_bytes(damage)
    with opened(tmp_path) as again:
        assert again.load_desired() is None
        assert again.load_artifact(digest(b"onnx")) is None
        assert again.load_contract(CONTRACT.feature_set) is None


def test_a_changed_byte_of_the_desired_state_is_detected(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.save_desired(b"wanted")
    file = tmp_path / "desired.pb"
    file.write_bytes(file.read_bytes()[:-1] + b"e")
    with opened(tmp_path) as again:
        assert again.load_desired() is None


def test_a_partly_written_file_is_never_read(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.save_desired(b"wanted")
    (tmp_path / "desired.pb.0123456789ab.new").write_bytes(b"half")
    (tmp_path / "artifacts" / f"{digest(b'onnx')}.0123456789ab.new").write_bytes(b"on")
    with opened(tmp_path) as again:
        assert (b"wanted", None) == (again.load_desired(), again.load_artifact(digest(b"onnx")))
        again.keep_artifacts(set())
        assert [] == list((tmp_path / "artifacts").iterdir())


def test_the_gateway_id_is_stored_once(tmp_path: Path) -> None:
    for offered in ("one", "two"):
        with opened(tmp_path) as folder:
            assert "one" == folder.gateway_id(offered)
