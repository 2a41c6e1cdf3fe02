"""Ports of training sets and joins: working files, engines, stored training sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

import polars as pl

from flywheel_common.granted.access import Access, AttemptAccess
from flywheel_feature.jobs.progress import JobProgress
from flywheel_feature.offline.model import TrainingSet
from flywheel_feature.tables.ports import Between


class Workspace(Protocol):
    """The working files of one join, below one folder.

    Methods block; each raises Unavailable OBJECT_STORE_DOWN while the store is unreachable. A file appears
    completely or not at all. When two processes write one key at the same time, one of the two files remains.
    """

    def keys(self, prefix: str = "") -> list[str]:
        """The keys that begin with `prefix`, sorted."""
        ...

    def write(self, key: str, frame: pl.DataFrame, groups: Sequence[int]) -> None:
        """Write a Parquet file with row groups of these numbers of rows."""
        ...

    def read(self, prefix: str, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        """The rows of the Parquet files whose keys begin with `prefix`, files by key and rows in file order.

        `where` skips row groups by their statistics. Raises NotFound UNKNOWN_TABLE when there is no file.
        """
        ...

    def write_json(self, key: str, value: object) -> None:
        self.write_bytes(key, json.dumps(value).encode())

    def read_json(self, key: str) -> Any:
        """The content of a JSON file; None when there is no such file."""
        content = self.read_bytes(key)
        return None if content is None else json.loads(content)

    def write_bytes(self, key: str, content: bytes) -> None: ...

    def read_bytes(self, key: str) -> bytes | None:
        """The content of a file; None when there is no such file."""
        ...

    def delete(self) -> None:
        """Delete all files; there may be none."""
        ...


class PartitionEngine(Protocol):
    """Runs joins in partitions."""

    name: str

    def workspace(self, name: str) -> Workspace:
        """The working files of a join, which all processes of this engine can reach; there may be none."""
        ...

    async def run(self, name: str, job: JobProgress) -> None:
        """Run the join whose spec is in the workspace, until its result or its error is there.

        Continues a join that an earlier process started, without repeating its finished tasks. Raises
        Unavailable ENGINE_UNAVAILABLE when the engine does not answer or the join died.
        """
        ...

    async def discard(self, name: str) -> None:
        """Stop a join if it is running, and delete its folder; neither need exist.

        Raises Unavailable ENGINE_UNAVAILABLE or OBJECT_STORE_DOWN; another call then removes the rest.
        """
        ...


class JoinAccess(AttemptAccess, Protocol):
    """What the attempts of joins on a cluster may do on the object store; a join has one active attempt.

    Raises Unavailable while the store of these records is unreachable.
    """

    async def grant(self, join: str, attempt: str, access: Access) -> None:
        """Make `attempt` the active attempt of the join; an earlier attempt of it loses its access."""
        ...

    async def revoke(self, join: str) -> None:
        """The join has no active attempt any more; it need not have had one."""
        ...


class TrainingSets(Protocol):
    """Built training sets. A set exists when its row exists."""

    async def create(self, training_set: TrainingSet) -> None:
        """Register a set. Raises AlreadyExists TRAINING_SET_EXISTS when the name is taken."""
        ...

    async def get(self, project: str, training_set_id: str) -> TrainingSet | None: ...

    async def list(
        self,
        project: str,
        *,
        feature_set: str = "",
        text: str = "",
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list[TrainingSet]:
        """Up to `limit` sets, newest first by (created_at, id).

        `feature_set`: a resource name with or without version; empty for all. `text`: a part of the id.
        `before`: (created_at, id) of the last set of the page before.
        """
        ...
