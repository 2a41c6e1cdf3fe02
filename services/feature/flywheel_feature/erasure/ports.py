"""What an erasure works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import polars as pl

from flywheel_feature.ingest.tombstones import Tombstone
from flywheel_feature.offline.model import TrainingSet
from flywheel_feature.tables.ports import Segment, TableFile


class OnlineKeys(Protocol):
    async def delete(self, keys: Sequence[bytes]) -> int:
        """How many were there."""
        ...


class EventArchive(Protocol):
    async def segments(self, project: str, source: str) -> Sequence[Segment]: ...

    async def replace_segment(self, old: str, new: str, events: int, min_time: int, max_time: int) -> None:
        """The object `new` (a key) stands in the place of `old`, which becomes garbage; no events: nothing does."""
        ...


class PushArchive(Protocol):
    async def keys(self, project: str, view: str) -> list[tuple[int, str]]:
        """(number, object key) in order."""
        ...

    async def replace(self, old: str, new: str, rows: int) -> None:
        """The object `new` (a key) stands in the place of `old`, under its number; `old` becomes garbage; no rows: nothing does.

        Repeating it changes nothing.
        """
        ...


class Objects(Protocol):
    """Parquet and other objects on S3; blocks (offline.ports.Tables)."""

    def bucket_uri(self, key: str) -> str: ...

    def schema(self, uri: str) -> dict[str, pl.DataType]: ...

    def read(self, uri: str, columns: Sequence[str]) -> pl.DataFrame: ...

    def write(self, uri: str, frame: pl.DataFrame) -> None: ...

    def files(self, uri: str) -> list[TableFile]: ...

    def older_than(self, uri: str, seconds: float) -> list[str]:
        """Addresses of all Parquet files below a prefix that were written longer ago."""
        ...


class TombstoneStore(Protocol):
    """Tombstones, and the objects that nothing refers to any more. Raises Unavailable."""

    async def put(self, project: str, entity: str, key_hash: bytes, stone: Tombstone) -> None:
        """Seen by this process when it returns, by others soon. Of two of one entity the later time stands, and the barriers put last."""
        ...

    async def add_garbage(self, keys: list[str]) -> None:
        """Objects to delete, remembered until they are. A key that is there already is there once."""
        ...

    async def garbage(self) -> list[str]:
        """By key; whatever named it: an erasure, a replaced segment or a replaced file of the push log."""
        ...

    async def deleted(self, key: str) -> None:
        """The object is gone: no garbage any more. A key that is none changes nothing."""
        ...


class TopicEnds(Protocol):
    async def end_offsets(self, project: str, source: str) -> Mapping[int, int]: ...


class TrainingSetList(Protocol):
    async def list(self, project: str, *, limit: int = 100) -> list[TrainingSet]: ...
