"""The first request about a run: creates it or continues it, and says where it comes from."""

from __future__ import annotations

import os
import platform
import sys
import uuid
from pathlib import Path

from google.protobuf.duration_pb2 import Duration

from flywheel.errors import SourceError
from flywheel.source_archive import git
from flywheel_protos.trainer.v1 import tracking_pb2, trainer_pb2


def create_request(name: str, run: trainer_pb2.Run, lease_seconds: float) -> trainer_pb2.CreateRunRequest:
    """Creates a run of this name now, with the code and environment of this process."""
    run.code_version = code_version()
    run.environment.update(environment())
    run.started_at.GetCurrentTime()
    project, _, run_id = name.partition("/runs/")
    return trainer_pb2.CreateRunRequest(
        parent=project,
        run_id=run_id,
        request_id=uuid.uuid4().hex,
        lease=Duration(seconds=int(lease_seconds), nanos=int(lease_seconds % 1 * 1e9)),
        run=run,
    )


def continue_request(name: str, rewind_to: int | None) -> tracking_pb2.ContinueRunRequest:
    """Continues a run of a process that has ended."""
    return tracking_pb2.ContinueRunRequest(name=name, rewind_to_step=rewind_to, request_id=uuid.uuid4().hex)


def path(project: str, collection: str, name: str) -> str:
    """The resource name of something that a user may name by its id."""
    return name if name.startswith("projects/") else f"projects/{project}/{collection}/{name}"


def environment() -> dict[str, str]:
    """The machine and the script, as a run shows them."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
        "script": sys.argv[0][:1000] if sys.argv else "",
    }


def code_version() -> str:
    """The commit of the working directory, with `+dirty` if files were changed; empty without one."""
    folder = Path.cwd()
    try:
        commit = git(folder, "rev-parse", "HEAD")
        if commit is None:
            return ""
        changed = git(folder, "status", "--porcelain", "--untracked-files=no")
    except SourceError:
        return ""
    return commit.strip() + ("+dirty" if changed else "")
