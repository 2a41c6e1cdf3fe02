"""Code version and environment of a run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

PACKAGES = ("torch", "ray", "onnx", "onnxruntime", "numpy", "polars", "pyarrow")


def code_version(folder: Path = Path(__file__).parent) -> str:
    """Commit of the code, with `+dirty.<digest>` if files differ; the package version outside of git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return f"flywheel-job {importlib.metadata.version('flywheel-job')}"
    changes = _git(folder, "diff", "HEAD", "--", str(folder.parent))
    dirty = f"+dirty.{hashlib.sha256(changes.encode()).hexdigest()[:12]}" if changes else ""
    return commit.strip() + dirty


def environment() -> dict[str, str]:
    """Interpreter, machine, and the versions of the packages that affect the result."""
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
    }
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
