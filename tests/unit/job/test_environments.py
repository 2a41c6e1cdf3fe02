"""Environments of jobs: made once for each requirements file, kept while they are used, removed after."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flywheel_job.environments import __main__ as driver_start
from flywheel_job.environments.folder import (
    COMPLETE,
    Environment,
    environments_folder,
    existing,
    key_of,
    provide,
    remove_unused,
)
from flywheel_job.environments.installing import INSTALLER_VARIABLE, install
from flywheel_job.errors import EnvironmentsUnusable, InvalidRequirements
from flywheel_job.launch import LaunchSpec, Source
from flywheel_job.objects import STORE_FOLDER
from flywheel_job.outcome import Outcome
from tests.support.jobs_source import archived

SITE = Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "environments"
    monkeypatch.setenv("FLYWHEEL_JOB_ENVIRONMENTS", str(folder))
    return environments_folder()


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Closes the locks that the test leaves open, as the end of a process does."""
    own = Path("/proc/self/fd")
    before = set(own.iterdir())
    yield
    for one in set(own.iterdir()) - before:
        try:
            if one.readlink().suffix == ".lock":
                os.close(int(one.name))
        except FileNotFoundError:
            continue


def empty(folder: Path) -> None:
    (folder / SITE).mkdir(parents=True)


def uv(tmp_path: Path, script: str) -> str:
    """A stand-in for uv: a shell script that gets its arguments."""
    file = tmp_path / "uv"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


VENV = f'[ "$1" = venv ] && for last; do :; done && mkdir -p "$last/{SITE}" && exit 0'


def test_equal_requirements_have_one_environment(root: Path, descriptors: None) -> None:
    builds: list[Path] = []

    def build(folder: Path) -> None:
        time.sleep(0.05)
        builds.append(folder)
        empty(folder)

    def ask() -> None:
        assert root / "k" == provide(root, "k", build).folder

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [root / "k"] == builds
    assert key_of(b"a==1\n") == key_of(b"a==1\n") != key_of(b"a==2\n")


