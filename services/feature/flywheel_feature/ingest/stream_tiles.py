"""From events of a source to tiles of every view that reads it: each event counts once per view and entity.

Three things make that hold under crashes and rebalances. A row whose id was seen elsewhere first is a
duplicate, wherever the stream is read from. A key's state knows up to which offset it has seen each
partition. A view's position moves only after its keys have it, from the value this member knows: when Redis
lost data or another member came, the move fails and the member starts again from what Redis says. And every
state belongs to a generation of Redis's contents: what a member wrote into a Redis that had just lost its
data, and with it the claim to have seen all earlier events, counts for nothing in the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_feature.definitions.model import Field, Source, StreamView, VersionRef, View
from flywheel_feature.definitions.ttl import state_lifetime_ms
from flywheel_feature.encoding.frames import Columns, to_frame
from flywheel_feature.encoding.keys import entity_keys, key_prefix
from flywheel_feature.expressions.sql import compile_predicate
from flywheel_feature.windows import hyperloglog
from flywheel_feature.windows.event_order import event_ranks
from flywheel_feature.windows.tile_layout import TileLayout
from flywheel_feature.windows.tile_writing import Delta, Events, partials


@dataclass(frozen=True)
class SourceRows:
    """Rows of one partition of a source, in offset order; `offset` is that of the record each came in."""

    source: Source
    partition: int
    columns: Columns
    event_ids: Sequence[str]
    offset: Ints
    next_offset: int

    def take(self, rows: npt.NDArray[Any]) -> SourceRows:
        columns = {name: (v[rows], m[rows]) for name, (v, m) in self.columns.items()}
        ids = [self.event_ids[i] for i in np.arange(len(self.event_ids))[rows].tolist()]
        return SourceRows(self.source, self.partition, columns, ids, self.offset[rows], self.next_offset)

    @cached_property
    def ranks(self) -> Ints:
        """event_order.event_ranks of the ids: every view and the archive want them."""
        return event_ranks(self.event_ids)

    def times(self) -> tuple[Ints, Ints]:
        """Event time and known time, max(event time, created time), of every row."""
        event = self.columns[self.source.timestamp_field][0].astype(np.int64)
        if not self.source.created_field:
            return event, event
        created, given = self.columns[self.source.created_field]
        return event, np.where(given, np.maximum(created, event), event).astype(np.int64)


class TileStore(Protocol):
    """States of entities and applied positions. Every write is atomic per key and may be repeated. Raises
    Unavailable."""

    async def merge_tiles(
        self,
        layout: TileLayout,
        deltas: Sequence[tuple[bytes, Delta, int, int]],
        partition: int,
        lifetime_ms: int,
        generation: int,
    ) -> list[int]:
        """Merge (key, delta, first offset, next offset) of one partition, each key's events once, in a
        generation.

        Per delta the offset up to which the key has now seen the partition. It is less than the next offset
        when the key had seen a part of the events: nothing was merged then, and the unseen ones begin there.
        A state of an older generation counts as absent; -1 when the key is of a newer one.
        """
        ...

    async def take_positions(self, project: str, source: str, generation: int) -> dict[str, str]:
        """Applied positions of a source by field; those of an older generation are forgotten."""
        ...

    async def advance(
        self, project: str, source: str, moves: Mapping[str, tuple[str, str]], generation: int
    ) -> list[bool]:
        """Per field from an expected value ("": none) to a new one; False where another value, or another
        generation, was found."""
        ...


@dataclass(frozen=True, slots=True)
class Position:
    """How far a view has applied a partition, and the newest event time among what it applied (0: none)."""

    next_offset: int
    watermark: int = 0

    @classmethod
    def parse(cls, text: str) -> Position:
        offset, _, watermark = text.partition(":")
        return cls(int(offset), int(watermark or 0))

    def __str__(self) -> str:
        return f"{self.next_offset}:{self.watermark}"


def position_field(ref: VersionRef, partition: int) -> str:
    return f"{ref.id}@{ref.version}/{partition}"


class PositionLost(Exception):
    """The stored position is not the one this member left there."""


class ViewTiles:
    """Applies rows to the tiles of one stream view version."""

    def __init__(self, view: View, keys: tuple[Field, ...], schema: tuple[Field, ...]) -> None:
        assert isinstance(view.kind, StreamView)
        self.view = view
        self.layout = TileLayout(view.kind.aggregations, view.kind.tile, [f.data_type for f in view.features])
        self._keys = keys
        self._prefix = key_prefix(view)
        self._filter = (
            compile_predicate(view.kind.filter, {f.name: int(f.data_type) for f in schema})
            if view.kind.filter
            else None
        )
        self._filter_fields = [
            f for f in schema if self._filter is not None and f.name in self._filter.input_columns
        ]
        self.lifetime_ms = state_lifetime_ms(self.layout.kept_tiles * self.layout.tile, view.ttl)

    async def apply(self, rows: SourceRows, store: TileStore, generation: int) -> None:
        """Merge what the keys have not seen. May be repeated with the same or other cuts of the partition.
        Raises PositionLost."""
        counted = self._counted(rows)
        if not counted.any():
            return
        chosen = rows if counted.all() else rows.take(counted)
        names = entity_keys([(k.data_type, chosen.columns[k.name][0].tolist()) for k in self._keys])
        codes: dict[bytes, int] = {}
        code = np.fromiter((codes.setdefault(n, len(codes)) for n in names), np.int64, len(names))
        event, known = chosen.times()
        values = {f: _as_floats(*chosen.columns[f]) for f in self.layout.fields}
        observed = {f: hyperloglog.observations(chosen.columns[f][0]) for f in self.layout.sketches}
        texts = {f: _as_bytes(*chosen.columns[f]) for f in self.layout.texts}
        values.update({f: (_lengths(t), chosen.columns[f][1]) for f, t in texts.items()})
        bits = {f: _as_bits(*chosen.columns[f]) for f in self.layout.bits}
        events = Events(code, event, known, rows.ranks[counted], values, observed, texts, bits)
        await self._merge(events, chosen.offset, list(codes), rows.partition, store, generation)

    async def _merge(
        self,
        events: Events,
        offset: Ints,
        names: list[bytes],
        partition: int,
        store: TileStore,
        generation: int,
    ) -> None:
        while events.code.size:
            order = np.argsort(events.code, kind="stable")
            codes, starts = np.unique(events.code[order], return_index=True)
            first = np.minimum.reduceat(offset[order], starts)
            following = np.maximum.reduceat(offset[order], starts) + 1
            deltas = partials(self.layout, events)
            calls = [
                (self._prefix + names[c], deltas[c], f, n)
                for c, f, n in zip(codes.tolist(), first.tolist(), following.tolist(), strict=True)
            ]
            seen = np.array(
                await store.merge_tiles(self.layout, calls, partition, self.lifetime_ms, generation), np.int64
            )
            if (seen < 0).any():
                raise PositionLost
            # A key that had seen part of its events answers where the unseen ones begin: only those go again.
            begin = np.zeros(len(names), np.int64)
            begin[codes] = np.where(seen >= following, np.iinfo(np.int64).max, seen)
            left = offset >= begin[events.code]
            events, offset = events.take(left), offset[left]

    def _counted(self, rows: SourceRows) -> Mask:
        """Rows with all join keys that pass the filter."""
        counted: Mask = np.ones(len(rows.event_ids), np.bool_)
        for key in self._keys:
            counted &= rows.columns[key.name][1]
        if self._filter is not None:
            frame = to_frame(self._filter_fields, rows.columns, len(rows.event_ids))
            passed = self._filter.evaluate(frame).to_series().fill_null(False)
            counted &= passed.to_numpy().astype(np.bool_)
        return counted


def _as_floats(values: npt.NDArray[Any], valid: Mask) -> tuple[Floats, Mask]:
    if values.dtype == object or values.ndim > 1:
        # Counted by presence only.
        return np.zeros(len(values)), valid
    return np.where(valid, values, values.dtype.type(0)).astype(np.float64), valid


def _as_bits(values: npt.NDArray[Any], valid: Mask) -> Floats:
    """Integers as the doubles that have their bytes."""
    return np.where(valid, values, 0).astype("<i8").view("<f8")


def _as_bytes(values: npt.NDArray[Any], valid: Mask) -> npt.NDArray[Any]:
    found = np.full(len(values), b"", dtype=object)
    for i in np.flatnonzero(valid).tolist():
        found[i] = values[i].encode() if isinstance(values[i], str) else bytes(values[i])
    return found


def _lengths(texts: npt.NDArray[Any]) -> Floats:
    return np.fromiter(map(len, texts), np.float64, len(texts))


class SourceTiles:
    """All live views of a source, with their positions as this member left them."""

    def __init__(self, store: TileStore) -> None:
        self._store = store
        self._views: dict[tuple[str, VersionRef], ViewTiles] = {}
        self._positions: dict[tuple[str, str], str] = {}
        self._generations: dict[tuple[str, int], int] = {}

    def views(
        self, source: Source, views: Sequence[View], join_keys: Mapping[str, tuple[Field, ...]]
    ) -> list[ViewTiles]:
        found: list[ViewTiles] = []
        for view in views:
            key = source.project, view.ref
            if key not in self._views:
                self._views[key] = ViewTiles(view, join_keys[view.entity], source.schema)
            found.append(self._views[key])
        return found

    async def load(self, source: Source, partition: int, views: Sequence[View], generation: int) -> int:
        """Take up the stored positions of a partition in a generation; the offset from which some view needs
        events, -1 when there is no view."""
        stored = await self._store.take_positions(source.project, source.id, generation)
        self._generations[source.name, partition] = generation
        begin: list[int] = []
        for view in views:
            field = position_field(view.ref, partition)
            text = stored.get(field, "")
            self._positions[source.name, field] = text
            begin.append(Position.parse(text).next_offset if text else 0)
        return min(begin, default=-1)

    async def apply(self, rows: SourceRows, views: Sequence[ViewTiles]) -> None:
        """Apply rows to every view and move the positions. Raises PositionLost."""
        source, moves = rows.source, {}
        generation = self._generations.get((source.name, rows.partition), 0)
        newest = int(rows.times()[0].max()) if len(rows.event_ids) else 0
        for view in views:
            field = position_field(view.view.ref, rows.partition)
            old = self._positions.get((source.name, field), "")
            position = Position.parse(old) if old else Position(0)
            if position.next_offset >= rows.next_offset:
                continue
            fresh = rows.offset >= position.next_offset
            if fresh.any():
                await view.apply(rows if fresh.all() else rows.take(fresh), self._store, generation)
            moves[field] = old, str(Position(rows.next_offset, max(newest, position.watermark)))
        if not moves:
            return
        moved = await self._store.advance(source.project, source.id, moves, generation)
        if not all(moved):
            raise PositionLost
        for field, (_, new) in moves.items():
            self._positions[source.name, field] = new
