"""Code version and environment of a run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from flywheel_job.launch import LaunchSpec

PACKAGES = ("torch", "ray", "onnx", "onnxruntime", "numpy", "polars", "pyarrow")


def code_version(spec: LaunchSpec, folder: Path = Path(__file__).parent) -> str:
    """The digest of the source archive and the commit that the submitter recorded.

    Without an archive, the code is this package's: its commit, with `+dirty.<digest>` if files differ, or its
    version outside of git.
    """
    if spec.source is not None:
        commit = spec.provenance.get("commit", "")
        dirty = spec.provenance.get("dirty_sha256", "")
        return (
            f"sha256:{spec.source.sha256}"
            + (f" {commit}" if commit else "")
            + (f"+dirty.{dirty[:12]}" if dirty else "")
        )
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return f"flywheel-job {importlib.metadata.version('flywheel-job')}"
    changes = _git(folder, "diff", "HEAD", "--", str(folder.parent))
    dirty = f"+dirty.{hashlib.sha256(changes.encode()).hexdigest()[:12]}" if changes else ""
    return commit.strip() + dirty


def environment(device: Any) -> dict[str, str]:
    """Interpreter, machine, device, and the versions of the packages that affect the result."""
    import torch

    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
        "device": str(device),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = str(torch.version.cuda)
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
