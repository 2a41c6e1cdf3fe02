"""The source of a training job: which files are packed, and what is refused."""

from __future__ import annotations

import hashlib
import os
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel.errors import SourceError
from flywheel.source_archive import check_function, pack, provenance
from flywheel.train_job import pack_job, train_spec
from flywheel.tune_job import tune_spec
from flywheel_job.source.archive import unpack
from flywheel_protos.trainer.v1 import trainer_pb2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    write(folder, {"train.py": "def train(ctx):\n    pass\n", "pkg/model.py": "X = 1\n"})
    return folder


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "init", "--quiet")
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


@pytest.mark.parametrize("repository", [True, False])
def test_files_that_git_ignores_are_left_out(folder: Path, repository: bool) -> None:
    write(folder, {".gitignore": "*.ckpt\n/data/\n!keep.ckpt\n", "a.ckpt": "1", "keep.ckpt": "2"})
    write(folder, {"data/big.bin": "3", "pkg/.gitignore": "secret.txt\n", "pkg/secret.txt": "4"})
    if repository:
        commit(folder)
        write(folder, {"new.py": "# not committed"})
        (folder / "pkg" / "model.py").unlink()
        expected = {".gitignore", "keep.ckpt", "new.py", "pkg/.gitignore", "train.py"}
    else:
        expected = {".gitignore", "keep.ckpt", "pkg/.gitignore", "pkg/model.py", "train.py"}
    assert set(pack(folder).files) == expected


def test_a_subfolder_of_a_repository_is_packed_alone(folder: Path) -> None:
    commit(folder)
    assert pack(folder / "pkg").files == ("model.py",)


def test_equal_files_give_equal_archives(folder: Path, tmp_path: Path) -> None:
    first = pack(folder)
    os.utime(folder / "train.py", (1, 1))
    other = tmp_path / "other"
    write(other, {"pkg/model.py": "X = 1\n", "train.py": "def train(ctx):\n    pass\n"})
    assert pack(folder).content == first.content == pack(other).content
    write(other, {"train.py": "def train(ctx):\n    return\n"})
    assert pack(other).sha256 != first.sha256


def test_an_archive_unpacks_to_the_same_files(folder: Path, tmp_path: Path) -> None:
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o700)
    (folder / "linked.py").symlink_to("train.py")
    write(folder, {"ünïcode name.py": "é"})
    archive = pack(folder)
    target = tmp_path / "target"
    target.mkdir()
    unpack(archive.content, archive.sha256, target)
    for name in archive.files:
        assert (target / name).read_bytes() == (folder / name).read_bytes()
    assert len(archive.files) == 5
    assert not (target / "linked.py").is_symlink()
    assert os.access(target / "run.sh", os.X_OK)
    assert not os.access(target / "train.py", os.X_OK)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/etc/passwd", "link to /etc/passwd, which is outside"),
        ("../elsewhere", "which is outside"),
        ("pkg", "Links to folders"),
        ("absent", "a broken link"),
    ],
)
def test_links_that_leave_the_folder_or_are_no_files_are_refused(
    folder: Path, target: str, message: str
) -> None:
    write(folder.parent, {"elsewhere": "secret"})
    (folder / "link").symlink_to(target)
    with pytest.raises(fw.SourceError, match=message):
        pack(folder)


def test_a_folder_that_is_too_large_names_its_largest_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flywheel.source_archive.MAX_BYTES", 1_000_000)
    write(folder, {"data/train.csv": "1" * 1_500_000})
    with pytest.raises(fw.SourceError, match=r"at most .* 1 MB .*files: data/train\.csv \(1\.5 MB\)"):
        pack(folder)


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_folder_without_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(fw.SourceError, match=r"no folder|has no files"):
        pack(tmp_path / name)


