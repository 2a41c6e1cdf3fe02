"""The environments on this machine: one for each requirements file, shared by the jobs that name it.

An environment is a virtual environment whose own packages come before those of the cluster's interpreter, so
it has what the file names, and Flywheel, Ray and everything else of the cluster. Processes that use one hold
a shared lock on it until they end; an exclusive lock permits to build or remove it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import site
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from flywheel_job.errors import EnvironmentsUnusable

FOLDER_VARIABLE = "FLYWHEEL_JOB_ENVIRONMENTS"
"""Variable with the folder of the environments; unset: one of this user in the folder of temporary files."""
COMPLETE = "complete"
"""File in an environment that can be used."""
KEPT = 8
"""Environments that are kept after their last use, the most recently used ones."""
RETRY_SECONDS = 0.05


@dataclass(frozen=True)
class Environment:
    """A folder with an environment, which stays while this process runs, also as another program."""

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")


def run_instead(environment: Environment, *arguments: str) -> NoReturn:
    """Replace this process by the environment's Python, which keeps the lock."""
    os.execv(environment.python, [environment.python, *arguments])  # noqa: S606 - nothing of a shell is needed


def environments_folder() -> Path:
    """The folder of all environments, which only this user can write. Raises EnvironmentsUnusable."""
    given = os.environ.get(FOLDER_VARIABLE)
    folder = Path(given or Path(tempfile.gettempdir()) / f"flywheel-environments-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise EnvironmentsUnusable(f"Other users can write {folder}, in which environments are kept.")
    return folder


def key_of(requirements: bytes) -> str:
    """The name of the environment with these requirements on top of this interpreter."""
    base = f"{sys.prefix}\0{sys.version}\0".encode()
    return hashlib.sha256(base + requirements).hexdigest()[:40]


def existing(root: Path, key: str) -> Environment | None:
    """The environment if it is complete. It stays until this process ends."""
    lock = _open_lock(root, key)
    fcntl.flock(lock, fcntl.LOCK_SH)
    if (root / key / COMPLETE).exists():
        os.utime(root / key / COMPLETE)
        return Environment(root / key)
    os.close(lock)
    return None


def provide(root: Path, key: str, build: Callable[[Path], None]) -> Environment:
    """The environment, which `build` makes in an empty folder unless it is there.

    Raises what `build` raises; then nothing of the environment is left. Processes that ask at the same time
    build it once.
    """
    while True:
        found = existing(root, key)
        if found is not None:
            return found
        lock = _open_lock(root, key)
        try:
            # Not blocking: after another process has built it, its shared lock stays until that process ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = root / key
            if not (folder / COMPLETE).exists():
                _build(folder, build)
        except BlockingIOError:
            time.sleep(RETRY_SECONDS)
            continue
        finally:
            os.close(lock)
        remove_unused(root, keep=key)


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what a process left that was killed
    folder.mkdir(mode=0o700)
    try:
        build(folder)
        _add_packages_of_cluster(folder)
        (folder / COMPLETE).touch()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _add_packages_of_cluster(folder: Path) -> None:
    """Let the environment also import what this interpreter can, after its own packages."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (folder / "lib" / version / "site-packages" / "zz_cluster.pth").write_text("\n".join(lines) + "\n")


def remove_unused(root: Path, *, keep: str = "", kept: int = KEPT) -> None:
    """Remove the environments that no process uses, except `keep` and the most recently used ones."""
    folders = [one for one in root.iterdir() if one.is_dir() and one.name != keep]
    for folder in sorted(folders, key=_last_use, reverse=True)[max(0, kept - bool(keep)) :]:
        lock = _open_lock(root, folder.name)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def _last_use(folder: Path) -> float:
    try:
        return (folder / COMPLETE).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _open_lock(root: Path, key: str) -> int:
    """A descriptor that a program which replaces this one keeps. Lock files are never removed."""
    descriptor = os.open(root / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(descriptor, True)
    return descriptor
