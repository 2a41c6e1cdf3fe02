"""What the offline use cases need from the outside."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

import polars as pl

from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.jobs.progress import JobProgress
from flywheel_feature.offline.model import TrainingSet
from flywheel_feature.tables.ports import Between


class Workspace(Protocol):
    """Files of one piece of work, below one folder. Methods block; each raises Unavailable OBJECT_STORE_DOWN while the store is away.

    A file appears whole or not at all. Two processes that write one key at a time leave one of the two files.
    """

    def keys(self, prefix: str = "") -> list[str]: ...

    def write(self, key: str, frame: pl.DataFrame, groups: Sequence[int]) -> None:
        """Parquet with row groups of these numbers of rows."""
        ...

    def read(self, prefix: str, columns: Sequence[str], where: Between | None = None) -> pl.DataFrame:
        """Rows of the Parquet files whose key begins so: by key, rows in file order. `where` skips row groups by their statistics.

        Raises NotFound when there is no file.
        """
        ...

    def write_json(self, key: str, value: object) -> None:
        self.write_bytes(key, json.dumps(value).encode())

    def read_json(self, key: str) -> Any:
        """None when there is no such file."""
        content = self.read_bytes(key)
        return None if content is None else json.loads(content)

    def write_bytes(self, key: str, content: bytes) -> None: ...

    def read_bytes(self, key: str) -> bytes | None:
        """None when there is no such file."""
        ...

    def delete(self) -> None:
        """Everything; nothing when there is nothing."""
        ...


class PartitionEngine(Protocol):
    """Where joins in partitions are computed."""

    name: str

    def workspace(self, name: str) -> Workspace:
        """The folder of one piece of work, which every process of this engine can reach; it need not exist."""
        ...

    async def run(self, name: str, job: JobProgress) -> None:
        """Carry out the spec in a workspace until its result or its error is there; finished tasks are not done again.

        Work that was begun by an earlier process goes on.
        Raises Unavailable ENGINE_UNAVAILABLE when the engine does not answer or the work died.
        """
        ...

    async def discard(self, name: str) -> None:
        """Nobody wants this work any more: end it where it still runs, then remove its folder. Nothing there: nothing happens.

        Raises Unavailable ENGINE_UNAVAILABLE, OBJECT_STORE_DOWN; what is left then goes when it is called again.
        """
        ...


Catalogs = Callable[[str], Awaitable[Catalog]]
"""The applied definitions of a project."""


class TrainingSets(Protocol):
    """Built training sets: a set exists when its row does."""

    async def create(self, training_set: TrainingSet) -> None:
        """Raises AlreadyExists TRAINING_SET_EXISTS when the name is taken."""
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
        """Newest first by (created_at, id); `feature_set` is a resource name with or without version, empty: all.
        `text`: only sets whose id contains it.

        `before` is (created_at, id) of the last one seen.
        """
        ...
