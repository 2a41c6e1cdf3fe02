"""Tombstones of erased entities: what of theirs is passed over when it comes again.

An event counts as erased when its offset lies below where the topic ended at the erasure: a replay of older
records brings nothing back, while what is sent afterwards counts (a person may come back). A row of a batch
source, which the platform cannot change, counts as erased when it was known before. A tombstone holds no key,
only its SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from flywheel_common.arrays import Mask
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.frame_types import to_type
from flywheel_feature.definitions.model import Entity, Source
from flywheel_feature.encoding.frames import Columns, from_series
from flywheel_feature.encoding.keys import entity_keys


@dataclass(frozen=True, slots=True)
class Tombstone:
    erased_at: int
    """Microseconds."""
    barriers: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """Source id → partition → offset below which events are erased."""


Tombstones = Mapping[str, Mapping[bytes, Tombstone]]
"""Entity id → hash of the key → tombstone, of one project."""


def key_hash(entity: Entity, name: bytes) -> bytes:
    """`name` is what keys.entity_keys gives."""
    return hashlib.sha256(f"{entity.name}\0".encode() + name).digest()


def names_entity(source: Source, entity: Entity) -> bool:
    """Whether every row of a source names an entity: all its join keys are fields of the same type."""
    fields = [source.field(k.name) for k in entity.join_keys]
    return all(
        f is not None and f.data_type == k.data_type for f, k in zip(fields, entity.join_keys, strict=True)
    )


def rows_of(entity: Entity, columns: Columns, wanted: Callable[[bytes], Any]) -> list[tuple[int, Any]]:
    """(row, wanted(name of the row's entity)) where that is not None; rows with a null key name nobody."""
    valid = np.logical_and.reduce([columns[k.name][1] for k in entity.join_keys])
    places = np.flatnonzero(valid)
    names = entity_keys([(k.data_type, columns[k.name][0][places].tolist()) for k in entity.join_keys])
    answers: dict[bytes, Any] = {}
    found = []
    for place, name in zip(places.tolist(), names, strict=True):
        if name not in answers:
            answers[name] = wanted(name)
        if answers[name] is not None:
            found.append((place, answers[name]))
    return found


def key_columns(entity: Entity, frame: pl.DataFrame) -> Columns:
    """The join keys of a frame's rows as arrays."""
    typed = frame.select(
        to_type(k.name, frame.schema[k.name], k.data_type, k.vector_size) for k in entity.join_keys
    )
    return {k.name: from_series(typed.get_column(k.name), k.data_type) for k in entity.join_keys}


class TombstoneFilter:
    """Which rows are passed over. `catalog` and `tombstones` answer from memory."""

    def __init__(self, catalog: Callable[[str], Catalog], tombstones: Callable[[str], Tombstones]) -> None:
        self._catalog = catalog
        self._tombstones = tombstones

    def events(
        self, source: Source, partition: int, offset: npt.NDArray[np.int64], columns: Columns
    ) -> Mask | None:
        """Mask of the events to keep; None: all."""
        drop: list[int] = []
        for entity, stones in self._about(source):
            barriers = {h: s.barriers.get(source.id, {}).get(partition, 0) for h, s in stones.items()}
            if len(offset) == 0 or max(barriers.values()) <= offset[0]:
                continue
            found = rows_of(entity, columns, lambda name, e=entity, b=barriers: b.get(key_hash(e, name)))  # type: ignore[misc]
            drop += [row for row, barrier in found if offset[row] < barrier]
        return _all_but(drop, len(offset))

    def frame(self, source: Source, partition: int, offset: str, frame: pl.DataFrame) -> pl.DataFrame:
        """A frame of events without the erased ones."""
        keys: Columns = {}
        for entity, _ in self._about(source):
            keys.update(key_columns(entity, frame))
        if not keys:
            return frame
        kept = self.events(source, partition, frame.get_column(offset).to_numpy(), keys)
        return frame if kept is None else frame.filter(pl.Series(kept))

    def batch_rows(self, source: Source, known: npt.NDArray[np.int64], frame: pl.DataFrame) -> Mask | None:
        """Mask of a batch source's rows to keep, `known` being when each became known; None: all."""
        drop: list[int] = []
        for entity, stones in self._about(source):
            if not {k.name for k in entity.join_keys} <= set(frame.columns):
                continue
            found = rows_of(
                entity, key_columns(entity, frame), lambda name, e=entity, s=stones: s.get(key_hash(e, name))  # type: ignore[misc]
            )  # fmt: skip
            drop += [row for row, stone in found if known[row] <= stone.erased_at]
        return _all_but(drop, frame.height)

    def _about(self, source: Source) -> list[tuple[Entity, Mapping[bytes, Tombstone]]]:
        tombstones = self._tombstones(source.project)
        if not tombstones:
            return []
        entities = self._catalog(source.project).entities
        return [
            (entities[e], stones)
            for e, stones in tombstones.items()
            if stones and e in entities and names_entity(source, entities[e])
        ]


def _all_but(drop: list[int], rows: int) -> Mask | None:
    if not drop:
        return None
    kept: Mask = np.ones(rows, np.bool_)
    kept[drop] = False
    return kept
