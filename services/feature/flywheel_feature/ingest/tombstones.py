"""Tombstones of erased entities: which of their events and rows are skipped when they are read again.

An event counts as erased when its offset lies below the end of the topic at the time of the erasure. A replay
of older records therefore brings nothing back, while events sent later count. A row of a batch source, whose
table the platform cannot change, counts as erased when it was known before the erasure. A tombstone holds the
SHA-256 of the key, not the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from flywheel_common.arrays import Mask
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.frame_types import converted
from flywheel_feature.definitions.model import Entity, Source
from flywheel_feature.encoding.frames import Columns, from_series
from flywheel_feature.encoding.keys import entity_keys

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tombstone:
    erased_at: int
    """Microseconds."""
    barriers: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """Source id → partition → offset below which events are erased."""


Tombstones = Mapping[str, Mapping[bytes, Tombstone]]
"""Entity id → hash of the key → tombstone, of one project."""


def key_hash(entity: Entity, name: bytes) -> bytes:
    """The hash of a key; `name` is what keys.entity_keys returns for it."""
    return hashlib.sha256(f"{entity.name}\0".encode() + name).digest()


def names_entity(source: Source, entity: Entity) -> bool:
    """Whether the rows of a source name an entity: its join keys are fields with the same types."""
    fields = [source.field(k.name) for k in entity.join_keys]
    return all(
        f is not None and f.data_type == k.data_type for f, k in zip(fields, entity.join_keys, strict=True)
    )


def rows_of(entity: Entity, columns: Columns, find: Callable[[bytes], T | None]) -> list[tuple[int, T]]:
    """(row, find(name of the row's entity)) of the rows where that is not None and no key is null."""
    valid = np.logical_and.reduce([columns[k.name][1] for k in entity.join_keys])
    places = np.flatnonzero(valid)
    names = entity_keys([(k.data_type, columns[k.name][0][places].tolist()) for k in entity.join_keys])
    results: dict[bytes, T | None] = {}
    rows = []
    for place, name in zip(places.tolist(), names, strict=True):
        if name not in results:
            results[name] = find(name)
        found = results[name]
        if found is not None:
            rows.append((place, found))
    return rows


def key_columns(entity: Entity, frame: pl.DataFrame) -> Columns:
    """The join keys of a frame's rows as arrays."""
    return {
        k.name: from_series(converted(frame, k.name, k.data_type, k.vector_size), k.data_type)
        for k in entity.join_keys
    }


class TombstoneFilter:
    """Leaves out erased events and rows; `catalog` and `tombstones` read from memory."""

    def __init__(self, catalog: Callable[[str], Catalog], tombstones: Callable[[str], Tombstones]) -> None:
        self._catalog = catalog
        self._tombstones = tombstones

    def events(
        self, source: Source, partition: int, offset: npt.NDArray[np.int64], columns: Columns
    ) -> Mask | None:
        """Mask of the events to keep; None: all."""
        dropped: list[int] = []
        for entity, tombstones in self._tombstones_for(source):
            barriers = {
                hashed: tombstone.barriers.get(source.id, {}).get(partition, 0)
                for hashed, tombstone in tombstones.items()
            }
            if len(offset) == 0 or max(barriers.values()) <= offset[0]:
                continue
            found = rows_of(entity, columns, partial(_by_hash, barriers, entity))
            dropped += [row for row, barrier in found if offset[row] < barrier]
        return _all_but(dropped, len(offset))

    def frame(self, source: Source, partition: int, offset: str, frame: pl.DataFrame) -> pl.DataFrame:
        """A frame of events without the erased ones; `offset` names the column of offsets."""
        keys: Columns = {}
        for entity, _ in self._tombstones_for(source):
            keys.update(key_columns(entity, frame))
        if not keys:
            return frame
        kept = self.events(source, partition, frame.get_column(offset).to_numpy(), keys)
        return frame if kept is None else frame.filter(pl.Series(kept))

    def batch_rows(self, source: Source, known: npt.NDArray[np.int64], frame: pl.DataFrame) -> Mask | None:
        """Mask of a batch source's rows to keep; None: all. `known` [n]: when each row became known."""
        dropped: list[int] = []
        for entity, tombstones in self._tombstones_for(source):
            if not {k.name for k in entity.join_keys} <= set(frame.columns):
                continue
            found = rows_of(entity, key_columns(entity, frame), partial(_by_hash, tombstones, entity))
            dropped += [row for row, tombstone in found if known[row] <= tombstone.erased_at]
        return _all_but(dropped, frame.height)

    def _tombstones_for(self, source: Source) -> list[tuple[Entity, Mapping[bytes, Tombstone]]]:
        """The tombstones of every entity that the source names."""
        by_entity = self._tombstones(source.project)
        if not by_entity:
            return []
        entities = self._catalog(source.project).entities
        return [
            (entities[entity_id], tombstones)
            for entity_id, tombstones in by_entity.items()
            if tombstones and entity_id in entities and names_entity(source, entities[entity_id])
        ]


def _by_hash(values: Mapping[bytes, T], entity: Entity, name: bytes) -> T | None:
    return values.get(key_hash(entity, name))


def _all_but(dropped: list[int], rows: int) -> Mask | None:
    if not dropped:
        return None
    kept: Mask = np.ones(rows, np.bool_)
    kept[dropped] = False
    return kept
