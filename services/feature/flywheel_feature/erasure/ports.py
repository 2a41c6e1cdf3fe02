"""Ports that an erasure uses besides those of ingest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import polars as pl

from flywheel_feature.ingest.tombstones import Tombstone
from flywheel_feature.tables.ports import FrameWriter, TableFile


class OnlineKeys(Protocol):
    """Keys of the online store."""

    async def delete(self, keys: Sequence[bytes]) -> int:
        """Delete keys; returns how many were present. Raises Unavailable."""
        ...


class Objects(FrameWriter, Protocol):
    """Parquet files on S3; methods block and raise the errors of tables.ports.Tables."""

    def schema(self, uri: str) -> dict[str, pl.DataType]:
        """Columns and their stored types."""
        ...

    def read(self, uri: str, columns: Sequence[str]) -> pl.DataFrame:
        """These columns of a file, rows in file order."""
        ...

    def files(self, uri: str) -> list[TableFile]:
        """The Parquet files below a prefix. Raises NotFound when there is none."""
        ...

    def older_than(self, uri: str, seconds: float) -> list[str]:
        """Addresses of the Parquet files below a prefix that were written more than `seconds` ago."""
        ...


class TombstoneStore(Protocol):
    """Tombstones, and garbage: object keys that nothing refers to any more. Raises Unavailable."""

    async def put(self, project: str, entity: str, key_hash: bytes, tombstone: Tombstone) -> None:
        """Store a tombstone; this process sees it when this returns, other processes see it soon after.

        An existing tombstone of the same key keeps the later time and gets the new barriers.
        """
        ...

    async def add_garbage(self, keys: list[str]) -> None:
        """Record objects to delete; a key that is recorded already stays once."""
        ...

    async def garbage(self) -> list[str]:
        """All recorded keys, sorted: from erasures, replaced segments and replaced files of the push log."""
        ...

    async def deleted(self, key: str) -> None:
        """Remove a key whose object is deleted; an unknown key changes nothing."""
        ...