@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        ("train.py", "", "not of the form"),
        ("train:train", "", "not of the form"),
        ("other.py:train", "", "has no file 'other.py'"),
        ("train.py:fit", "def train(ctx): pass", "has no function 'fit'; it has: train"),
        ("train.py:train", "def train(ctx", "is no Python: .*line 1"),
        ("train.py:train", "def train(): pass", r"arguments \(\)"),
        ("train.py:train", "def train(ctx, more): pass", r"arguments \(ctx, more\)"),
        ("train.py:train", "def train(ctx, *, more): pass", r"arguments \(ctx, \*, more\)"),
        ("train.py:train", "async def train(ctx): pass", "is async"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_without_running_it(
    folder: Path, function: str, code: str, message: str
) -> None:
    if code:
        write(folder, {"train.py": code + "\n"})
    with pytest.raises(fw.SourceError, match=message):
        check_function(folder, pack(folder), function)


@pytest.mark.parametrize(
    "code",
    [
        "def train(ctx): raise SystemExit",
        "def train(*args): pass",
        "def train(ctx, more=1, *, other=2): pass",
        "from pkg.model import train",
        "import functools\ntrain = functools.partial(print)",
        "if True:\n    def train(ctx): pass",
        "from pkg.model import *",
    ],
)
def test_functions_that_may_be_callable_are_accepted(folder: Path, code: str) -> None:
    write(folder, {"train.py": code + "\nraise RuntimeError('must not run')\n"})
    check_function(folder, pack(folder), "train.py:train")


def spec_of(job: fw.TrainJob) -> trainer_pb2.TrainSpec:
    return train_spec(pack_job(job), lambda collection, name: f"projects/p/{collection}/{name}")


def test_requirements_are_a_file_of_the_source(folder: Path) -> None:
    write(folder, {"env/requirements.lock": "six==1.17.0\n", "requirements.txt": "torch\n"})
    job = fw.TrainJob("train.py:train", folder, requirements="env/requirements.lock")
    assert "env/requirements.lock" == spec_of(job).code.requirements
    recorded = spec_of(job).code.provenance
    assert hashlib.sha256(b"six==1.17.0\n").hexdigest() == recorded["lock_sha256"]
    assert "" == spec_of(fw.TrainJob("train.py:train", folder)).code.requirements


@pytest.mark.parametrize("name", ["absent.lock", "ignored.lock", "binary.lock", "../outside.lock"])
def test_requirements_that_are_not_packed_are_refused(folder: Path, name: str) -> None:
    write(folder, {".gitignore": "ignored.lock\n", "ignored.lock": "six\n", "../outside.lock": "six\n"})
    (folder / "binary.lock").write_bytes(b"\xff\xfe")
    with pytest.raises(SourceError):
        pack_job(fw.TrainJob("train.py:train", folder, requirements=name))


def test_requirements_of_a_job_without_a_source_are_refused() -> None:
    with pytest.raises(SourceError, match="need a source"):
        pack_job(fw.TrainJob("flywheel_job.recipes.a:train", None, requirements="requirements.lock"))


def test_limits_are_sent_and_absent_ones_left_to_the_trainer(folder: Path) -> None:
    limited = fw.TrainJob(
        "train.py:train",
        folder,
        timeout=timedelta(hours=2),
        stall_timeout=timedelta(seconds=1.5),
        max_attempts=5,
    )
    limits = spec_of(limited).limits
    assert (7200, 1.5, 5) == (
        limits.timeout.ToTimedelta().total_seconds(),
        limits.stall_timeout.ToTimedelta().total_seconds(),
        limits.max_attempts,
    )
    unlimited = spec_of(fw.TrainJob("train.py:train", folder)).limits
    assert not unlimited.HasField("timeout") and not unlimited.HasField("stall_timeout")


def test_limits_of_a_tuning_job_come_before_those_of_its_base(folder: Path) -> None:
    base = fw.TrainJob("train.py:train", folder, timeout=timedelta(seconds=9.5), max_attempts=2)
    space = {"x": fw.FloatRange(0, 1)}
    inherited = tune_spec(fw.TuneJob(base, space, minimize="loss"), spec_of(base)).base.limits
    minute, week = timedelta(minutes=1), timedelta(days=7)
    own = fw.TuneJob(base, space, minimize="loss", timeout=minute, stall_timeout=week)
    limits = tune_spec(own, spec_of(base)).base.limits
    assert (9.5, 2) == (inherited.timeout.ToTimedelta().total_seconds(), inherited.max_attempts)
    assert (60, 7 * 86_400, 2) == (
        limits.timeout.ToTimedelta().total_seconds(),
        limits.stall_timeout.ToTimedelta().total_seconds(),
        limits.max_attempts,
    )


def test_provenance_has_commit_changes_and_lock(folder: Path) -> None:
    write(folder, {"requirements.lock": "torch==2.13.0\n"})
    head = commit(folder)
    clean = provenance(folder)
    assert clean["commit"] == head
    assert "dirty_sha256" not in clean
    assert clean["lock"] == "requirements.lock"
    write(folder, {"train.py": "def train(ctx):\n    return 1\n"})
    dirty = provenance(folder)
    assert "+    return 1" in dirty["dirty_diff"]
    assert dirty["lock_sha256"] == clean["lock_sha256"]
    assert len(dirty["dirty_sha256"]) == 64


def test_a_folder_outside_of_git_has_no_commit(folder: Path) -> None:
    assert provenance(folder) == {}
    with pytest.raises(fw.SourceError, match="is no file"):
        provenance(folder, folder / "absent.lock")


def test_a_job_is_packed_with_its_parameters(folder: Path) -> None:
    packed = pack_job(fw.TrainJob("train.py:train", folder, params={"b": 1, "a": [1.5, None]}, seed=7))
    assert packed.params_json == '{"a": [1.5, null], "b": 1}'
    assert packed.provenance["seed"] == "7"
    assert packed.archive is not None
    assert packed.provenance["source_sha256"] == packed.archive.sha256


def test_a_built_in_recipe_needs_no_source() -> None:
    packed = pack_job(fw.TrainJob("flywheel_job.recipes.sequence.training:train", None))
    assert packed.archive is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"params": {"x": {1, 2}}}, "parameter 'x' is {1, 2}"),
        ({"params": {"x": float("nan")}}, "parameter 'x' is nan"),
        ({"params": {"x": {1: 2}}}, "which JSON would change"),
        ({"params": {3: 2}}, "name 3 is no text"),
        ({"params": {"x": "1" * 300_000}}, "at most 262144"),
        ({"workers": 0}, "workers is 0"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker is 1.5"),
        ({"gpus_per_worker": -1}, "gpus_per_worker is -1"),
        ({"function": ""}, "function is empty"),
        ({"export": "train.py:absent"}, "has no function 'absent'"),
    ],
)
def test_a_job_with_wrong_fields_is_refused(folder: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(fw.SourceError, match=message):
        pack_job(fw.TrainJob(**{"function": "train.py:train", "source": folder} | fields))


@pytest.mark.parametrize(
    ("gpus", "expected"), [(0, (0, 0.0)), (2, (2, 0.0)), (0.25, (0, 0.25)), (1.0, (1, 0.0))]
)
def test_a_worker_gets_whole_gpus_or_a_fraction_of_one(
    folder: Path, gpus: float, expected: tuple[int, float]
) -> None:
    packed = pack_job(fw.TrainJob(function="train.py:train", source=folder, gpus_per_worker=gpus))
    message = train_spec(packed, lambda collection, name: f"projects/p/{collection}/{name}")
    assert expected == (message.gpus_per_worker, message.gpu_fraction)
