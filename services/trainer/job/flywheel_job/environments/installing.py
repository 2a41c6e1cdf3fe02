"""Installs a requirements file into a new environment, with uv."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path

from flywheel_job.errors import EnvironmentsUnusable, InvalidRequirements

INSTALLER_VARIABLE = "FLYWHEEL_JOB_UV"
"""Variable with the uv executable; unset: `uv` on PATH."""
RESOLVED = "resolved.txt"
"""File in an environment with the exact versions of its own packages."""
LAST_LINES = 40
LINE_CHARACTERS = 500
_HASH = re.compile(rb"^[^#\n]*--hash[= ]", re.MULTILINE)
_NOT_FOR_INSTALLERS = ("FLYWHEEL_", "PYTHONPATH", "VIRTUAL_ENV")


def install(folder: Path, requirements: bytes) -> None:
    """Make an environment in the folder. With a hash in the file, every package needs one.

    Raises InvalidRequirements with the last lines of the installer, and EnvironmentsUnusable without uv.
    """
    uv = shutil.which(os.environ.get(INSTALLER_VARIABLE) or "uv")
    if uv is None:
        raise EnvironmentsUnusable("This machine has no uv, which makes the environments of jobs.")
    file = folder / "requirements.txt"
    _run([uv, "venv", "--quiet", "--no-project", "--allow-existing", "--python", sys.executable, str(folder)])
    file.write_bytes(requirements)
    python = str(folder / "bin" / "python")
    arguments = ["--python", python, "--no-cache", "--no-progress", "-r", str(file)]
    hashed = ["--require-hashes"] if _HASH.search(requirements) else []
    _run([uv, "pip", "install", *arguments, *hashed], folder)
    found = _run([uv, "pip", "freeze", "--python", python], folder).splitlines(keepends=True)
    resolved = "".join(line for line in found if "==" in line or " @ " in line)
    (folder / RESOLVED).write_text(resolved)
    _check_ray(resolved)


def _run(command: list[str], folder: Path | None = None) -> str:
    """Run the installer, copy its output to the log of the job, and return it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_NOT_FOR_INSTALLERS)}
    last: deque[str] = deque(maxlen=LAST_LINES)
    output: list[str] = []
    with subprocess.Popen(
        command,
        cwd=folder,  # where no file configures uv
        env={**environment, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            last.append(line.rstrip()[:LINE_CHARACTERS])
            output.append(line)
        sys.stdout.flush()
    if process.returncode:
        raise InvalidRequirements("The requirements cannot be installed:\n" + "\n".join(last))
    return "".join(output)


def _check_ray(resolved: str) -> None:
    """Raises InvalidRequirements if the environment has another Ray than the cluster."""
    found = re.search(r"^ray==(\S+)", resolved, re.MULTILINE)
    cluster = importlib.metadata.version("ray")
    if found is not None and found[1] != cluster:
        raise InvalidRequirements(
            f"The requirements have ray {found[1]}, but the cluster runs {cluster}: leave ray out."
        )
