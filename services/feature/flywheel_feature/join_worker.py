"""`python -m flywheel_feature.join_worker ROOT`: run the join whose spec is at ROOT, as a separate process.

The result, or the error that ended the join, is written there. ROOT is a folder of this machine, and the key
of the object store comes from the settings of the feature service (FLYWHEEL_FEATURE_S3_…). With `--ray` the
process is the driver of a Ray job, every task is a Ray task, and ROOT is `s3://bucket/prefix`. Then the
processes have no key: the feature service signs their requests (FLYWHEEL_JOIN_SERVICE, FLYWHEEL_JOIN_TOKEN).
Only the cluster needs Ray; the feature service does not.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow.fs as fs
from pydantic_settings import SettingsConfigDict

from flywheel_common.config import S3Settings
from flywheel_common.errors import FlywheelError
from flywheel_feature.offline.partitioned.run import (
    SequentialWorkers,
    Workers,
    error_from_json,
    error_to_json,
    run_spec,
)
from flywheel_feature.offline.partitioned.spec import Task
from flywheel_feature.offline.partitioned.steps import PartitionTasks, open_tasks
from flywheel_feature.store.engines.ray import SERVICE_VARIABLE, TOKEN_VARIABLE
from flywheel_feature.store.s3.granted import GrantedStore
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_feature.store.s3.workspaces import FileWorkspace

SCHEME = "s3://"
ATTEMPTS = 3
"""How often Ray runs a task whose worker died."""


class TaskSettings(S3Settings):
    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_FEATURE_")


def open_stores(root: str) -> tuple[FileWorkspace, S3Tables]:
    """The working files at `root`, and the tables."""
    if not root.startswith(SCHEME):
        return FileWorkspace(fs.LocalFileSystem(), root), S3Tables.from_settings(TaskSettings())
    path = root.removeprefix(SCHEME)
    store = GrantedStore(os.environ[SERVICE_VARIABLE], os.environ[TOKEN_VARIABLE])
    return store.workspace(path), store.tables(path.partition("/")[0])


@functools.lru_cache(maxsize=2)
def opened(root: str) -> PartitionTasks:
    """The tasks of the spec at `root`; cached, as a worker runs many tasks of one spec."""
    return open_tasks(*open_stores(root))


class RayWorkers:
    """Runs each task as a Ray task on one CPU; Ray starts it again elsewhere when its worker dies."""

    def __init__(self, root: str) -> None:
        self._root = root
        # Imported at run time, as the feature service runs without Ray.
        self._ray: Any = importlib.import_module("ray")
        self._ray.init(log_to_driver=False)
        self._run = self._ray.remote(num_cpus=1, max_retries=ATTEMPTS, retry_exceptions=False)(run_task)

    def run(self, tasks: Sequence[Task], done: Callable[[Task], None]) -> None:
        pending = {self._run.remote(self._root, task): task for task in tasks}
        while pending:
            ready, _ = self._ray.wait(list(pending), num_returns=1)
            for reference in ready:
                failure = self._ray.get(reference)
                if failure is not None:
                    raise error_from_json(failure)
                done(pending.pop(reference))


def run_task(root: str, task: Task) -> dict[str, Any] | None:
    """Run one task; returns a domain error as JSON."""
    try:
        opened(root).run(task)
    except FlywheelError as error:
        return error_to_json(error)
    return None


def _end_with_parent() -> None:
    """Exit when standard input closes: the parent process has its other end, and has died then."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    parser.add_argument("--ray", action="store_true", help="be the driver of a Ray job")
    arguments = parser.parse_args()
    if not arguments.ray:
        _end_with_parent()

    def workers(tasks: PartitionTasks) -> Workers:
        return RayWorkers(arguments.root) if arguments.ray else SequentialWorkers(tasks)

    done = run_spec(*open_stores(arguments.root), workers)
    return 0 if done else 1


if __name__ == "__main__":
    # Called under its module name, as Ray workers look up the task function by module and name.
    sys.exit(importlib.import_module("flywheel_feature.join_worker").main())