def test_an_environment_that_another_process_built_meanwhile_is_used(
    root: Path, descriptors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    provide(root, "k", empty)  # the lock of its user stays
    early: list[None] = [None]

    def asked(root: Path, key: str) -> Environment | None:
        return early.pop() if early else existing(root, key)

    monkeypatch.setattr("flywheel_job.environments.folder.existing", asked)

    def build(folder: Path) -> None:
        raise AssertionError("it is there")

    assert root / "k" == provide(root, "k", build).folder


def test_an_environment_that_cannot_be_made_leaves_nothing(root: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise InvalidRequirements("no such package")

    with pytest.raises(InvalidRequirements):
        provide(root, "k", build)
    assert not (root / "k").exists()
    assert existing(root, "k") is None


def test_the_rest_of_a_killed_installation_is_replaced(root: Path, descriptors: None) -> None:
    (root / "k").mkdir()
    (root / "k" / "half").write_text("x")
    assert existing(root, "k") is None
    provide(root, "k", empty)
    assert not (root / "k" / "half").exists()


def hold(root: Path, key: str, ready: Any, done: Any) -> None:
    assert existing(root, key) is not None
    ready.set()
    done.wait(30)


def test_unused_environments_are_removed_and_used_ones_stay(root: Path) -> None:
    for number in range(4):
        (root / str(number) / SITE).mkdir(parents=True)
        (root / str(number) / COMPLETE).touch()
        os.utime(root / str(number) / COMPLETE, (number, number))
    spawn = multiprocessing.get_context("spawn")
    ready, done = spawn.Event(), spawn.Event()
    user = spawn.Process(target=hold, args=(root, "0", ready, done))
    user.start()
    try:
        assert ready.wait(30)
        os.utime(root / "0" / COMPLETE, (0, 0))
        remove_unused(root, kept=1)
        # 3 is the most recently used one, 0 is in use.
        assert ["0", "3"] == sorted(one.name for one in root.iterdir() if one.is_dir())
    finally:
        done.set()
        user.join(30)
    remove_unused(root, kept=1)
    assert ["3"] == [one.name for one in root.iterdir() if one.is_dir()]


def test_the_lock_stays_with_the_program_that_replaces_the_process(root: Path) -> None:
    provide(root, "k", empty)
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from flywheel_job.environments.folder import existing\n"
        "existing(Path(sys.argv[1]), 'k')\n"
        "os.execv('/bin/sh', ['/bin/sh', '-c', 'echo ready; read line'])\n"
    )
    command = [sys.executable, "-c", program, str(root)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert b"ready\n" == child.stdout.readline()
        with (root / "k.lock").open("rb+") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        child.communicate(b"\n", timeout=30)


def test_a_folder_that_others_can_write_is_refused(root: Path) -> None:
    root.chmod(0o777)
    with pytest.raises(EnvironmentsUnusable):
        environments_folder()


def test_the_packages_of_the_cluster_follow_those_of_the_environment(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, descriptors: None
) -> None:
    """A virtual environment without an installer: its own `six` comes first, the cluster's torch is there."""

    def build(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (folder / SITE / "six.py").write_text("OWN = True\n")

    environment = provide(root, "k", build)
    program = "import six, torch, sys; print(six.OWN, torch.__name__, sys.prefix)"
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = subprocess.run(
        [environment.python, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert f"True torch {environment.folder}\n" == done.stdout


def test_the_last_lines_of_the_installer_are_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"{VENV}\nfor i in $(seq 1 60); do echo line $i; done\nexit 2"
    monkeypatch.setenv(INSTALLER_VARIABLE, uv(tmp_path, script))
    with pytest.raises(InvalidRequirements) as caught:
        install(tmp_path / "k", b"a==1\n")
    lines = caught.value.message.split("\n")
    assert [f"line {number}" for number in range(21, 61)] == lines[1:]


@pytest.mark.parametrize(
    ("requirements", "hashed"),
    [
        (b"a==1\n", False),
        (b"a==1 \\\n    --hash=sha256:00\n", True),
        (b"# pip compile --hash=no\na==1\n", False),
    ],
)
def test_a_hash_in_the_file_makes_hashes_necessary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requirements: bytes, hashed: bool
) -> None:
    calls = tmp_path / "calls"
    script = f'{VENV}\necho "$@" >> {calls}\n[ "$2" = freeze ] && echo Using Python && echo a==1\nexit 0'
    monkeypatch.setenv(INSTALLER_VARIABLE, uv(tmp_path, script))
    install(tmp_path / "k", requirements)
    assert hashed == ("--require-hashes" in calls.read_text())
    assert "a==1\n" == (tmp_path / "k" / "resolved.txt").read_text()
    assert requirements == (tmp_path / "k" / "requirements.txt").read_bytes()


def test_another_ray_than_that_of_the_cluster_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        INSTALLER_VARIABLE, uv(tmp_path, f'{VENV}\n[ "$2" = freeze ] && echo ray==1.0\nexit 0')
    )
    with pytest.raises(InvalidRequirements, match=r"ray 1\.0"):
        install(tmp_path / "k", b"ray==1.0\n")


def test_the_installer_gets_no_token_of_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"
    monkeypatch.setenv(INSTALLER_VARIABLE, uv(tmp_path, f"{VENV}\nenv >> {seen}\nexit 0"))
    monkeypatch.setenv("FLYWHEEL_ATTEMPT_TOKEN", "secret-token")
    install(tmp_path / "k", b"a==1\n")
    assert "secret-token" not in seen.read_text()


def test_a_machine_without_uv_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INSTALLER_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(EnvironmentsUnusable):
        install(tmp_path / "k", b"a==1\n")


def test_a_job_whose_requirements_fail_has_their_outcome(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORE_FOLDER, str(tmp_path / "store"))
    monkeypatch.setenv(INSTALLER_VARIABLE, uv(tmp_path, f"{VENV}\necho no version of a\nexit 1"))
    content, digest = archived({"train.py": "", "env/requirements.txt": "a==9\n"})
    files = tmp_path / "store" / "b"
    files.mkdir(parents=True)
    (files / "source").write_bytes(content)
    spec = LaunchSpec(
        job="projects/p/jobs/j",
        run="projects/p/runs/r",
        function="train.py:train",
        output_uri="s3://b/artifacts",
        outcome_uri="s3://b/outcome.json",
        failure_uri="s3://b/failure.json",
        checkpoint_uri="s3://b/checkpoints",
        source=Source("s3://b/source", digest),
        requirements="env/requirements.txt",
    )
    (files / "spec.json").write_bytes(spec.to_json())
    assert 1 == driver_start.main("flywheel_job", "s3://b/spec.json")
    outcome = Outcome.from_json((files / "failure.json").read_bytes())
    assert ("INVALID_REQUIREMENTS", False) == (outcome.error_reason, outcome.succeeded)
    assert "no version of a" in outcome.error_message
    assert [] == [one for one in root.iterdir() if one.is_dir()]
