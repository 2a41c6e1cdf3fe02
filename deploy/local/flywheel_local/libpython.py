"""Finds libpython3.11.so.1.0, which Triton's Python backend needs and a minimal Debian does not have."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from flywheel_local.failure import LocalError
from flywheel_local.layout import LIBPYTHON

NAME = "libpython3.11.so.1.0"
_SYSTEM = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib", "/lib/x86_64-linux-gnu")


def find() -> Path | None:
    """The folder with the library: of this interpreter, the system, a Python managed by uv, or ``.local``."""
    folders = [Path(str(sysconfig.get_config_var("LIBDIR"))), *map(Path, _SYSTEM)]
    managed = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", Path.home() / ".local/share/uv/python"))
    folders += sorted(managed.glob("cpython-3.11*/lib"))
    folders += sorted(LIBPYTHON.glob("usr/lib/*"))
    return next((folder for folder in folders if (folder / NAME).exists()), None)


def fetch() -> Path:
    """Like ``find``, but unpacks the Debian package into ``.local`` if needed; works without root."""
    folder = find()
    if folder is not None:
        return folder
    failure = _download()
    folder = find()
    if folder is None:
        raise LocalError(
            f"{NAME} is missing and could not be downloaded: {failure}",
            "install the system package libpython3.11 (Debian, Ubuntu) or python3.11-libs (Fedora)",
        )
    return folder


def _download() -> str:
    """Runs apt-get with its own folders, so that it needs no root. Returns the error, or an empty text."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return f"no apt-get on this machine ({ctypes.util.find_library('c')})"
    scratch = LIBPYTHON.parent / "libpython-download"
    for folder in ("lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True, exist_ok=True)
    options = [
        f"-oDir::State::Lists={scratch}/lists",
        f"-oDir::Cache={scratch}/cache",
        "-oAPT::Sandbox::User=",
    ]
    options += ["-oDebug::NoLocking=1", "-oAcquire::Retries=3"]
    for command in (["apt-get", *options, "update"], ["apt-get", *options, "download", "libpython3.11"]):
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
        if done.returncode != 0:
            return (done.stderr or done.stdout)[-600:]
    packages = list(scratch.glob("libpython3.11_*.deb"))
    if not packages:
        return "apt-get downloaded nothing"
    partial = LIBPYTHON.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    subprocess.run(["dpkg", "-x", str(packages[0]), str(partial)], check=True)
    shutil.rmtree(LIBPYTHON, ignore_errors=True)
    partial.rename(LIBPYTHON)
    shutil.rmtree(scratch, ignore_errors=True)
    return ""
