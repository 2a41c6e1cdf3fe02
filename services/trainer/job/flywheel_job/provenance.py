"""Code version and environment of a run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from flywheel_job.launch import REQUIREMENTS_VARIABLE, LaunchSpec

CHANGES, PACKAGES_FILE = "changes.diff", "requirements.resolved.txt"
RECORDED = ("commit", "dirty_sha256", "lock", "lock_sha256")
"""What the submitter recorded of the code, as it is in the run."""
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


def environment(device: Any, spec: LaunchSpec) -> dict[str, str]:
    """Interpreter, machine, device, packages, and the digests of what the result depends on.

    Absent ones are left out, except `gpu`, which is `none` without one.
    """
    import torch

    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
        "device": str(device),
        "gpu": "none",
        "seed": str(spec.seed),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = str(torch.version.cuda)
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    found |= {f"data.{name}": one.content_hash for name, one in spec.data.items() if one.content_hash}
    if spec.source is not None:
        found["source_sha256"] = spec.source.sha256
    recorded = {name: spec.provenance[name] for name in RECORDED if spec.provenance.get(name)}
    installed = os.environ.get(REQUIREMENTS_VARIABLE)
    own = {"requirements": spec.requirements, "requirements_sha256": installed} if installed else {}
    return found | recorded | own


def files(spec: LaunchSpec) -> dict[str, bytes]:
    """Small files that a run stores, by name: uncommitted changes if they are complete, and the packages of
    the environment of its own."""
    found = {}
    difference = spec.provenance.get("dirty_diff", "").encode(errors="replace")
    if hashlib.sha256(difference).hexdigest() == spec.provenance.get("dirty_sha256"):
        found[CHANGES] = difference
    if os.environ.get(REQUIREMENTS_VARIABLE):
        found[PACKAGES_FILE] = (Path(sys.prefix) / "resolved.txt").read_bytes()
    return found


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
