"""`python -m flywheel_feature.join_worker ROOT`: carry out the join whose spec lies at ROOT, in a process of its own.

ROOT is a folder of this machine or `s3://bucket/prefix`. The result, or the error that ended it, is written there too. Credentials
come from the settings of the feature service (FLYWHEEL_FEATURE_S3_…). With `--ray` every task is a Ray task: this is then the driver
of a Ray job, which runs where Ray is installed; the feature service itself needs no Ray.
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
from flywheel_common.storage.s3 import arrow_filesystem
from flywheel_feature.offline.partitioned.run import OneByOne, Workers, carry_out, described, restored
from flywheel_feature.offline.partitioned.spec import Task
from flywheel_feature.offline.partitioned.steps import PartitionTasks, open_tasks
from flywheel_feature.store.s3.deletion import S3Deletion
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_feature.store.s3.workspaces import FileWorkspace

ATTEMPTS = 3
"""Of a Ray task whose worker died."""


class TaskSettings(S3Settings):
    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_FEATURE_")


def open_workspace(root: str, settings: S3Settings) -> FileWorkspace:
    if root.startswith("s3://"):
        deletion = S3Deletion(
            settings.s3_endpoint,
            settings.s3_access_key.get_secret_value(),
            settings.s3_secret_key.get_secret_value(),
        )
        return FileWorkspace(arrow_filesystem(settings), root.removeprefix("s3://"), deletion)
    return FileWorkspace(fs.LocalFileSystem(), root)


def open_tables(settings: S3Settings) -> S3Tables:
    return S3Tables(
        endpoint=settings.s3_endpoint,
        access_key=settings.s3_access_key.get_secret_value(),
        secret_key=settings.s3_secret_key.get_secret_value(),
        bucket=settings.s3_bucket,
    )


@functools.lru_cache(maxsize=2)
def opened(root: str) -> PartitionTasks:
    """The tasks of the spec at `root`. Kept, as a worker carries out many tasks of one spec."""
    settings = TaskSettings()
    return open_tasks(open_workspace(root, settings), open_tables(settings))


class RayTasks:
    """Each task is a Ray task on one CPU, begun again elsewhere when its worker dies."""

    def __init__(self, root: str) -> None:
        self._root = root
        # Named at run time: where the feature service runs there is no Ray.
        self._ray: Any = importlib.import_module("ray")
        self._ray.init(log_to_driver=False)
        self._run = self._ray.remote(num_cpus=1, max_retries=ATTEMPTS, retry_exceptions=False)(run_task)

    def carry_out(self, tasks: Sequence[Task], done: Callable[[Task], None]) -> None:
        pending = {self._run.remote(self._root, task): task for task in tasks}
        while pending:
            ready, _ = self._ray.wait(list(pending), num_returns=1)
            for reference in ready:
                failure = self._ray.get(reference)
                if failure is not None:
                    raise restored(failure)
                done(pending.pop(reference))


def run_task(root: str, task: Task) -> dict[str, str] | None:
    """One task; answers what `described` makes of a domain error."""
    try:
        opened(root).run(task)
    except FlywheelError as error:
        return described(error)
    return None


def _end_with_parent() -> None:
    """The parent holds the other end of our input: when that closes, nobody waits for us any more."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    parser.add_argument("--ray", action="store_true", help="be the driver of a Ray job")
    arguments = parser.parse_args()
    settings = TaskSettings()
    if not arguments.ray:
        _end_with_parent()

    def workers(tasks: PartitionTasks) -> Workers:
        return RayTasks(arguments.root) if arguments.ray else OneByOne(tasks)

    done = carry_out(open_workspace(arguments.root, settings), open_tables(settings), workers)
    return 0 if done else 1


if __name__ == "__main__":
    # Under its real name, so that what Ray ships to its workers is found there by name.
    sys.exit(importlib.import_module("flywheel_feature.join_worker").main())
