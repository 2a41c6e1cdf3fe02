"""The request and the report of an erasure, and the entity that it erases."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field

import polars as pl

from flywheel_feature.definitions.model import Entity
from flywheel_feature.ingest.tombstones import key_columns, rows_of


@dataclass(frozen=True, slots=True)
class EraseRequest:
    project: str
    entity: str
    """Entity id."""
    name: bytes
    """What keys.entity_keys returns for the key to erase."""

    def dump(self) -> bytes:
        name = base64.b64encode(self.name).decode()
        return json.dumps({"project": self.project, "entity": self.entity, "name": name}).encode()

    @classmethod
    def load(cls, data: bytes) -> EraseRequest:
        read = json.loads(data)
        return cls(read["project"], read["entity"], base64.b64decode(read["name"]))


@dataclass(slots=True)
class EraseReport:
    """Counts of what was erased, and messages about what was not."""

    entity: str = ""
    """Resource name."""
    online_keys: int = 0
    archived_events: int = 0
    pushed_rows: int = 0
    predictions: int = 0
    quarantined_rows: int = 0
    objects: int = 0
    """Files that were replaced or deleted."""
    not_erased: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ErasedEntity:
    """One entity to erase: its definition and its encoded key."""

    entity: Entity
    name: bytes

    @property
    def keys(self) -> list[str]:
        return [k.name for k in self.entity.join_keys]

    def rows(self, frame: pl.DataFrame) -> list[int]:
        """The rows of the entity in a frame with its join keys."""
        keys = key_columns(self.entity, frame)
        return [row for row, _ in rows_of(self.entity, keys, lambda n: True if n == self.name else None)]
